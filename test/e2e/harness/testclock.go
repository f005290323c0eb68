// A testhooks binary adds the duration in a file to the machine's time.

package harness

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/atomicfile"
)

// Clock moves the time of the testhooks binaries that were started with its Env.
type Clock struct {
	path string
}

// NewClock returns a clock that shows the machine's time.
func NewClock(t testing.TB) *Clock {
	t.Helper()
	c := &Clock{path: filepath.Join(t.TempDir(), "clock")}
	c.Set(t, 0)
	return c
}

// Env is the setting to add to a Command's environment.
func (c *Clock) Env() string { return "NATAL_TEST_CLOCK=" + c.path }

// Set makes the clock show the machine's time plus d.
func (c *Clock) Set(t testing.TB, d time.Duration) {
	t.Helper()
	if err := atomicfile.Write(c.path, []byte(d.String()), os.FileMode(0o644)); err != nil {
		t.Fatal(err)
	}
}
