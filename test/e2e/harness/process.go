// Programs are run with a deadline, their output kept, and their end never left to chance.

package harness

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Command is a program to run or start.
type Command struct {
	Path    string
	Args    []string
	Env     []string      // added to the environment of the test
	Dir     string        // default: a fresh temporary directory, so that relative paths cannot hit the repository
	Stdin   string        // what it reads
	Timeout time.Duration // of Run; default 60 s
	Attr    *syscall.SysProcAttr
}

// Result is what a finished program left.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1 when it was killed
}

// Output is both streams, for messages.
func (r Result) Output() string { return r.Stdout + r.Stderr }

// Run runs a program to its end, whatever its exit code.
func Run(t testing.TB, path string, args ...string) Result {
	t.Helper()
	return Command{Path: path, Args: args}.Run(t)
}

// MustRun is Run for a program that has to succeed.
func MustRun(t testing.TB, path string, args ...string) Result {
	t.Helper()
	return Command{Path: path, Args: args}.MustRun(t)
}

// Run runs c to its end, whatever its exit code.
func (c Command) Run(t testing.TB) Result {
	t.Helper()
	limit := c.Timeout
	if limit == 0 {
		limit = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := c.command(ctx, directory(t, c))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v\n%s", c.line(), err, r.Output())
	}
	if ctx.Err() != nil {
		t.Fatalf("run %s: not done after %v\n%s", c.line(), limit, r.Output())
	}
	return r
}

// MustRun is Run for a program that has to succeed.
func (c Command) MustRun(t testing.TB) Result {
	t.Helper()
	r := c.Run(t)
	if r.Code != 0 {
		t.Fatalf("%s: exit code %d\n%s", c.line(), r.Code, r.Output())
	}
	return r
}

func (c Command) line() string {
	return strings.Join(append([]string{c.Path}, c.Args...), " ")
}

func directory(t testing.TB, c Command) string {
	t.Helper()
	if c.Dir != "" {
		return c.Dir
	}
	return t.TempDir()
}

func (c Command) command(ctx context.Context, dir string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdin = strings.NewReader(c.Stdin)
	cmd.SysProcAttr = c.Attr
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Process is a started program.
type Process struct {
	name string
	cmd  *exec.Cmd
	out  lockedBuffer
	done chan struct{} // closed when the program has ended
}

// Start starts c; it is stopped when the test ends. On failure of the test its output is logged.
func (c Command) Start(t testing.TB) *Process {
	t.Helper()
	p, err := c.start(directory(t, c))
	if err != nil {
		t.Fatalf("start %s: %v", c.line(), err)
	}
	t.Cleanup(func() {
		p.Stop(t)
		if t.Failed() {
			t.Logf("output of %s:\n%s", p.name, p.Output())
		}
	})
	return p
}

// start starts c. The kernel kills the program when the test process dies without cleaning up (a timeout, a panic); since
// it goes by the thread that started the program, that thread is kept until the program's end.
func (c Command) start(dir string) (*Process, error) {
	p := &Process{name: c.line(), done: make(chan struct{})}
	p.cmd = c.command(context.Background(), dir)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait() // the exit code is read from ProcessState
			close(p.done)
		}
	}()
	return p, <-started
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is all that the program has written to stdout and stderr so far.
func (p *Process) Output() string { return p.out.String() }

// Running says whether the program has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal; to a program that has ended it does nothing.
func (p *Process) Signal(s os.Signal) {
	if p.Running() {
		p.cmd.Process.Signal(s) // an error means that it has just ended
	}
}

// Stop asks the program to end (SIGTERM), waits 20 s, then kills it and fails the test. It returns the exit code.
func (p *Process) Stop(t testing.TB) int {
	t.Helper()
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.Kill()
		t.Errorf("%s: still running 20 s after SIGTERM", p.name)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Kill ends the program with SIGKILL and waits for it.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Wait waits for the program's own end and returns the exit code (-1 when a signal ended it).
func (p *Process) Wait(t testing.TB, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(limit):
		t.Fatalf("%s: still running after %v\n%s", p.name, limit, p.Output())
	}
	return p.cmd.ProcessState.ExitCode()
}

// lockedBuffer is written by the program and read by the test at the same time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
