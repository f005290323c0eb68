// The profile of the EJBCA installation that this one takes the place of, as openssl reads the certificate.

package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestProfileRSA2048(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "label", "add", "rsa", "--ca", "devices", "--profile", "iot-device-rsa2048", "--auth", "code")

	d := newOpensslDevice(t, "SN-000001")
	code := s.CodeFile(t, d.id, "--label", "rsa")
	for _, c := range []struct{ key, reason, limit string }{
		{"rsa:1024", "bad_key", "at least 2048 bits"}, {"rsa:3072", "key_type", "rsa:2048"}, {"rsa:4096", "key_type", "rsa:2048"}, {"ec:P-256", "key_type", "rsa:2048"}, {"ed25519", "key_type", "rsa:2048"},
	} {
		if c.key == "ed25519" {
			d.openssl(t, "genpkey", "-algorithm", "ED25519", "-out", "key.pem")
		} else {
			d.newKey(t, c.key)
		}
		if a := d.enroll(t, s, "rsa/simpleenroll", code); a.status != 400 || a.reason() != c.reason || !strings.Contains(a.body, c.limit) {
			t.Errorf("%s: %d %q, want 400 %s that names %s", c.key, a.status, a.body, c.reason, c.limit)
		}
	}

	// None of the refusals has used the code up. A SAN that is asked for is dropped.
	d.newKey(t, "rsa:2048")
	a := d.enrollWith(t, s, "rsa/simpleenroll", code, []string{"-subj", "/CN=" + d.id, "-addext", "subjectAltName=DNS:SN-000001,IP:192.0.2.1"})
	if a.status != 200 {
		t.Fatalf("rsa:2048: %d %s", a.status, a.body)
	}
	text := d.text(t)
	for _, want := range []string{
		`Subject: CN = SN-000001\n`,
		`Public-Key: \(2048 bit\)`,
		`X509v3 Key Usage: critical\s+Digital Signature, Key Encipherment\n`,
		`X509v3 Extended Key Usage:\s+TLS Web Client Authentication\n`,
		`Serial Number:\s+01(:[0-9a-f]{2}){16}\n`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("the certificate lacks %q:\n%s", want, text)
		}
	}
	for _, unwanted := range []string{"Alternative Name", "CRL Distribution", "Authority Information Access", "CA:TRUE"} {
		if strings.Contains(text, unwanted) {
			t.Errorf("the certificate has %q", unwanted)
		}
	}
	if got, want := strings.Join(d.extensions(t), " "), "2.5.29.14 2.5.29.15 2.5.29.19 2.5.29.35 2.5.29.37"; got != want {
		t.Errorf("extensions %s, want %s", got, want)
	}
	if life := lifetime(t, d) + time.Second; life != 365*24*time.Hour { // the last second counts
		t.Errorf("lifetime %v, want 365 days", life)
	}
}

func lifetime(t *testing.T, d *opensslDevice) time.Duration {
	t.Helper()
	var ends [2]time.Time
	for i, flag := range []string{"-startdate", "-enddate"} {
		out := strings.TrimSpace(d.openssl(t, "x509", "-in", "cert.pem", "-noout", flag))
		_, date, _ := strings.Cut(out, "=")
		end, err := time.Parse("Jan _2 15:04:05 2006 MST", date)
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = end
	}
	return ends[1].Sub(ends[0])
}
