// A process of its own, killed just before and just after each step of an enrollment and of a revocation.

package crash_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestKilledAtEveryStep(t *testing.T) {
	first := newSite(t, harness.ServerOptions{Hooks: true}, "")
	first.Stop(t)
	start := func(env ...string) *site {
		return newSite(t, harness.ServerOptions{Hooks: true, Data: first.Data, Env: env}, "")
	}
	var all []*device
	for n, step := range []string{"ca.intend", "ca.sign", "ca.issued", "ca.revoke"} {
		for _, mode := range []string{"crash", "crashafter"} {
			t.Run(step+" "+mode, func(t *testing.T) {
				s := start("NATAL_FAULT=" + step + ":" + mode)
				d := s.newDevice(t, fmt.Sprintf("dev-%d-%s", n, mode), testpki.Key(t, "ec:P-256"))
				c := s.client(0)
				_, certificate, err := s.enroll(c, d, d.csr(t, d.key))
				revoke := func(s *site) error {
					return s.operate(http.MethodPost, "/certificates/"+fmt.Sprintf("%034x", d.got[0].SerialNumber)+"/revoke", map[string]string{"reason": "superseded"}, nil)
				}
				if step == "ca.revoke" {
					if err != nil {
						t.Fatal(err)
					}
					d.got = append(d.got, certificate)
					err = revoke(s)
				}
				if err == nil {
					t.Fatal("answered")
				}
				if code := s.Wait(t, 5*time.Second); code != -1 {
					t.Fatalf("exit code %d, not killed", code)
				}
				s = start()
				if step == "ca.revoke" {
					if err := revoke(s); err != nil {
						t.Errorf("revoked again: %v", err)
					}
					s.mustList(t, []string{fmt.Sprintf("%034x", d.got[0].SerialNumber)})
				} else if _, certificate, err := s.enroll(s.client(0), d, d.csr(t, d.key)); err != nil {
					t.Errorf("again: %v", err)
				} else {
					d.got = append(d.got, certificate)
				}
				all = append(all, d)
				s.require(t, all)
				s.Stop(t)
			})
		}
	}
}
