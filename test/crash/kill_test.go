// SIGKILL at a random moment of sixteen enrollments, again and again (T28).

package crash

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/invariants"
)

const (
	together = 16
	// longestStart is far above the half second that a start takes here: the tests run beside each other on few cores.
	longestStart = 15 * time.Second
)

func TestServerKilledWhileEnrolling(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		s := harness.StartServer(t, harness.ServerOptions{})
		killAndRepeat(t, s, "sqlite:"+filepath.Join(s.Data, "est.db"), 40)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		url := harness.PostgresURL(t)
		s := harness.StartServer(t, harness.ServerOptions{Env: []string{"NATAL_DATABASE_URL=" + url}})
		killAndRepeat(t, s, url, 8)
	})
}

func killAndRepeat(t *testing.T, s *harness.Server, url string, rounds int) {
	var received []invariants.Received
	answered, unanswered, slowest := 0, 0, time.Duration(0)
	for round := range rounds {
		devices := newDevices(t, s, round, together)
		client := s.HTTP(t)
		var wg sync.WaitGroup
		for _, d := range devices {
			wg.Go(func() {
				if _, certificate, err := d.enroll(client, s.URL(), d.key); err == nil {
					d.received = certificate
				}
			})
		}
		time.Sleep(rand.N(50 * time.Millisecond)) // the moment to kill is what the test is about, not something to wait for
		s.Kill()
		wg.Wait()

		began := time.Now()
		s.Start(t)
		slowest = max(slowest, time.Since(began))

		for _, d := range devices {
			before := d.received
			status, certificate, err := d.enroll(client, s.URL(), d.key)
			if err != nil || certificate == nil {
				t.Fatalf("round %d: %s repeats its request: status %d, %v", round, d.id, status, err)
			}
			if before == nil {
				unanswered++
			} else if answered++; !bytes.Equal(before, certificate) {
				t.Errorf("round %d: %s got another certificate than before the crash", round, d.id)
			}
			received = append(received, invariants.Received{Device: d.id, Credential: d.code, Certificate: certificate})
		}
		for _, err := range invariants.Check(t.Context(), url, invariants.State{Settled: true}, received...) {
			t.Errorf("after round %d: %v", round, err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills: %d enrollments were answered before, %d were not; slowest start %v", rounds, answered, unanswered, slowest.Round(time.Millisecond))
	if unanswered == 0 || slowest > longestStart {
		t.Errorf("%d enrollments were interrupted, slowest start %v", unanswered, slowest)
	}
}

// 200 requests at once with one code and 200 keys: one certificate, twenty times over.
func TestOneCodeManyKeysOverTLS(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	client := s.HTTP(t)
	const requests, rounds = 200, 20
	for round := range rounds {
		d := newDevices(t, s, round, 1)[0]
		start := make(chan struct{})
		var mu sync.Mutex
		statuses := map[int]int{}
		var wg sync.WaitGroup
		for range requests {
			key := newKey(t)
			wg.Go(func() {
				<-start
				status, _, err := d.enroll(client, s.URL(), key)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				statuses[status]++
			})
		}
		close(start)
		wg.Wait()
		// The rest is refused in the uniform way, or told to slow down: two hundred wrong answers from one address are many.
		if statuses[200] != 1 || statuses[401]+statuses[429] != requests-1 {
			t.Fatalf("round %d: answers %v", round, statuses)
		}
	}
	invariants.Require(t, "sqlite:"+filepath.Join(s.Data, "est.db"), invariants.State{Settled: true})
}
