// The first thing that a new user does: make run in a clone, then paste what it prints.

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestMakeRun(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "make", "bash", "curl", "openssl", "promtool")
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	est, public, admin, metrics := harness.FreeAddress(t), harness.FreeAddress(t), harness.FreeAddress(t), harness.FreeAddress(t)
	start := func(limit time.Duration) *harness.Process {
		began := time.Now()
		p := harness.Command{Path: harness.Program(t, "make"), Dir: harness.Root(), Args: []string{"--no-print-directory", "run", "BIN=" + dir, "DATA=" + data,
			"ARGS=--est-listen " + est + " --public-listen " + public + " --admin-listen " + admin + " --metrics-listen " + metrics}}.Start(t)
		harness.Eventually(t, limit, "the server to be ready", func() bool {
			if !p.Running() {
				t.Fatalf("make run ended by itself:\n%s", p.Output())
			}
			return harness.Listening(metrics) && (&harness.Server{Metrics: metrics}).Ready()
		})
		t.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
		return p
	}
	stop := func(p *harness.Process) {
		p.Signal(syscall.SIGINT) // as Ctrl-C does; make passes its own end on
		if code := p.Wait(t, 20*time.Second); code != 0 && !strings.Contains(p.Output(), "Interrupt") {
			t.Errorf("after Ctrl-C: exit code %d\n%s", code, p.Output())
		}
	}

	p := start(60 * time.Second)
	out := p.Output()
	trust := filepath.Join(data, "trust.pem")
	_, hex, _ := strings.Cut(strings.TrimSpace(openssl(t, dir, "x509", "-in", trust, "-noout", "-fingerprint", "-sha256")), "=")
	for _, want := range []string{harness.Port(t, est), "https://", "trust.pem", strings.ToLower(strings.ReplaceAll(hex, ":", "")), "estclient-example", "curl", "birth-ca add", "prometheus"} {
		if !strings.Contains(strings.ToLower(out), strings.ToLower(want)) {
			t.Errorf("make run does not print %q:\n%s", want, out)
		}
	}
	names := openssl(t, dir, "x509", "-in", serverCertificate(t, dir, est, trust), "-noout", "-ext", "subjectAltName")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"DNS:localhost", "IP Address:127.0.0.1", "DNS:" + host} {
		if !strings.Contains(names, want) {
			t.Errorf("the server certificate lacks %s:\n%s", want, names)
		}
	}
	pasteLines(t, dir, out)
	stop(p)
	p = start(20 * time.Second)
	stop(p)
}

// serverCertificate fetches the certificate that the EST address presents.
func serverCertificate(t *testing.T, dir, est, trust string) string {
	t.Helper()
	r := harness.Command{Path: harness.Program(t, "openssl"), Dir: dir, Args: []string{"s_client", "-connect", est, "-CAfile", trust, "-verify_return_error"}}.MustRun(t)
	file := filepath.Join(dir, "server.pem")
	if err := os.WriteFile(file, []byte(r.Stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// pasteLines runs the printed lines as a user would, except for the birth CA, for which a file is needed.
func pasteLines(t *testing.T, dir, out string) {
	t.Helper()
	ran := 0
	for line := range strings.Lines(strings.ReplaceAll(out, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if !regexp.MustCompile(`^(\S*estclient-example (enroll|run) |curl )`).MatchString(line) {
			continue
		}
		ran++
		line = strings.Replace(line, "estclient-example run ", "estclient-example enroll ", 1)
		r := harness.Command{Path: harness.Program(t, "bash"), Args: []string{"-euo", "pipefail", "-c", line}, Dir: harness.Root()}.Run(t)
		if r.Code != 0 {
			t.Errorf("pasted: %s\nexit code %d\n%s", line, r.Code, r.Output())
		}
	}
	if ran < 2 {
		t.Errorf("only %d lines to paste found in:\n%s", ran, out)
	}
}
