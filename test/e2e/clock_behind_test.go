// A clock that falls behind what was already recorded: nothing is signed until it is right again, and no code is lost by it.

package e2e

import (
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestNothingIsSignedWhileTheClockIsBehind(t *testing.T) {
	t.Parallel()
	clock := harness.NewClock(t)
	s := harness.StartServer(t, harness.ServerOptions{Hooks: true, Env: []string{clock.Env()}})
	d := newOpensslDevice(t, "SN-TIME")
	d.newKey(t, "ec:P-256")
	code := s.CodeFile(t, d.id)
	clock.Set(t, time.Hour)
	other := newOpensslDevice(t, "SN-LATER")
	other.newKey(t, "ec:P-256")
	if a := other.enroll(t, s, "simpleenroll", s.CodeFile(t, other.id)); a.status != 200 {
		t.Fatalf("enroll an hour later: %d %s", a.status, a.body)
	}

	time.Sleep(1100 * time.Millisecond) // a server looks for its newest entry once a second
	clock.Set(t, 54*time.Minute)        // six minutes behind that
	time.Sleep(100 * time.Millisecond)  // and at the clock every 20 ms
	harness.Eventually(t, 5*time.Second, "503 while the clock is behind", func() bool {
		a := d.enroll(t, s, "simpleenroll", code, "--dump-header", "header")
		if a.status == 200 {
			t.Fatal("a certificate was issued by a clock that is behind")
		}
		return a.status == 503
	})
	if header := readText(t, d.file("header")); !containsFold(header, "retry-after:") {
		t.Errorf("503 without Retry-After:\n%s", header)
	}
	clock.Set(t, 58*time.Minute) // two minutes behind: clocks differ that much
	harness.Eventually(t, 5*time.Second, "the same code to be good again", func() bool {
		return d.enroll(t, s, "simpleenroll", code).status == 200
	})
	if life := lifetime(t, d); life > 365*24*time.Hour+5*time.Minute {
		t.Errorf("lifetime %v, want 365 days at most, and the backdate", life)
	}
}
