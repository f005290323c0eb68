// SIGKILL at random moments of enrollments and revocations.

package crash_test

import (
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/invariants"
)

const (
	enrolling = 16
	soonest   = 3 * time.Second // in which a killed server is ready again
)

func TestServerKilledWhileEnrolling(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { killRounds(t, storm(40, 500), harness.ServerOptions{}, "") })
	t.Run("postgres", func(t *testing.T) {
		url := harness.PostgresURL(t)
		killRounds(t, storm(8, 100), harness.ServerOptions{Env: []string{"NATAL_DATABASE_URL=" + url}}, url)
	})
}

func killRounds(t *testing.T, rounds int, o harness.ServerOptions, url string) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t, o, url)
	var all []*device
	var revoked []string
	var restarts []time.Duration
	answered, interrupted := 0, 0
	for round := range rounds {
		var devices []*device
		made := keys(t, enrolling)
		for n := range enrolling {
			devices = append(devices, s.newDevice(t, fmt.Sprintf("dev-%d-%d", round, n), made[n]))
		}
		victim, revoke := "", func() error { return nil }
		if round > 0 {
			victim = all[random.IntN(len(all))].serial()
			revoke = func() error { return s.revoke(victim) }
		}
		confirmed := s.burst(t, devices, revoke, time.Duration(random.Int64N(int64(50*time.Millisecond))))
		if confirmed && victim != "" {
			revoked = append(revoked, victim)
		}
		for _, d := range devices {
			if answered += len(d.got); len(d.got) == 0 {
				interrupted++
			}
		}
		if round%4 == 0 { // as the crash left it
			invariants.Require(t, s.url, invariants.State{}, received(append(slices.Clone(all), devices...))...)
		}
		began := time.Now()
		s.Start(t)
		restarts = append(restarts, time.Since(began))
		s.repeat(t, devices)
		all = append(all, devices...)
		s.require(t, all)
		s.mustList(t, revoked)
		if t.Failed() {
			t.Fatalf("round %d of %d", round+1, rounds)
		}
	}
	slices.Sort(restarts)
	t.Logf("%d rounds: %d answers before the kill, %d requests interrupted, %d revocations confirmed; ready again after %v in the middle, %v at most",
		rounds, answered, interrupted, len(revoked), restarts[len(restarts)/2], restarts[len(restarts)-1])
	if answered == 0 || interrupted == 0 {
		t.Error("no round hit the server in the middle of enrollments")
	}
	// The machine may be busy with other tests; most restarts tell what the server needs.
	if typical := restarts[len(restarts)*3/4]; typical > soonest {
		t.Errorf("a killed server is ready again after %v", typical)
	}
}

// burst has all devices enroll and an operator do something at once, and kills the server after a while. It reports whether what the operator did
// was confirmed.
func (s *site) burst(t *testing.T, devices []*device, operate func() error, after time.Duration) (confirmed bool) {
	t.Helper()
	clients, requests := s.clients(t, len(devices)), make([][]byte, len(devices))
	for n, d := range devices {
		requests[n] = d.csr(t, d.key)
	}
	var wg sync.WaitGroup
	for n, d := range devices {
		wg.Go(func() {
			status, certificate, err := s.enroll(clients[n], d, requests[n])
			if certificate != nil {
				d.got = append(d.got, certificate)
			} else if status != 0 && status != http.StatusServiceUnavailable {
				t.Errorf("%s: %v", d.id, err)
			}
		})
	}
	wg.Go(func() { confirmed = operate() == nil })
	time.Sleep(after)
	s.Kill()
	wg.Wait()
	return confirmed
}

// repeat: every device sends its request again, with the same code and key, and gets its certificate; the one that it got before, if it did.
func (s *site) repeat(t *testing.T, devices []*device) {
	t.Helper()
	var wg sync.WaitGroup
	for n, d := range devices {
		wg.Go(func() {
			c := s.client(n)
			defer c.CloseIdleConnections()
			_, certificate, err := s.enroll(c, d, d.csr(t, d.key))
			if err != nil {
				t.Errorf("%s, again: %v", d.id, err)
				return
			}
			d.got = append(d.got, certificate)
			if !certificate.Equal(d.got[0]) {
				t.Errorf("%s got two different certificates", d.id)
			}
		})
	}
	wg.Wait()
}

// mustList: what an operator was told to be revoked is on the CRL that everybody fetches.
func (s *site) mustList(t *testing.T, serials []string) {
	t.Helper()
	answer, err := http.Get("http://" + s.Public + "/crl/devices.crl")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	der, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, e := range crl.RevokedCertificateEntries {
		listed[fmt.Sprintf("%034x", e.SerialNumber)] = true
	}
	for _, serial := range serials {
		if !listed[serial] {
			t.Errorf("%s was confirmed to be revoked and is not on CRL %v", serial, crl.Number)
		}
	}
}
