package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A broker on a busy machine is not signalled before it survives the signal, however old it is.
func TestHangUpWaitsForTheHandler(t *testing.T) {
	t.Parallel()
	shell := exec.Command("bash", "-c", `read; trap 'echo hup' HUP; echo ready; while :; do read -t 0.05; done`)
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shell.Process.Kill(); shell.Wait() })
	pidFile := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(pidFile, fmt.Append(nil, shell.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := findProcess(pidFile, "bash")
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()

	early, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := p.hangUp(early); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a process without a handler: %v", err)
	}
	fmt.Fprintln(in)
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the process ended before its handler was there: %q", lines.Text())
	}
	if err := p.hangUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != "hup" {
		t.Fatalf("the signal did not arrive: %q", lines.Text())
	}
}
