// The command line: exit codes, one line of error, JSON, the flag of a busy port.

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func command(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = realMain(args, streams{strings.NewReader(""), &o, &e})
	return code, o.String(), e.String()
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"setup", "mosquitto", "--help"}, {"run", "--help"}, {"check", "--help"}, {"status", "--help"}, {"approve", "--help"}} {
		if code, out, _ := command(args...); code != 0 || !strings.Contains(out, "Usage:") {
			t.Errorf("%v: exit %d, %s", args, code, out)
		}
	}
	for _, args := range [][]string{{}, {"fly"}, {"run"}, {"setup", "mosquitto"}, {"run", "--config", "x", "--colour"}} {
		if code, _, errOut := command(args...); code != exitUsage || strings.Count(errOut, "\n") != 1 {
			t.Errorf("%v: exit %d, %q", args, code, errOut)
		}
	}
	for _, args := range [][]string{{"run", "--config", "/nowhere"}, {"check", "--config", "/nowhere"}, {"status", "--config", "/nowhere"}} {
		if code, _, errOut := command(args...); code != exitFailure || !strings.Contains(errOut, "/nowhere") || strings.Count(errOut, "\n") != 1 {
			t.Errorf("%v: exit %d, %q", args, code, errOut)
		}
	}
}

// writeConfig makes a configuration whose bridge has never run.
func writeConfig(t *testing.T, metrics string) string {
	t.Helper()
	dir := t.TempDir()
	text := `server: https://est.example.com:8443
trust: trust.pem
identity: identity
state: state
metrics_listen: ` + metrics + `
broker: {hosts: [mqtt.example.com], bundle: b, acl_file: a, pid_file: p, control_password_file: c, listener: "127.0.0.1:8883", control: "127.0.0.1:8884", config: mosquitto.conf}
`
	for name, data := range map[string]string{"bridge.yaml": text, "mosquitto.conf": "listener 1883\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "bridge.yaml")
}

func TestBusyMetricsPortNamesItsFlag(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	code, _, errOut := command("run", "--config", writeConfig(t, "127.0.0.1:1"), "--metrics-listen", l.Addr().String())
	if code != exitFailure || !strings.Contains(errOut, l.Addr().String()) || !strings.Contains(errOut, "--metrics-listen") {
		t.Errorf("exit %d, %q", code, errOut)
	}
}

func TestStatusOfABridgeThatNeverRan(t *testing.T) {
	config := writeConfig(t, "127.0.0.1:1")
	code, out, errOut := command("status", "--config", config, "--json")
	var s struct {
		Running  bool
		Verified *int64 `json:"verified_seq"`
	}
	if code != 0 || json.Unmarshal([]byte(out), &s) != nil || s.Running || s.Verified == nil {
		t.Errorf("exit %d, %s%s", code, out, errOut)
	}
	if code, out, _ = command("status", "--config", config); code != 0 || !strings.Contains(out, "never") {
		t.Errorf("exit %d, %s", code, out)
	}
}

func TestCheckExits1AndListsFindings(t *testing.T) {
	config := writeConfig(t, "127.0.0.1:1")
	code, out, errOut := command("check", "--config", config)
	if code != exitFailure || !strings.Contains(out, "per_listener_settings") || errOut != "" {
		t.Errorf("exit %d, %s%s", code, out, errOut)
	}
	code, out, _ = command("check", "--config", config, "--json")
	var list struct {
		Items []struct {
			File, Rule string
			Line       int
		}
	}
	if code != exitFailure || json.Unmarshal([]byte(out), &list) != nil || len(list.Items) == 0 {
		t.Errorf("exit %d, %s", code, out)
	}
}
