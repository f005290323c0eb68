// check: what a setup wrote has no finding; each contradiction is named with its line.

package bridge

import (
	"os"
	"strings"
	"testing"
)

func TestCheckNamesEachViolationByLine(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if findings, err := CheckMosquitto(r.conf); err != nil || len(findings) != 0 {
		t.Fatalf("unspoiled: %v, %v", findings, err)
	}
	original := string(r.read("mosquitto.conf"))
	device, control, _ := strings.Cut(original, "# The bridge:")
	control = "# The bridge:" + control
	cases := []struct {
		rule, old, new string // in the device listener's part; a leading ">" is the control listener's
	}{
		{"per_listener_settings", "per_listener_settings true", "per_listener_settings false"},
		{"per_listener_settings", "per_listener_settings true\n", ""},
		{"pid_file", "pid_file ", "pid_file /elsewhere"},
		{"require_certificate", "require_certificate true", "require_certificate false"},
		{"require_certificate", "require_certificate true\n", ""},
		{"use_identity_as_username", "use_identity_as_username true", "use_identity_as_username false"},
		{"crlfile", "crlfile " + r.path("bundle.pem"), "crlfile " + r.path("other.pem")},
		{"crlfile", "crlfile " + r.path("bundle.pem") + "\n", ""},
		{"cafile", "cafile " + r.path("bundle.pem"), "cafile /etc/ssl/certs/ca-certificates.crt"},
		{"acl_file", "acl_file " + r.path("devices.acl"), "acl_file " + r.path("services.acl")},
		{"certfile", "certfile " + r.path("server.pem"), "certfile /elsewhere"},
		{"capath", "acl_file ", "capath /etc/ssl/certs\nacl_file "},
		{"plugin", "acl_file ", "plugin /x.so\nacl_file "},
		{"use_subject_as_username", "acl_file ", "use_subject_as_username true\nacl_file "},
		{"allow_anonymous", "acl_file ", "allow_anonymous true\nacl_file "},
		{"websockets", "acl_file ", "protocol websockets\nacl_file "},
		{"max_connections", "per_listener_settings true", "per_listener_settings true\nmax_connections 100"},
		{"device_listener", "listener ", "listener 1"},
		{">control_listener", "listener ", "listener 1"},
		{">control_address", " 127.0.0.1\ncafile", " 0.0.0.0\ncafile"},
		{">require_certificate", "require_certificate true", "require_certificate false"},
		{">use_identity_as_username", "use_identity_as_username false", "use_identity_as_username true"},
		{">allow_anonymous", "allow_anonymous false", "allow_anonymous true"},
		{">cafile", "cafile " + r.path("control-trust.pem"), "cafile " + r.path("bundle.pem")},
		{">plugin", "plugin /", "# plugin /"},
	}
	for _, c := range cases {
		rule, isControl := strings.CutPrefix(c.rule, ">")
		text := strings.Replace(device, c.old, c.new, 1) + control
		if isControl {
			text = device + strings.Replace(control, c.old, c.new, 1)
		}
		if text == original {
			t.Errorf("%s: nothing was spoiled by %q", rule, c.old)
			continue
		}
		if err := os.WriteFile(r.path("mosquitto.conf"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		findings, err := CheckMosquitto(r.conf)
		if err != nil {
			t.Fatal(err)
		}
		if len(findings) == 0 || findings[0].Rule != rule {
			t.Errorf("%s: found %v", rule, findings)
			continue
		}
		missing := strings.HasSuffix(rule, "_listener") || c.new == "" && rule == "per_listener_settings"
		if f := findings[0]; !missing && (f.Line == 0 || f.File != r.path("mosquitto.conf")) {
			t.Errorf("%s: no line in %v", rule, f)
		}
	}
}

func TestCheckLooksAtTheFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	good := r.read("bundle.pem")
	for name, data := range map[string][]byte{"torn": good[:len(good)-60], "empty": {}, "without CRL": good[:900]} {
		if err := os.WriteFile(r.path("bundle.pem"), data, 0o640); err != nil {
			t.Fatal(err)
		}
		if findings, err := CheckMosquitto(r.conf); err != nil || len(findings) != 1 || findings[0].Rule != "bundle" {
			t.Errorf("%s: %v, %v", name, findings, err)
		}
	}
	if err := os.WriteFile(r.path("bundle.pem"), good, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(r.path("server.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if findings, err := CheckMosquitto(r.conf); err != nil || len(findings) != 1 || findings[0].Rule != "mode" {
		t.Errorf("a key that everybody reads: %v, %v", findings, err)
	}
}
