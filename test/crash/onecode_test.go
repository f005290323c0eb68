// One code, two hundred keys, all at once, over real TLS.

package crash_test

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

const racers = 200

func TestOneCodeSQLite(t *testing.T) {
	oneCode(t, 20, harness.ServerOptions{}, "")
}

func TestOneCodePostgres(t *testing.T) {
	url := harness.PostgresURL(t)
	oneCode(t, 4, harness.ServerOptions{Env: []string{"NATAL_DATABASE_URL=" + url}}, url)
}

func oneCode(t *testing.T, rounds int, o harness.ServerOptions, url string) {
	s := newSite(t, o, url)
	made := keys(t, racers)
	clients := s.clients(t, racers)
	var devices []*device
	for round := range rounds {
		d := s.newDevice(t, fmt.Sprintf("dev-%d", round), nil)
		requests := make([][]byte, racers)
		for n := range requests {
			requests[n] = d.csr(t, made[n])
		}
		winner, certificates := s.race(t, d, func(n int) (int, *x509.Certificate, error) { return s.enroll(clients[n], d, requests[n]) })
		if len(certificates) != 1 {
			t.Fatalf("round %d: %d certificates for one code", round+1, len(certificates))
		}
		d.got = certificates
		// The winner may ask again, the others may not.
		if _, again, err := s.enroll(clients[winner], d, d.csr(t, made[winner])); err != nil || !again.Equal(certificates[0]) {
			t.Errorf("round %d: the winner, again: %v", round+1, err)
		}
		if status, _, _ := s.enroll(clients[(winner+1)%racers], d, requests[(winner+1)%racers]); status != http.StatusUnauthorized {
			t.Errorf("round %d: another, later: status %d", round+1, status)
		}
		devices = append(devices, d)
	}
	s.require(t, devices)
}

// race sends all requests at the same moment and returns who got a certificate.
func (s *site) race(t *testing.T, d *device, request func(n int) (int, *x509.Certificate, error)) (winner int, certificates []*x509.Certificate) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := make(chan struct{})
	for n := range racers {
		wg.Go(func() {
			<-start
			status, certificate, err := request(n)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case certificate != nil:
				winner, certificates = n, append(certificates, certificate)
			case status != http.StatusUnauthorized:
				t.Errorf("%s: status %d, %v; want 401", d.id, status, err)
			}
		})
	}
	close(start)
	wg.Wait()
	return winner, certificates
}
