// The files of `broker-bridge setup mosquitto`, made under the worst umask: each with the owner and mode that its reader needs, and no secret open to
// others. A setup that is run again keeps everything.

package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestSetupFilesHaveTheRightOwners(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "mosquitto", "bash")
	if os.Getuid() != 0 {
		t.Skip("only root can give files to the user mosquitto")
	}
	s := harness.StartServer(t, harness.ServerOptions{})
	dir := openDir(t)
	args := []string{"-c", `umask 000; exec "$@"`, "-", harness.Binary(t, "broker-bridge"), "setup", "mosquitto", "--server", s.URL(), "--trust", s.Trust(), "--host", "localhost",
		"--code-file", s.CodeFile(t, "localhost", "--label", "bridge"), "--out", dir, "--listen", harness.FreeAddress(t), "--control-listen", harness.FreeAddress(t)}
	out := harness.MustRun(t, harness.Program(t, "bash"), args...).Stdout
	for _, want := range []string{"Left to do:", "mosquitto -c " + filepath.Join(dir, "mosquitto.conf"), "broker-bridge run --config " + filepath.Join(dir, "bridge.yaml")} {
		if !strings.Contains(out, want) {
			t.Errorf("setup does not print %q:\n%s", want, out)
		}
	}
	want := map[string]string{
		".": "drwxr-x--- root mosquitto", "conf.d": "drwxr-x--- root mosquitto", "broker": "drwxr-x--- mosquitto mosquitto",
		"identity": "drwx------ root root", "state": "drwx------ root root",
		"bundle.pem": "-rw-r----- root mosquitto", "server.pem": "-rw-r----- root mosquitto", "devices.acl": "-rw-r----- root mosquitto",
		"services.acl": "-rw-r----- root mosquitto", "control-trust.pem": "-rw-r----- root mosquitto", "mosquitto.conf": "-rw-r--r-- root root",
		"conf.d/natal.conf": "-rw-r--r-- root root", "trust.pem": "-rw-r--r-- root root", "bridge.yaml": "-rw-r----- root root", "acl-head": "-rw-r----- root root",
		"broker/dynamic-security.json": "-rw------- mosquitto mosquitto", "state/control-password": "-rw------- root root",
	}
	before := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		got := fmt.Sprint(info.Mode(), " ", owner(t, info))
		if w, ok := want[name]; ok && got != w {
			t.Errorf("%s is %s, want %s", name, got, w)
		}
		delete(want, name)
		if info.Mode().IsRegular() {
			before[name] = readText(t, path)
			if strings.Contains(before[name], "PRIVATE KEY") && name != "server.pem" && got != "-rw------- root root" {
				t.Errorf("%s holds a key and is %s", name, got)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range want {
		t.Errorf("setup has not made %s", name)
	}

	// Again, with the code used up: nothing changes, nothing fails.
	harness.MustRun(t, harness.Program(t, "bash"), args...)
	for name, content := range before {
		if readText(t, filepath.Join(dir, name)) != content {
			t.Errorf("a second setup has changed %s", name)
		}
	}
	if r := harness.Run(t, harness.Binary(t, "broker-bridge"), "check", "--config", filepath.Join(dir, "bridge.yaml")); r.Code != 0 {
		t.Errorf("check: exit code %d\n%s", r.Code, r.Output())
	}
}

// owner is "USER GROUP".
func owner(t *testing.T, info os.FileInfo) string {
	t.Helper()
	stat := info.Sys().(*syscall.Stat_t)
	u, err := user.LookupId(strconv.Itoa(int(stat.Uid)))
	if err != nil {
		t.Fatal(err)
	}
	g, err := user.LookupGroupId(strconv.Itoa(int(stat.Gid)))
	if err != nil {
		t.Fatal(err)
	}
	return u.Username + " " + g.Name
}
