// Names with a meaning at the broker or the server, and certificates of the wrong kind: whatever a device calls itself, it stays a
// device.

package e2e

import (
	"crypto/tls"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestReservedNamesAreNobodysDevice(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "code", "create", "mqtt.example.com", "--label", "bridge", "--out", filepath.Join(t.TempDir(), "code"))
	factory := testpki.Root(t, "Factory")
	s.MustCLI(t, "birth-ca", "add", "default", testpki.WriteFile(t, filepath.Join(t.TempDir(), "factory.pem"), factory.PEM()))
	client, dir := harness.Binary(t, "estclient-example"), t.TempDir()
	enroll := func(id string) harness.Result {
		birth, files := factory.Birth(t, id), t.TempDir()
		return harness.Run(t, client, "enroll", "--server", s.URL(), "--trust", s.Trust(), "--dir", filepath.Join(files, "device"),
			"--birth-cert", testpki.WriteFile(t, filepath.Join(files, "cert.pem"), birth.PEM()),
			"--birth-key", testpki.WriteFile(t, filepath.Join(files, "key.pem"), testpki.KeyPEM(t, birth.Key)))
	}
	// The same commands with an ordinary name, so that it is the name that is refused.
	s.MustCLI(t, "code", "create", "--out", filepath.Join(dir, "code"), "--label", "default", "--", "natal.1")
	s.MustCLI(t, "device", "add", "--", "natal_2")
	if r := enroll("SN-natal-3"); r.Code != 0 {
		t.Fatalf("birth certificate of an ordinary name: %s", r.Output())
	}
	for _, id := range []string{
		"natal-bridge", "Natal-Canary-1", "NATAL-x", // the project's own
		"mqtt.example.com", "MQTT.example.com", // a bridge's, in any spelling
		"a/b", "a b", "+", "#", "$SYS", "-a", ".a", "a:b", "a\nuser b", strings.Repeat("a", 65), "", // no device ids
	} {
		if r := s.CLI(t, "code", "create", "--out", filepath.Join(dir, "code"), "--label", "default", "--", id); r.Code == 0 {
			t.Errorf("code create %q: done", id)
		}
		if r := s.CLI(t, "device", "add", "--", id); r.Code == 0 {
			t.Errorf("device add %q: done", id)
		}
		if id == "" || len(id) > 64 {
			continue // openssl and X.520 do not make such a birth certificate
		}
		if r := enroll(id); r.Code == 0 {
			t.Errorf("birth certificate of %q: enrolled", id)
		}
	}
	var certs struct {
		Items []struct{ Device, Profile string }
	}
	parse(t, s.MustCLI(t, "cert", "list", "--json").Stdout, &certs)
	for _, c := range certs.Items {
		if c.Profile == "iot-device" && c.Device != "SN-natal-3" {
			t.Errorf("there is a device certificate of %q", c.Device)
		}
	}
}

// The feed is for bridges, the administration address for administrators: no device gets in, and no management certificate
// enrolls as a device.
func TestCertificatesOfTheWrongKindOpenNothing(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	dir := enrollDevice(t, s, "SN-CURIOUS")
	device, err := tls.LoadX509KeyPair(filepath.Join(dir, "bundle.pem"), filepath.Join(dir, "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	foreign := testpki.Root(t, "management").Leaf(t, "mqtt.example.com").TLS()
	for name, certificates := range map[string][]tls.Certificate{"none": nil, "device": {device}, "foreign": {foreign}} {
		for _, page := range []string{"/bridge/v1/trust-set", "/bridge/v1/devices", "/bridge/v1/changes?since=0"} {
			answer, err := s.HTTP(t, certificates...).Get(s.URL() + page)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusUnauthorized && answer.StatusCode != http.StatusForbidden {
				t.Errorf("%s with certificate %q: %d", page, name, answer.StatusCode)
			}
		}
		for _, page := range []string{"/api/v1/cas", "/api/v1/devices"} {
			answer, err := s.HTTP(t, certificates...).Get("https://" + s.Admin + page)
			if err != nil {
				continue // refused in the handshake
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusUnauthorized && answer.StatusCode != http.StatusForbidden {
				t.Errorf("%s with certificate %q: %d", page, name, answer.StatusCode)
			}
		}
	}
	admin, err := tls.LoadX509KeyPair(filepath.Join(s.Data, "admin", "cert.pem"), filepath.Join(s.Data, "admin", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.HTTP(t, admin).Get("https://" + s.Admin + "/api/v1/cas")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("/api/v1/cas with the first administrator's certificate: %d", answer.StatusCode)
	}
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), "admin", nil)
	for _, operation := range []string{"simpleenroll", "simplereenroll"} {
		answer, err := s.HTTP(t, admin).Post(s.URL()+"/.well-known/est/"+operation, "application/pkcs10", base64Body(csr))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s with the administrator's certificate: %d, want 401", operation, answer.StatusCode)
		}
	}
}
