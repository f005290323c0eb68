//go:build testhooks

// The steps of the bridge's commands: a setup that failed at any file, or died there, is finished by the same setup, with the same code.

package fault_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/invariants"
)

// setup is a setup in a directory of its own.
func setup(t *testing.T, s *harness.Server, host, fault string) (c harness.Command, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "mosquitto")
	c = harness.Command{Path: harness.HooksBinary(t, "broker-bridge"), Args: []string{"setup", "mosquitto", "--server", s.URL(), "--trust", s.Trust(), "--host", host,
		"--code-file", s.CodeFile(t, host, "--label", "bridge"), "--out", dir, "--listen", "127.0.0.1:8883", "--control-listen", "127.0.0.1:8884"}}
	if fault != "" {
		c.Env = []string{"NATAL_FAULT=" + fault}
	}
	return c, dir
}

// files are the names and sizes below a directory; keys and certificates differ in size from one setup to the next.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if info, err := os.Stat(path); err != nil || (info.Size() == 0 && !strings.HasSuffix(path, "proven") && entry.Name() != "lock") {
			t.Errorf("%s: %v, or it is empty", path, err)
		}
		name, err := filepath.Rel(dir, path)
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestBridgeSetup(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "mosquitto")
	s := harness.StartServer(t, harness.ServerOptions{})
	undisturbed, dir := setup(t, s, "mqtt-0.example.com", "")
	undisturbed.MustRun(t)
	want := files(t, dir)
	if len(want) < 12 {
		t.Fatalf("a setup makes %v", want)
	}
	t.Run("all", func(t *testing.T) {
		for n, step := range []string{"bridge.setup_mark", "bridge.setup_file"} {
			for m, mode := range []string{"notdone", "lost", "crash"} {
				for occurrence := 1; occurrence <= 20; occurrence++ {
					host := fmt.Sprintf("mqtt-%d-%d-%d.example.com", n, m, occurrence)
					command, dir := setup(t, s, host, fmt.Sprintf("%s:%s:%d", step, mode, occurrence))
					if command.Run(t).Code == 0 { // it does not come to so many
						if occurrence == 1 {
							t.Errorf("%s is not reached", step)
						}
						break
					}
					t.Run(fmt.Sprint(step, " ", mode, " ", occurrence), func(t *testing.T) {
						command.Env = nil
						if r := command.Run(t); r.Code != 0 {
							t.Fatalf("the same again: %s", r.Output())
						}
						if got := files(t, dir); !slices.Equal(got, want) {
							t.Errorf("there are %v, want %v", got, want)
						}
					})
				}
			}
		}
	})
	invariants.Require(t, "sqlite:"+filepath.Join(s.Data, "est.db"), invariants.State{})
}

func TestBridgeApprove(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "mosquitto")
	s := harness.StartServer(t, harness.ServerOptions{})
	made, dir := setup(t, s, "mqtt.example.com", "")
	made.MustRun(t)
	approved := filepath.Join(dir, "state", "approved.json")
	digest := strings.Repeat("ab", 32)
	for _, mode := range []string{"notdone", "lost"} {
		os.Remove(approved)
		c := harness.Command{Path: made.Path, Args: []string{"approve", "--config", filepath.Join(dir, "bridge.yaml"), digest}, Env: []string{"NATAL_FAULT=bridge.approve:" + mode}}
		if r := c.Run(t); r.Code == 0 {
			t.Errorf("%s: no error", mode)
		}
		if _, err := os.Stat(approved); (err == nil) != (mode == "lost") {
			t.Errorf("%s: %v", mode, err)
		}
		c.Env = nil
		if r := c.Run(t); r.Code != 0 {
			t.Errorf("%s, again: %s", mode, r.Output())
		}
		if content, err := os.ReadFile(approved); err != nil || !strings.Contains(string(content), digest) {
			t.Errorf("%s, again: %s, %v", mode, content, err)
		}
	}
}
