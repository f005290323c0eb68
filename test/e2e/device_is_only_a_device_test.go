// What a device calls itself gives it no right: neither the broker's control nor a service's topics, nor the place of the bridge. And what the
// management CA issues does not get in where devices do.

package e2e

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

const controlTopic = "$CONTROL/dynamic-security/v1"

// TestADeviceControlsNothing gives devices the widest rule there is.
func TestADeviceControlsNothing(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{topics: []string{"readwrite #"}})
	witness := b.witness(t, "-t", "#", "-t", "$CONTROL/#")
	dir := enrollDevice(t, s, "curious")
	b.publishUntilSeen(t, witness, dir, "any/thing", "allowed")
	plugin := readText(t, b.path("broker/dynamic-security.json"))

	// Over its own listener: the commands are not heard, and there is no answer to read.
	answers := b.subscribeAs(t, dir, "-t", controlTopic+"/response", "-t", "$CONTROL/#", "-t", "marker")
	for _, command := range []string{`{"commands":[{"command":"createClient","username":"intruder","password":"x"}]}`, `{"commands":[{"command":"deleteClient","username":"natal-bridge"}]}`,
		`{"commands":[{"command":"setDefaultACLAccess","acls":[{"acltype":"publishClientSend","allow":true}]}]}`, `{"commands":[{"command":"listClients"}]}`} {
		b.mustPublish(t, dir, controlTopic, command)
	}
	b.publishUntilSeen(t, witness, dir, "marker", "over")
	waitOutput(t, answers, "marker over")
	if strings.Contains(answers.Output(), "responses") || strings.Contains(witness.Output(), "commands") {
		t.Errorf("the plugin heard a device:\n%s\n%s", answers.Output(), witness.Output())
	}

	// Over the control listener: its chain ends at the same root, and so it is the password that keeps it out.
	password := strings.TrimSpace(readText(t, b.path("state/control-password")))
	identity := b.path("identity")
	for _, c := range []struct {
		name, dir string
		login     []string
		ok        bool
	}{
		{"the bridge", identity, []string{"natal-bridge", password}, true},
		{"the bridge without its password", identity, nil, false},
		{"the bridge with a wrong password", identity, []string{"natal-bridge", password + "x"}, false},
		{"a device", dir, nil, false},
		{"a device under the bridge's name", dir, []string{"natal-bridge", ""}, false},
		{"a device with a guess", dir, []string{"natal-bridge", "natal-bridge"}, false},
		{"a device as itself", dir, []string{"curious", password}, false},
	} {
		_, err := dialMQTT(t, b.control, b.tlsConfig(t, c.dir, tls.VersionTLS12), c.login)
		if (err == nil) != c.ok {
			t.Errorf("%s at the control listener: %v, want accepted %v", c.name, err, c.ok)
		}
	}
	if after := readText(t, b.path("broker/dynamic-security.json")); after != plugin {
		t.Errorf("dynamic-security.json has changed:\n%s", after)
	}

	// Certificates of the management CA are no devices, although their root is the same.
	admin := t.TempDir()
	testpki.WriteFile(t, filepath.Join(admin, "bundle.pem"), []byte(readText(t, filepath.Join(s.Data, "admin", "key.pem"))), []byte(readText(t, filepath.Join(s.Data, "admin", "cert.pem"))))
	for name, dir := range map[string]string{"bridge": identity, "administrator": admin} {
		if _, err := b.connect(t, dir, tls.VersionTLS12); err == nil {
			t.Errorf("the %s's certificate is accepted as a device", name)
		}
	}

	// The bridge can still do its work.
	live := b.mustConnect(t, dir)
	s.MustCLI(t, "device", "revoke", "curious", "--reason", "keyCompromise")
	live.waitEnd(t, time.Now())
}

// TestAServicesNameIsNoRight: the server does not know the names in the ACL head; the bridge does.
func TestAServicesNameIsNoRight(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{topics: []string{"write v1/devices/me/telemetry"}, head: "user iotagent\ntopic readwrite #\nuser Back.End\ntopic readwrite #\n"})
	witness := b.witness(t, "-t", "#")
	honest := enrollDevice(t, s, "honest")
	refusals := sample(t, b.metrics, `bridge_validation_failures_total{code="device_id"}`)
	names := []string{"iotagent", "back.end"}
	var dirs []string
	for _, name := range names {
		dirs = append(dirs, enrollDevice(t, s, name))
	}
	harness.Eventually(t, patience, "the bridge to refuse both names", func() bool {
		return sample(t, b.metrics, `bridge_validation_failures_total{code="device_id"}`) >= refusals+2
	})
	for n, dir := range dirs {
		spy := b.subscribeAs(t, dir, "-t", "#")
		b.mustPublish(t, dir, telemetryTopic, "from "+names[n])
		b.mustPublish(t, dir, "any/thing", "from "+names[n])
		b.publishUntilSeen(t, witness, honest, telemetryTopic, "honest "+names[n])
		if strings.Contains(witness.Output(), "from "+names[n]) || strings.Contains(spy.Output(), "honest") {
			t.Errorf("a device called %s has the service's rights", names[n])
		}
	}
	list := readText(t, b.path("devices.acl"))
	for _, name := range append(names, "Back.End") {
		if strings.Contains(list, "user "+name+"\n") {
			t.Errorf("devices.acl names %s:\n%s", name, list)
		}
	}
}

// TestReservedNamesOfTheConfiguration: what reserved_ids names is nobody's device, in any spelling and on any way.
func TestReservedNamesOfTheConfiguration(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.Stop(t)
	config := filepath.Join(s.Data, "config.yaml")
	text := readText(t, config)
	if !strings.Contains(text, "reserved_ids: []") {
		t.Fatalf("config.yaml has no reserved_ids:\n%s", text)
	}
	if err := os.WriteFile(config, []byte(strings.Replace(text, "reserved_ids: []", "reserved_ids: [iotagent, Back.End]", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
	s.MustCLI(t, "code", "create", "mqtt.example.com", "--label", "bridge", "--out", filepath.Join(t.TempDir(), "code"))
	factory := factory(t, s)
	code := strings.TrimSpace(readText(t, s.CodeFile(t, "SN-1")))
	for _, name := range []string{"iotagent", "IoTAgent", "back.end", "BACK.END", "natal-bridge", "NATAL-canary-1", "mqtt.example.com", "Mqtt.Example.Com"} {
		if r := s.CLI(t, "code", "create", name, "--label", "default", "--out", filepath.Join(t.TempDir(), "code")); r.Code != 1 {
			t.Errorf("code create %s: exit code %d\n%s", name, r.Code, r.Output())
		}
		if r := s.CLI(t, "device", "add", name); r.Code != 1 {
			t.Errorf("device add %s: exit code %d\n%s", name, r.Code, r.Output())
		}
		asCN := testpki.Subject(testpki.ParsePEM(t, factory.Leaf(t, name).PEM())[0].Subject)
		for how, birth := range map[string]*testpki.Leaf{"serialNumber": factory.Birth(t, name), "CN": factory.Birth(t, name, asCN)} {
			if status := enrollStatus(t, s.HTTP(t, birth.TLS()), s, name, "", ""); status != http.StatusUnauthorized && status != http.StatusConflict {
				t.Errorf("birth certificate with %s in its %s: %d", name, how, status)
			}
		}
		if status := enrollStatus(t, s.HTTP(t), s, name, "SN-1", code); status != http.StatusForbidden {
			t.Errorf("a request for %s with the code of SN-1: %d, want 403", name, status)
		}
		if status := enrollStatus(t, s.HTTP(t), s, name, name, code); status != http.StatusUnauthorized {
			t.Errorf("a request for %s under that name: %d, want 401", name, status)
		}
	}
	// None of that has used the code up, and no device has come into being.
	if status := enrollStatus(t, s.HTTP(t), s, "SN-1", "SN-1", code); status != http.StatusOK {
		t.Errorf("SN-1 with its code: %d", status)
	}
	for _, c := range certificates(t, s) {
		if c.Profile == "iot-device" && c.Device != "SN-1" {
			t.Errorf("a device certificate of %s", c.Device)
		}
	}
}

// enrollStatus posts a CSR for cn to /simpleenroll; user "" sends no code.
func enrollStatus(t *testing.T, client *http.Client, s *harness.Server, cn, user, code string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/.well-known/est/simpleenroll", base64Body(testpki.CSR(t, testpki.Key(t, "ec:P-256"), cn, nil)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	if user != "" {
		req.SetBasicAuth(user, code)
	}
	answer, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode
}
