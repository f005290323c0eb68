// The administration socket. A Unix socket's address is short (108 bytes); a data directory's path need not be.

package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

const maxSocketPath = 100

// ListenSocket opens DIR/admin.sock, mode 0600, in place of what an earlier process left. The caller holds the directory's lock.
func (d Dir) ListenSocket() (net.Listener, error) {
	path, done, err := d.socketPath()
	if err != nil {
		return nil, err
	}
	defer done()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Socket(), err)
	}
	l.SetUnlinkOnClose(false) // the short path is gone by then
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return socketListener{l, d.Socket()}, nil
}

type socketListener struct {
	net.Listener
	path string
}

func (l socketListener) Close() error {
	os.Remove(l.path)
	return l.Listener.Close()
}

// DialSocket connects to a running server.
func (d Dir) DialSocket(ctx context.Context) (net.Conn, error) {
	path, done, err := d.socketPath()
	if err != nil {
		return nil, err
	}
	defer done()
	return new(net.Dialer).DialContext(ctx, "unix", path)
}

// socketPath is a path of the socket that is short enough until done is called.
func (d Dir) socketPath() (path string, done func() error, err error) {
	if len(d.Socket()) <= maxSocketPath {
		return d.Socket(), func() error { return nil }, nil
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), filepath.Base(d.Socket())), dir.Close, nil
}
