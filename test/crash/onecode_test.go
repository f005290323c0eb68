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

func TestOneCodeManyKeysOverTLS(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { oneCode(t, 20, newSite(t, harness.ServerOptions{}, "")) })
	t.Run("postgres", func(t *testing.T) {
		url := harness.PostgresURL(t)
		oneCode(t, 4, newSite(t, harness.ServerOptions{Env: []string{"NATAL_DATABASE_URL=" + url}}, url))
	})
	t.Run("two servers on one postgres", func(t *testing.T) {
		url := harness.PostgresURL(t)
		options := harness.ServerOptions{Env: []string{"NATAL_DATABASE_URL=" + url}}
		one := newSite(t, options, url)
		oneCode(t, 8, one, one.beside(t, options))
	})
}

// oneCode races for one code after the other, at all servers at once.
func oneCode(t *testing.T, rounds int, sites ...*site) {
	clients := sites[0].clients(t, racers)
	at := func(n int) *site { return sites[n%len(sites)] }
	for _, other := range sites[1:] {
		other.warm(t, clients)
	}
	enroll := func(n int, d *device, csr []byte) (int, *x509.Certificate, error) {
		return at(n).enroll(clients[n], d, csr)
	}
	var devices []*device
	for round := range rounds {
		made := keys(t, racers)
		d := at(round).newDevice(t, fmt.Sprintf("dev-%d", round), nil)
		requests := make([][]byte, racers)
		for n := range requests {
			requests[n] = d.csr(t, made[n])
		}
		winner, certificates := race(t, d, func(n int) (int, *x509.Certificate, error) { return enroll(n, d, requests[n]) })
		if len(certificates) != 1 {
			t.Fatalf("round %d: %d certificates for one code", round+1, len(certificates))
		}
		d.got = certificates
		// The winner may ask again, at any server; the others may not.
		for _, s := range sites {
			if _, again, err := s.enroll(clients[winner], d, d.csr(t, made[winner])); err != nil || !again.Equal(certificates[0]) {
				t.Errorf("round %d: the winner, again: %v", round+1, err)
			}
		}
		loser := (winner + 1) % racers
		if status, _, _ := enroll(loser, d, requests[loser]); status != http.StatusUnauthorized {
			t.Errorf("round %d: another, later: status %d", round+1, status)
		}
		devices = append(devices, d)
	}
	sites[0].require(t, devices)
}

// race sends all requests at the same moment and returns who got a certificate.
func race(t *testing.T, d *device, request func(n int) (int, *x509.Certificate, error)) (winner int, certificates []*x509.Certificate) {
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
