// SIGKILL while an operator rolls a CA over: the same command finishes what was begun, and no device notices.

package crash_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestServerKilledDuringRollover(t *testing.T) {
	kills := storm(6, 60)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t, harness.ServerOptions{}, "")
	made := keys(t, 4*kills)
	var all []*device
	cut := map[string]int{} // how many of each command did not get an answer
	old, next := "devices", "devices-2"
	for kill := range kills {
		step := []struct {
			command []string
			path    string // of the same in the API
			body    map[string]any
			within  time.Duration // of its beginning the server is killed
			begun   string        // what the command may say instead when it is repeated
		}{
			{[]string{"ca", "rollover", old}, "/cas/" + old + "/rollover", map[string]any{}, 400 * time.Millisecond, "has a successor already"},
			{[]string{"ca", "activate", next}, "/cas/" + next + "/activate", map[string]any{}, 30 * time.Millisecond, ""},
			{[]string{"ca", "retire", old, "--override", "--reason", "test"}, "/cas/" + old + "/retire", map[string]any{"override": true, "reason": "test"}, 100 * time.Millisecond, ""},
		}[kill%3]
		line := strings.Join(step.command, " ")
		var devices []*device
		for n := range 4 {
			devices = append(devices, s.newDevice(t, fmt.Sprintf("dev-%d-%d", kill, n), made[4*kill+n]))
		}
		operate := func() error { return s.operate(http.MethodPost, step.path, step.body, nil) }
		if !s.burst(t, devices, operate, time.Duration(random.Int64N(int64(step.within)))) {
			cut[step.command[1]]++
		}
		s.Start(t)
		if r := s.CLI(t, step.command...); r.Code != 0 && (step.begun == "" || !strings.Contains(r.Stderr, step.begun)) {
			t.Errorf("%s, again: exit code %d\n%s", line, r.Code, r.Output())
		}
		s.repeat(t, devices)
		all = append(all, devices...)
		s.require(t, all)
		if t.Failed() {
			t.Fatalf("%s, kill %d of %d", line, kill+1, kills)
		}
		if kill%3 == 2 {
			old, next = next, fmt.Sprintf("devices-%d", kill/3+3)
		}
	}
	s.MustCLI(t, "audit", "verify")
	t.Logf("%d kills; commands that got no answer: %v", kills, cut)
}
