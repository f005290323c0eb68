// A key made by the CA: one PEM file for both options of mosquitto_pub, or split by openssl, or PKCS#12; handed out once.

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestBundleOfKeyAndCertificate(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{topics: []string{"write " + telemetryTopic}})
	dir := t.TempDir()
	s.MustCLI(t, "device", "add", "SN-000001")
	pem := filepath.Join(dir, "SN-000001.pem")
	s.MustCLI(t, "device", "bundle", "SN-000001", "--format", "pem", "--out", pem)
	content, err := os.ReadFile(pem)
	if info, statErr := os.Stat(pem); err != nil || statErr != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", err, statErr)
	}
	if keys, certs := strings.Count(string(content), "BEGIN PRIVATE KEY"), strings.Count(string(content), "BEGIN CERTIFICATE"); keys != 1 || certs != 3 || !strings.HasPrefix(string(content), "-----BEGIN PRIVATE KEY") {
		t.Errorf("%d keys, %d certificates", keys, certs)
	}
	device := filepath.Join(dir, "device")
	if err := os.Mkdir(device, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bundle.pem", "key.pem", "cert.pem"} { // as the agent's directory, for the helper
		if err := os.WriteFile(filepath.Join(device, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	publishWithFiles(t, b, device, "SN-000001")

	// Once: the second call is refused, changes nothing, and tells the way out. A file that exists is refused before anything happens.
	again := s.CLI(t, "device", "bundle", "SN-000001", "--out", filepath.Join(dir, "again.pem"))
	if again.Code != 1 || !strings.Contains(again.Output(), "bundle_delivered") || !strings.Contains(again.Output(), "device reissue SN-000001") {
		t.Errorf("a second bundle: exit code %d %s", again.Code, again.Output())
	}
	if r := s.CLI(t, "device", "bundle", "SN-000002", "--out", pem); r.Code != 1 || !strings.Contains(r.Output(), "nothing is overwritten") {
		t.Errorf("over a file: exit code %d %s", r.Code, r.Output())
	}
	if r := s.CLI(t, "device", "show", "SN-000002"); r.Code != 1 {
		t.Error("a refused bundle left a device")
	}
	// The certificate stays, as PEM, DER, PKCS#7 and public key, after the revocation too; the key is nowhere on the server.
	issued := certificates(t, s, "--device", "SN-000001")
	if len(issued) != 1 {
		t.Fatalf("%+v", issued)
	}
	s.MustCLI(t, "device", "reissue", "SN-000001", "--out", filepath.Join(dir, "code"))
	for format, check := range map[string][]string{
		"pem": {"x509", "-noout"}, "der": {"x509", "-inform", "DER", "-noout"}, "p7": {"pkcs7", "-inform", "DER", "-print_certs", "-noout"}, "pubkey": {"pkey", "-pubin", "-noout"},
	} {
		out := filepath.Join(dir, "cert."+format)
		s.MustCLI(t, "cert", "get", issued[0].Serial, "--format", format, "--out", out)
		openssl(t, dir, append(check, "-in", out)...)
	}
	if got := s.MustCLI(t, "cert", "show", issued[0].Serial).Stdout; !strings.Contains(got, "superseded") {
		t.Errorf("after the reissue: %s", got)
	}
	database, err := os.ReadFile(filepath.Join(s.Data, "est.db"))
	if err != nil || strings.Contains(string(database), "PRIVATE KEY") {
		t.Errorf("a key in the database, %v", err)
	}

	p12 := filepath.Join(dir, "SN-000001.p12")
	s.MustCLI(t, "device", "bundle", "SN-000001", "--format", "p12", "--key", "rsa:2048", "--out", p12)
	for _, file := range []string{p12, p12 + ".password"} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v", file, err)
		}
	}
	text := openssl(t, dir, "pkcs12", "-in", p12, "-passin", "file:"+p12+".password", "-noenc")
	if strings.Count(text, "BEGIN CERTIFICATE") != 3 || strings.Count(text, "BEGIN PRIVATE KEY") != 1 {
		t.Errorf("PKCS#12:\n%s", text)
	}
}
