package clock_test

import (
	"context"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/clock"
)

var noon = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// sleep starts a SleepUntil and returns where its end is told.
func sleep(ctx context.Context, m *clock.Manual, until time.Time) <-chan error {
	done := make(chan error, 1)
	go func() { done <- m.Clock().SleepUntil(ctx, until) }()
	return done
}

func TestSleepUntil(t *testing.T) {
	t.Parallel()
	for name, step := range map[string]time.Duration{
		"the time comes": time.Hour, "the clock jumps ahead": 10 * 365 * 24 * time.Hour, "the clock is set back": -time.Hour, "far back": -10 * 365 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := clock.NewManual(noon)
			done := sleep(t.Context(), m, noon.Add(time.Hour))
			select {
			case err := <-done:
				t.Fatalf("ended at once: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			m.Advance(step)
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("sleeps on")
			}
		})
	}
}

// A clock that is adjusted by seconds, and a time that is past already, wake nobody too early and hold nobody up.
func TestSleepUntilIsSteady(t *testing.T) {
	t.Parallel()
	m := clock.NewManual(noon)
	ctx, cancel := context.WithCancel(t.Context())
	done := sleep(ctx, m, noon.Add(time.Hour))
	for range 5 {
		m.Advance(-5 * time.Second)
		time.Sleep(5 * time.Millisecond)
	}
	select {
	case <-done:
		t.Error("woken by an adjustment")
	default:
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("no error after the end of its context")
	}
	if err := m.Clock().SleepUntil(t.Context(), noon.Add(-time.Hour)); err != nil {
		t.Error(err)
	}
}
