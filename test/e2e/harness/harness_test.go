// The helpers that would hide a failure if they were wrong: exit codes, ends of processes, the database cluster.

package harness_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestRunReportsTheExitCode(t *testing.T) {
	t.Parallel()
	r := harness.Command{Path: "/bin/sh", Args: []string{"-c", "cat; echo err >&2; exit 3"}, Stdin: "in\n"}.Run(t)
	if r.Code != 3 || r.Stdout != "in\n" || r.Stderr != "err\n" {
		t.Errorf("%+v", r)
	}
}

func TestStartStopKill(t *testing.T) {
	t.Parallel()
	p := harness.Command{Path: "/bin/sh", Args: []string{"-c", "trap 'echo stopping; exit 7' TERM; echo up; while :; do sleep 0.02; done"}}.Start(t)
	harness.Eventually(t, 10*time.Second, "the program's first line", func() bool { return p.Output() == "up\n" })
	if !p.Running() {
		t.Error("not running")
	}
	if code := p.Stop(t); code != 7 || p.Running() {
		t.Errorf("stopped: exit code %d, running %v", code, p.Running())
	}
	q := harness.Command{Path: "/bin/sleep", Args: []string{"60"}}.Start(t)
	q.Kill()
	if err := syscall.Kill(q.PID(), 0); err == nil {
		t.Error("still there after Kill")
	}
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	a, b := harness.PostgresURL(t), harness.PostgresURL(t)
	psql := harness.Program(t, "psql")
	harness.MustRun(t, psql, a, "-c", "CREATE TABLE only_in_a (n int)")
	if r := harness.Run(t, psql, b, "-c", "SELECT n FROM only_in_a"); r.Code == 0 {
		t.Error("two databases share a table")
	}
}
