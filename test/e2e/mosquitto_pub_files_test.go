// mosquitto_pub as people have it in their scripts: one PEM file for both options, or that file split by openssl. CONNACK 0 proves little, so
// somebody else has to receive each message.

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestMosquittoPubWithOneFileOrTwo(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{topics: []string{"write " + telemetryTopic}})
	for _, c := range []struct{ profile, key, id string }{
		{"iot-device", "ec:P-256", "SN-000001"}, {"iot-device-rsa2048", "rsa:2048", "SN-000002"},
	} {
		s.MustCLI(t, "label", "set", "default", "--ca", "devices", "--profile", c.profile)
		device := enrollDevice(t, s, c.id, "--key", c.key)
		if issued := certificates(t, s, "--device", c.id); len(issued) != 1 || issued[0].Profile != c.profile {
			t.Fatalf("%s: %+v, want one certificate of profile %s", c.id, issued, c.profile)
		}
		publishWithFiles(t, b, device, c.id)
	}
}

func publishWithFiles(t *testing.T, b *broker, device, id string) {
	t.Helper()
	witness := b.witness(t, "-t", telemetryTopic)
	b.publishUntilSeen(t, witness, device, telemetryTopic, "the agent's two files, "+id)

	dir, one := t.TempDir(), id+".pem"
	bundle, err := os.ReadFile(filepath.Join(device, "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, one), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	openssl(t, dir, "pkey", "-in", one, "-out", "deviceKey.pem")
	openssl(t, dir, "x509", "-in", one, "-out", "deviceCert.pem")
	for _, files := range [][2]string{{one, one}, {"deviceCert.pem", "deviceKey.pem"}} {
		payload := `{"temperature":25,"humidity":60,"files":"` + files[0] + " " + files[1] + `","id":"` + id + `"}`
		r := harness.Command{Path: harness.Program(t, "mosquitto_pub"), Dir: dir, Args: []string{"-d", "--cafile", b.server.Trust(), "-h", "localhost",
			"-p", harness.Port(t, b.devices), "-t", telemetryTopic, "--cert", files[0], "--key", files[1], "-m", payload}}.Run(t)
		if r.Code != 0 || !strings.Contains(r.Output(), "received CONNACK (0)") {
			t.Errorf("%v: exit code %d\n%s", files, r.Code, r.Output())
		}
		waitOutput(t, witness, telemetryTopic+" "+payload)
	}
	waitOutput(t, b.mosquitto, "u'"+id+"'") // the user name that mosquitto took from the certificate
}
