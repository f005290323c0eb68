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
	s.MustCLI(t, "label", "set", "default", "--ca", "devices", "--profile", "iot-device-rsa2048")
	const topic = "v1/devices/me/telemetry"
	b := startBroker(t, s, brokerOptions{topics: []string{"write " + topic}})
	witness := b.witness(t, "-t", topic)
	device := enrollDevice(t, s, "SN-000001", "--key", "rsa:2048")
	harness.Eventually(t, patience, "the device to be in the access list", func() bool {
		b.mustPublish(t, device, topic, "the agent's two files")
		return strings.Contains(witness.Output(), topic+" the agent's two files\n")
	})

	dir := t.TempDir()
	bundle, err := os.ReadFile(filepath.Join(device, "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "SN-000001.pem"), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	openssl(t, dir, "pkey", "-in", "SN-000001.pem", "-out", "deviceKey.pem")
	openssl(t, dir, "x509", "-in", "SN-000001.pem", "-out", "deviceCert.pem")
	for _, files := range [][2]string{{"SN-000001.pem", "SN-000001.pem"}, {"deviceCert.pem", "deviceKey.pem"}} {
		payload := `{"files":"` + files[0] + " " + files[1] + `"}`
		r := harness.Command{Path: harness.Program(t, "mosquitto_pub"), Dir: dir, Args: []string{"--cafile", s.Trust(), "-h", "localhost", "-p", harness.Port(t, b.devices),
			"-q", "1", "-t", topic, "-m", payload, "--cert", files[0], "--key", files[1]}}.Run(t)
		if r.Code != 0 {
			t.Errorf("%v: exit code %d\n%s", files, r.Code, r.Output())
		}
		waitOutput(t, witness, topic+" "+payload)
	}
}
