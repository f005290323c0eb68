// A disk that fails to sync once: what is on it is unknown from then on, so the server issues nothing until it is restarted, and says so.

package crash_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestFailedSyncStopsIssuing(t *testing.T) {
	harness.RequirePrograms(t, "strace")
	s := newSite(t, harness.ServerOptions{Hooks: true}, "")
	var devices []*device
	for when := 1; when <= 3; when++ { // the first, second or third sync after now
		d := s.newDevice(t, fmt.Sprintf("dev-%d", when), testpki.Key(t, "ec:P-256"))
		csr := d.csr(t, d.key)
		tracer := harness.Command{Path: harness.Program(t, "strace"), Args: []string{"-f", "-p", fmt.Sprint(s.PID()), "-e", "trace=fsync,fdatasync",
			"-e", fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", when)}}.Start(t)
		harness.Eventually(t, 10*time.Second, "strace to be attached", func() bool { return strings.Contains(tracer.Output(), "attached") })
		// Each enrollment takes two syncs; a few devices may pass before.
		refused := false
		for n := range 3 {
			one, err := s.tryDevice(fmt.Sprintf("dev-%d-%d", when, n), testpki.Key(t, "ec:P-256"))
			if refused = err != nil; refused {
				break
			}
			status, certificate, err := s.enroll(s.client(n), one, one.csr(t, one.key))
			if certificate != nil {
				one.got = append(one.got, certificate)
				devices = append(devices, one)
				continue
			}
			if refused = status == http.StatusServiceUnavailable; !refused {
				t.Errorf("with a disk that fails: %d, %v", status, err)
			}
			break
		}
		if !refused {
			t.Fatalf("nothing was refused:\n%s", tracer.Output())
		}
		harness.Eventually(t, 10*time.Second, "strace to tell of the failed sync", func() bool { return strings.Contains(tracer.Output(), "INJECTED") })
		tracer.Stop(t)
		// The disk is well again; the server does not know what is on it.
		for range 3 {
			if status, certificate, err := s.enroll(s.client(9), d, csr); status != http.StatusServiceUnavailable || certificate != nil {
				t.Errorf("after the failure: %d, %v", status, err)
			}
		}
		if s.Ready() {
			t.Error("it calls itself ready")
		}
		s.Stop(t)
		s.Start(t)
		_, certificate, err := s.enroll(s.client(9), d, csr)
		if err != nil {
			t.Fatalf("after the restart: %v", err)
		}
		d.got = append(d.got, certificate)
		devices = append(devices, d)
		s.require(t, devices)
	}
}
