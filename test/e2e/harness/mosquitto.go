// A real mosquitto, because it is the broker's opinion that counts.

package harness

import (
	"strings"
	"testing"
	"time"
)

// StartMosquitto starts mosquitto with a configuration file and waits until it listens at all addresses. The
// configuration says under which user it runs when root starts it ("user root" keeps root).
func StartMosquitto(t testing.TB, config string, addresses ...string) *Process {
	t.Helper()
	RequirePrograms(t, "mosquitto")
	p := Command{Path: Program(t, "mosquitto"), Args: []string{"-c", config, "-v"}}.Start(t)
	Eventually(t, 20*time.Second, "mosquitto at "+strings.Join(addresses, ", "), func() bool {
		if !p.Running() {
			t.Fatalf("mosquitto ended by itself:\n%s", p.Output())
		}
		for _, address := range addresses {
			if !Listening(address) {
				return false
			}
		}
		return true
	})
	return p
}
