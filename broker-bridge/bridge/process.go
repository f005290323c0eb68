// A signal for the broker's process, and for no other: the pid file may be stale, and SIGHUP kills a broker that has not installed its
// handler yet.

package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	settleTime     = 10 * time.Second // a process that does not handle SIGHUP by then is not signalled
	settleLook     = 20 * time.Millisecond
	ticksPerSecond = 100 // USER_HZ, fixed in Linux's interface
)

// process is a running program, pinned by a file descriptor: its number cannot come to mean another one.
type process struct {
	pid   int
	fd    int
	start time.Duration // after boot
}

// findProcess returns the process that pidFile names if its program is called name. ErrBrokerDown if there is none.
func findProcess(pidFile, name string) (*process, error) {
	data, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: no %s", ErrBrokerDown, pidFile)
	}
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err != nil || pid < 2 {
		return nil, fmt.Errorf("%w: %s holds no process number", ErrBrokerDown, pidFile)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("%w: process %d of %s is gone", ErrBrokerDown, pid, pidFile)
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: fd}
	if err := p.identify(name); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// identify reads the program and start time from /proc. It is done after the descriptor was opened, and the descriptor is asked once
// more at the end, so what was read belongs to the process that will be signalled.
func (p *process) identify(name string) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return fmt.Errorf("%w: process %d: %w", ErrBrokerDown, p.pid, err)
	}
	// pid (comm) state ppid ...; comm may hold anything, so count from its last parenthesis. starttime is field 22.
	head, rest, ok := bytes.Cut(stat, []byte("("))
	end := bytes.LastIndexByte(rest, ')')
	if !ok || len(head) == 0 || end < 0 {
		return fmt.Errorf("process %d: unreadable stat", p.pid)
	}
	comm := string(rest[:end])
	fields := strings.Fields(string(rest[end+1:]))
	if len(fields) < 20 {
		return fmt.Errorf("process %d: unreadable stat", p.pid)
	}
	program := comm
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)); err == nil {
		program = filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	}
	if program != name {
		return fmt.Errorf("%w: process %d of the pid file is %q, not %q", ErrBrokerDown, p.pid, program, name)
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	p.start = time.Duration(ticks) * time.Second / ticksPerSecond
	if err := unix.PidfdSendSignal(p.fd, 0, nil, 0); errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: process %d is gone", ErrBrokerDown, p.pid)
	}
	return nil
}

// hangUp sends SIGHUP, once the process has installed its handler: a busy machine may need seconds to get there.
func (p *process) hangUp(ctx context.Context) error {
	limit := time.NewTimer(settleTime)
	defer limit.Stop()
	again := time.NewTicker(settleLook)
	defer again.Stop()
	for {
		handled, err := p.handlesHangUp()
		if err != nil {
			return err
		}
		if handled {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return fmt.Errorf("process %d does not handle SIGHUP, which would end it", p.pid)
		case <-again.C:
		}
	}
	err := unix.PidfdSendSignal(p.fd, unix.SIGHUP, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: process %d is gone", ErrBrokerDown, p.pid)
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// handlesHangUp tells from /proc whether the process catches SIGHUP.
func (p *process) handlesHangUp() (bool, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return false, fmt.Errorf("%w: process %d: %w", ErrBrokerDown, p.pid, err)
	}
	_, rest, _ := strings.Cut(string(status), "\nSigCgt:")
	line, _, _ := strings.Cut(rest, "\n")
	caught, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return false, fmt.Errorf("process %d: unreadable status: %w", p.pid, err)
	}
	return caught&(1<<(unix.SIGHUP-1)) != 0, nil
}

func (p *process) close() { unix.Close(p.fd) }
