//go:build unix

// One renewal at a time in a directory, across processes. The lock goes with the process, however it ends.

package client

import (
	"fmt"
	"os"
	"syscall"
)

func (s *Store) acquire() error {
	if s.lock != nil {
		return nil
	}
	f, err := os.OpenFile(s.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("%s: another process is renewing in this directory", s.dir)
	}
	s.lock = f
	return nil
}

func (s *Store) release() {
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
	}
}
