//go:build testhooks

// The test clock: NATAL_TEST_CLOCK names a file that holds a Go duration ("8760h"),
// which is added to the machine's time. A test rewrites the file to move time; the file is
// read at most every 20 ms. An unreadable or empty file means no shift.

package clock

import (
	"os"
	"strings"
	"sync"
	"time"
)

const systemPoll = 50 * time.Millisecond

var testClock struct {
	mu     sync.Mutex
	read   time.Time
	offset time.Duration
}

func systemNow() time.Time {
	now := time.Now()
	path := os.Getenv("NATAL_TEST_CLOCK")
	if path == "" {
		return now
	}
	testClock.mu.Lock()
	defer testClock.mu.Unlock()
	if now.Sub(testClock.read) > 20*time.Millisecond {
		testClock.read = now
		if b, err := os.ReadFile(path); err == nil {
			if d, err := time.ParseDuration(strings.TrimSpace(string(b))); err == nil {
				testClock.offset = d
			}
		}
	}
	return now.Add(testClock.offset)
}
