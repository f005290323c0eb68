// Package clock is the one source of time of the project.
//
// Whoever needs the time takes a *Clock; nobody calls time.Now to decide about
// validity, schedules or expiry. The clock is replaceable in two ways: a test in
// the same process makes a Manual clock, and a binary built with the tag
// "testhooks" reads its offset from the file that NATAL_TEST_CLOCK names. The
// release build has no such switch: hooks_off.go stands in its place.
package clock

import (
	"context"
	"sync"
	"time"
)

// steppedBack is more than a clock goes back by when it is merely adjusted.
const steppedBack = time.Minute

// Clock tells the time. The zero value is not usable; call System or Manual.Clock.
// It is safe for concurrent use.
type Clock struct {
	now  func() time.Time
	poll time.Duration // how often SleepUntil looks at the clock again
}

// System is the machine's clock (in a testhooks build: shifted by the test clock file).
func System() *Clock {
	return &Clock{now: systemNow, poll: systemPoll}
}

// Now is the present time in UTC, without a monotonic reading, so that it compares
// as a wall clock does.
func (c *Clock) Now() time.Time {
	return c.now().UTC().Round(0)
}

// SleepUntil returns nil once the clock has reached t, or ctx's error. It looks at the
// clock at least once a minute, so a suspended machine or a stepped clock is noticed. When the clock is set back
// meanwhile it returns early: t was reckoned from a time that was wrong. Callers look what is due, and reckon anew.
func (c *Clock) SleepUntil(ctx context.Context, t time.Time) error {
	latest := c.Now()
	for {
		now := c.Now()
		if !t.After(now) || now.Before(latest.Add(-steppedBack)) {
			return ctx.Err()
		}
		if now.After(latest) {
			latest = now
		}
		left := t.Sub(now)
		timer := time.NewTimer(min(left, c.poll))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// Manual is a clock that stands still until it is told to move. For tests.
type Manual struct {
	mu  sync.Mutex
	now time.Time
}

// NewManual returns a Manual clock that shows t.
func NewManual(t time.Time) *Manual {
	return &Manual{now: t}
}

// Clock returns the Clock that follows m.
func (m *Manual) Clock() *Clock {
	return &Clock{now: m.get, poll: 2 * time.Millisecond}
}

// Advance moves the clock by d; a negative d moves it back.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
}

func (m *Manual) get() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}
