package front

import (
	"fmt"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/clock"
)

func TestThrottle(t *testing.T) {
	t.Parallel()
	manual := clock.NewManual(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	th := newThrottle(manual.Clock())
	for i := range failureBurst {
		if th.failed("192.0.2.1:1000") {
			t.Fatalf("slowed down after %d failures", i+1)
		}
	}
	if !th.failed("192.0.2.1:2000") {
		t.Fatal("another port of the address has a budget of its own")
	}
	if th.failed("192.0.2.2:1000") {
		t.Fatal("another address is slowed down")
	}
	if !th.failed("[::ffff:192.0.2.1]:3000") {
		t.Fatal("the address in IPv6 dress has a budget of its own")
	}
	manual.Advance(failureInterval)
	if th.failed("192.0.2.1:1000") {
		t.Fatal("the budget does not come back")
	}
	for i := range failureBurst {
		th.failed(fmt.Sprintf("[2001:db8::%x]:1", i))
	}
	if !th.failed("[2001:db8::ffff:ffff]:1") {
		t.Fatal("addresses of one /64 have budgets of their own")
	}
}

func TestThrottleIsBounded(t *testing.T) {
	t.Parallel()
	th := newThrottle(clock.NewManual(time.Now()).Clock())
	for i := range 3 * maxAddresses {
		th.failed(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&0xff, i&0xff))
	}
	if len(th.byAddr) != maxAddresses || th.recent.Len() != maxAddresses {
		t.Fatalf("%d addresses in the map, %d in the list", len(th.byAddr), th.recent.Len())
	}
	if th.failed("not an address") {
		t.Fatal("an unknown address is slowed down at once")
	}
}
