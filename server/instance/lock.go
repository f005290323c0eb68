// The lock of a data directory. The kernel releases it when the process ends, however it ends.

package instance

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLocked is returned while another process works on the directory.
var ErrLocked = errors.New("in use by another process")

// Lock is the right to work on a data directory.
type Lock struct{ file *os.File }

// Lock takes DIR/lock or says who has it.
func (d Dir) Lock() (*Lock, error) {
	f, err := os.OpenFile(d.Path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is %w (process %s)", d, ErrLocked, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if err := f.Truncate(0); err == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &Lock{file: f}, nil
}

// Release gives the right back.
func (l *Lock) Release() error { return l.file.Close() }
