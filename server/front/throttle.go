// Wrong codes, counted by address. A code has 128 random bits, so the throttle is not what keeps guessers out; it keeps
// them from filling the log. It never stands between a device and its valid code: the credential is checked first,
// and only the answer to a wrong one changes.

package front

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/natal-pki/natal/internal/clock"
)

const (
	failureBurst     = 100                    // wrong codes that an address may send at once
	failureInterval  = 200 * time.Millisecond // ... and then one in
	maxAddresses     = 4096                   // the address that was wrong longest ago is forgotten first
	minThrottleRetry = 10 * time.Second       // in Retry-After
)

type throttle struct {
	clock *clock.Clock

	mu     sync.Mutex
	byAddr map[netip.Prefix]*list.Element
	recent *list.List // of *failures, most recent first
}

type failures struct {
	addr   netip.Prefix
	budget *rate.Limiter
}

func newThrottle(c *clock.Clock) *throttle {
	return &throttle{clock: c, byAddr: map[netip.Prefix]*list.Element{}, recent: list.New()}
}

// failed counts a wrong credential from remote ("host:port") and reports whether the address has used its budget up.
func (t *throttle) failed(remote string) bool {
	addr := addressBlock(remote)
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.byAddr[addr]
	if ok {
		t.recent.MoveToFront(e)
	} else {
		if t.recent.Len() >= maxAddresses {
			oldest := t.recent.Back()
			delete(t.byAddr, oldest.Value.(*failures).addr)
			t.recent.Remove(oldest)
		}
		e = t.recent.PushFront(&failures{addr: addr, budget: rate.NewLimiter(rate.Every(failureInterval), failureBurst)})
		t.byAddr[addr] = e
	}
	return !e.Value.(*failures).budget.AllowN(t.clock.Now(), 1)
}

// addressBlock is what counts as one address: a whole /64 of IPv6, since whoever has one address of it has them all.
func addressBlock(remote string) netip.Prefix {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	addr = addr.Unmap().WithZone("")
	size := 32
	if addr.Is6() {
		size = 64
	}
	block, err := addr.Prefix(size)
	if err != nil {
		return netip.Prefix{}
	}
	return block
}
