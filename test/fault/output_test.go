//go:build testhooks

// The step that belongs to the command line: a file that cannot be written is an error, and the command can be repeated.

package fault_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestOutputFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	server := harness.HooksBinary(t, "est-server")
	pass := testpki.WriteFile(t, filepath.Join(dir, "pass"), []byte("only for a test\n"))
	harness.MustRun(t, server, "init", "--data", data, "--passphrase-file", pass, "--host", "127.0.0.1")
	for _, mode := range []string{"notdone", "lost", "crash", "crashafter"} {
		out := filepath.Join(dir, mode)
		command := harness.Command{Path: server, Args: []string{"code", "create", "dev-" + mode, "--data", data, "--out", out}, Env: []string{"NATAL_FAULT=server.output:" + mode}}
		if r := command.Run(t); r.Code == 0 {
			t.Errorf("%s: no error\n%s", mode, r.Output())
		}
		content, err := os.ReadFile(out)
		if written := mode == "lost" || mode == "crashafter"; written != (err == nil) {
			t.Errorf("%s: %v", mode, err)
		}
		command.Env = nil
		command.MustRun(t)
		again, err := os.ReadFile(out)
		if info, statErr := os.Stat(out); err != nil || statErr != nil || info.Mode().Perm() != 0o600 || len(strings.TrimSpace(string(again))) < 26 || string(again) == string(content) {
			t.Errorf("%s: repeated: %v, a fresh code: %v", mode, err, string(again) != string(content))
		}
	}
}

func TestStreamedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	server := harness.HooksBinary(t, "est-server")
	pass := testpki.WriteFile(t, filepath.Join(dir, "pass"), []byte("only for a test\n"))
	harness.MustRun(t, server, "init", "--data", data, "--passphrase-file", pass, "--host", "127.0.0.1")
	for _, mode := range []string{"notdone", "lost", "crash", "crashafter"} {
		out := filepath.Join(dir, mode)
		command := harness.Command{Path: server, Args: []string{"audit", "export", "--data", data, "--out", out}, Env: []string{"NATAL_FAULT=server.stream:" + mode}}
		if r := command.Run(t); r.Code == 0 {
			t.Errorf("%s: no error\n%s", mode, r.Output())
		}
		_, err := os.ReadFile(out)
		if written := mode == "lost" || mode == "crashafter"; written != (err == nil) {
			t.Errorf("%s: %v", mode, err)
		}
		command.Env = nil
		command.MustRun(t)
		again, err := os.ReadFile(out)
		if info, statErr := os.Stat(out); err != nil || statErr != nil || info.Mode().Perm() != 0o600 || !strings.Contains(string(again), `{"head":`) {
			t.Errorf("%s: repeated: %v", mode, err)
		}
	}
}

// Files with secrets that exist once: written whole or not at all, and never over another file.
func TestNewFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	server := harness.HooksBinary(t, "est-server")
	pass := testpki.WriteFile(t, filepath.Join(dir, "pass"), []byte("only for a test\n"))
	harness.MustRun(t, server, "init", "--data", data, "--passphrase-file", pass, "--host", "127.0.0.1")
	for _, mode := range []string{"notdone", "lost", "crash", "crashafter"} {
		out, id := filepath.Join(dir, mode), "dev-"+mode
		command := harness.Command{Path: server, Args: []string{"device", "bundle", id, "--data", data, "--passphrase-file", pass, "--out", out}, Env: []string{"NATAL_FAULT=server.output_new:" + mode}}
		r := command.Run(t)
		if r.Code == 0 || !strings.HasPrefix(mode, "crash") && !strings.Contains(r.Output(), "device reissue "+id) {
			t.Errorf("%s: exit code %d\n%s", mode, r.Code, r.Output())
		}
		if _, err := os.Lstat(out); err == nil {
			if err := os.Remove(out); err != nil {
				t.Fatal(err)
			}
		}
		command.Env = nil
		if r := command.Run(t); r.Code == 0 || !strings.Contains(r.Output(), "bundle_delivered") {
			t.Errorf("%s: a second bundle: exit code %d\n%s", mode, r.Code, r.Output())
		}
		harness.MustRun(t, server, "device", "reissue", id, "--data", data, "--passphrase-file", pass, "--out", filepath.Join(dir, "code"))
		command.MustRun(t)
		if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: after the reissue: %v", mode, err)
		}
	}
}

// A backup that failed leaves nothing; one whose end was not told is there, whole, and is not overwritten.
func TestBackupFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	server := harness.HooksBinary(t, "est-server")
	pass := testpki.WriteFile(t, filepath.Join(dir, "pass"), []byte("only for a test\n"))
	harness.MustRun(t, server, "init", "--data", data, "--passphrase-file", pass, "--host", "127.0.0.1")
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := testpki.WriteFile(t, filepath.Join(dir, "identity"), []byte(identity.String()+"\n"))
	for _, step := range []string{"backup.record", "server.backup"} {
		for _, mode := range []string{"notdone", "lost", "crash", "crashafter"} {
			out := filepath.Join(dir, step+mode)
			command := harness.Command{Path: server, Args: []string{"backup", out, "--data", data, "--recipient", identity.Recipient().String()}, Env: []string{"NATAL_FAULT=" + step + ":" + mode}}
			if r := command.Run(t); r.Code == 0 {
				t.Errorf("%s %s: no error\n%s", step, mode, r.Output())
			}
			_, err := os.Stat(out)
			written := step == "server.backup" && (mode == "lost" || mode == "crashafter")
			if written != (err == nil) {
				t.Errorf("%s %s: %v", step, mode, err)
			}
			command.Env = nil
			if r := command.Run(t); (r.Code == 0) == written {
				t.Errorf("%s %s, once more: %s", step, mode, r.Output())
			}
			harness.MustRun(t, server, "backup", out, "--verify", "--identity", key)
		}
	}
	if left, err := filepath.Glob(filepath.Join(data, "backup.tmp-*")); err != nil || left != nil {
		t.Errorf("left over: %v, %v", left, err)
	}
}
