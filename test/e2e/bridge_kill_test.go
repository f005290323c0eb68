// SIGKILL of the bridge at any moment of its work: mosquitto always starts on the files that are on disk, a SIGHUP of somebody else's never opens
// the broker, and what was to be done is done by the next bridge.

package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

const (
	killRounds  = 200
	killVictims = 30
	checkEvery  = 10 // rounds between two starts of mosquitto on the files
)

// attack is one run of the test.
type attack struct {
	*broker
	random *rand.Rand
	admin  *http.Client

	ids     map[string]bool // what the access list has to hold in the end
	victims []*victim
	good    *tls.Config

	mu   sync.Mutex
	outs []*victim // seen to be refused: from then on, for ever
}

// victim is a device that will be revoked.
type victim struct {
	id, serial string
	config     *tls.Config
	session    *session
}

func TestBridgeKilledWhileItWrites(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "device", "remove", "device-1")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	a := &attack{broker: startBroker(t, s, brokerOptions{}), random: rand.New(rand.NewPCG(seed, 0)), admin: socketClient(t, s), ids: map[string]bool{}}
	a.enroll(t)
	witness := a.witness(t, "-t", "#")

	// One is revoked and out before the first kill.
	a.revoke(t, a.victims[0])
	a.victims[0].session.waitEnd(t, time.Now())
	a.out(a.victims[0])
	watched := a.watchFiles(t)
	stopProbing := a.probeAllTheTime(t)
	for round := range killRounds {
		a.change(t, round)
		if a.random.IntN(4) == 0 {
			a.mosquitto.Signal(syscall.SIGHUP) // logrotate's
		}
		time.Sleep(time.Duration(a.random.Int64N(int64(150 * time.Millisecond))))
		a.bridge.Kill()
		if round%checkEvery == 0 {
			a.startsOnTheFiles(t)
		}
		if !a.mosquitto.Running() {
			t.Fatalf("round %d: mosquitto has ended:\n%s", round, a.mosquitto.Output())
		}
		a.startBridge(t)
	}
	a.waitReady(t)
	probes := stopProbing()
	t.Logf("%d kills, %d files replaced, %d connections of revoked devices refused meanwhile", killRounds, watched(), probes)
	a.everythingIsDone(t, witness)
}

func (a *attack) enroll(t *testing.T) {
	t.Helper()
	a.good = a.tlsConfig(t, enrollDevice(t, a.server, "honest"), tls.VersionTLS12)
	a.ids["honest"] = true
	for n := range killVictims {
		id := fmt.Sprintf("victim-%d", n)
		dir := enrollDevice(t, a.server, id)
		v := &victim{id: id, config: a.tlsConfig(t, dir, tls.VersionTLS12)}
		v.serial = fmt.Sprintf("%x", v.config.Certificates[0].Leaf.SerialNumber)
		v.session = a.mustConnect(t, dir)
		a.victims = append(a.victims, v)
		a.ids[id] = true
	}
}

// call changes something at the server.
func (a *attack) call(t *testing.T, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://admin/api/v1"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := a.admin.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %d %s, %v", method, path, answer.StatusCode, text, err)
	}
}

func (a *attack) revoke(t *testing.T, v *victim) {
	t.Helper()
	a.call(t, http.MethodPost, "/devices/"+v.id+"/revoke", `{"reason":"keyCompromise"}`)
	delete(a.ids, v.id)
}

// change is a new device, one that goes, or a revocation.
func (a *attack) change(t *testing.T, round int) {
	t.Helper()
	if next := 1 + round*(killVictims-1)/killRounds; round*(killVictims-1)%killRounds < killVictims-1 && next < killVictims {
		a.revoke(t, a.victims[next])
		return
	}
	if round%3 == 2 {
		for id := range a.ids {
			if strings.HasPrefix(id, "dev-") {
				a.call(t, http.MethodDelete, "/devices/"+id, "")
				delete(a.ids, id)
				return
			}
		}
	}
	id := fmt.Sprintf("dev-%d", round)
	a.call(t, http.MethodPost, "/devices", `{"id":"`+id+`","label":"default"}`)
	a.ids[id] = true
}

// out notes that a device was refused once.
func (a *attack) out(v *victim) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.outs, v) {
		a.outs = append(a.outs, v)
	}
}

// probeAllTheTime connects as revoked devices until it is stopped; stop returns how often. A device whose session was ended is out: the bridge does
// that only after it has proven the broker to refuse it.
func (a *attack) probeAllTheTime(t *testing.T) (stop func() int) {
	done, ended := make(chan struct{}), make(chan struct{})
	count := 0
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
			}
			for _, v := range a.victims {
				select {
				case <-v.session.ended:
					a.out(v)
				default:
				}
			}
			a.mu.Lock()
			v := a.outs[n%len(a.outs)]
			a.mu.Unlock()
			switch _, err := dialMQTT(t, a.devices, v.config, nil); {
			case err == nil:
				t.Errorf("%s is accepted although it was out", v.id)
			case alertOf(err) != 44:
				t.Errorf("%s: %v, want alert 44", v.id, err)
			}
			count++
		}
	}()
	var once sync.Once
	stop = func() int {
		once.Do(func() { close(done); <-ended })
		return count
	}
	t.Cleanup(func() { stop() })
	return stop
}

// watchFiles counts how often the broker's files are replaced.
func (a *attack) watchFiles(t *testing.T) (replaced func() int) {
	done, ended := make(chan struct{}), make(chan struct{})
	count := 0
	go func() {
		defer close(ended)
		seen := map[string]os.FileInfo{}
		for {
			for _, name := range []string{"bundle.pem", "devices.acl"} {
				info, err := os.Stat(a.path(name))
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if old := seen[name]; old != nil && !os.SameFile(old, info) {
					count++
				}
				seen[name] = info
			}
			select {
			case <-done:
				return
			case <-time.After(3 * time.Millisecond):
			}
		}
	}()
	var once sync.Once
	replaced = func() int {
		once.Do(func() { close(done); <-ended })
		return count
	}
	t.Cleanup(func() { replaced() })
	return replaced
}

// startsOnTheFiles starts another mosquitto on the very files, while no bridge runs.
func (a *attack) startsOnTheFiles(t *testing.T) {
	t.Helper()
	address := harness.FreeAddress(t)
	snippet := readText(t, a.path("conf.d/natal.conf"))
	device, _, found := strings.Cut(snippet, "# The bridge:")
	ours := "listener " + harness.Port(t, a.devices)
	if !found || !strings.Contains(device, ours) {
		t.Fatalf("natal.conf is not as expected:\n%s", snippet)
	}
	config := filepath.Join(filepath.Dir(a.dir), "shadow.conf")
	user := ""
	if os.Getuid() == 0 {
		user = "user mosquitto\n"
	}
	writeText(t, config, user+strings.Replace(device, ours, "listener "+harness.Port(t, address), 1))
	shadow := harness.StartMosquitto(t, config, address)
	defer shadow.Kill()
	if s, err := dialMQTT(t, address, a.good, nil); err != nil {
		t.Errorf("mosquitto, started on the files: a good device: %v", err)
	} else {
		s.conn.Close()
	}
	a.mu.Lock()
	v := a.outs[len(a.outs)-1]
	a.mu.Unlock()
	if _, err := dialMQTT(t, address, v.config, nil); alertOf(err) != 44 {
		t.Errorf("mosquitto, started on the files: %s, which is revoked: %v", v.id, err)
	}
}

// everythingIsDone: all changes have reached the broker, all sessions are ended, nothing is left lying about.
func (a *attack) everythingIsDone(t *testing.T, witness *harness.Process) {
	t.Helper()
	began := time.Now()
	for _, v := range a.victims {
		v.session.waitEnd(t, began)
		if _, err := dialMQTT(t, a.devices, v.config, nil); alertOf(err) != 44 {
			t.Errorf("%s in the end: %v, want alert 44", v.id, err)
		}
	}
	ids := make([]string, 0, len(a.ids))
	for id := range a.ids {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var want strings.Builder
	for _, id := range ids {
		want.WriteString("user " + id + "\ntopic write v1/devices/me/telemetry\n")
	}
	harness.Eventually(t, patience, "the access list", func() bool {
		_, devices, _ := strings.Cut(readText(t, a.path("devices.acl")), accessMark)
		return devices == want.String()
	})
	harness.Eventually(t, patience, "an honest device's telemetry", func() bool {
		s, err := dialMQTT(t, a.devices, a.good, nil)
		if err != nil {
			t.Fatalf("an honest device: %v", err)
		}
		defer s.conn.Close()
		payload := "\x00\x17" + "v1/devices/me/telemetry" + "all is well"
		if _, err := s.conn.Write(append([]byte{0x30, byte(len(payload))}, payload...)); err != nil {
			return false
		}
		time.Sleep(20 * time.Millisecond)
		return strings.Contains(witness.Output(), "all is well")
	})
	for _, series := range []string{"bridge_fail_open", "bridge_kicks_pending"} {
		if n := sample(t, a.metrics, series); n != 0 {
			t.Errorf("%s is %v", series, n)
		}
	}
	for _, dir := range []string{".", "state", "identity"} {
		left, err := filepath.Glob(filepath.Join(a.path(dir), ".*.tmp-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind by killed bridges: %q, %v", left, err)
		}
	}
}
