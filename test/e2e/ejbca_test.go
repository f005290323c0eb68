// What an end entity profile and a CA's public address were relied on for: nothing but what the label says is issued, and the certificate of the CA
// stays the same to the byte.

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// boundServer has a label whose one profile may be issued by one CA only.
func boundServer(t *testing.T) *harness.Server {
	t.Helper()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "ca", "create", issuingCA, "--parent", "root", "--key", "rsa:3072", "--use", "broker")
	shipped := s.MustCLI(t, "profile", "show", "iot-device-rsa2048").Stdout
	file := filepath.Join(t.TempDir(), "profile.yaml")
	writeText(t, file, strings.Replace(shipped, "name: iot-device-rsa2048", "name: iot-device-cert-profile\nissuers: ["+issuingCA+"]", 1))
	s.MustCLI(t, "profile", "check", file)
	s.MustCLI(t, "profile", "add", file)
	s.MustCLI(t, "label", "add", "iot", "--ca", issuingCA, "--profile", "iot-device-cert-profile", "--auth", "code")
	return s
}

func TestEndEntityProfile(t *testing.T) {
	t.Parallel()
	s := boundServer(t)

	// The CA and the profile belong to each other, whoever tries to part them.
	for _, args := range [][]string{
		{"label", "add", "other", "--ca", "devices", "--profile", "iot-device-cert-profile", "--auth", "code"},
		{"label", "set", "iot", "--ca", "devices"},
	} {
		if r := s.CLI(t, args...); r.Code != 1 || !strings.Contains(r.Stderr, issuingCA) && !strings.Contains(r.Stderr, "iot-device-cert-profile") {
			t.Errorf("%v: exit code %d, want 1 and the names: %s", args, r.Code, r.Output())
		}
	}

	// A CA that takes over is as good: a rollover leaves the label, the profile and the codes as they are.
	d := newOpensslDevice(t, "SN-000001")
	code := s.CodeFile(t, d.id, "--label", "iot")
	s.MustCLI(t, "ca", "rollover", issuingCA)
	s.MustCLI(t, "ca", "activate", issuingCA+"-2")
	d.newKey(t, "rsa:2048")
	for subject, reason := range map[string]string{"/": "subject_common_name", "/CN=" + d.id + "/O=Example": "subject_unlisted", "/CN=SN-000002": "identity_differs"} {
		if a := d.enrollWith(t, s, "iot/simpleenroll", code, []string{"-subj", subject}); a.status/100 != 4 || a.reason() != reason {
			t.Errorf("subject %s: %d %q, want %s", subject, a.status, a.body, reason)
		}
	}
	// Another profile and CA are what another label stands for. There the code is not accepted.
	if a := d.enroll(t, s, "simpleenroll", code); a.status != 401 {
		t.Errorf("the code at another label: %d %q, want 401", a.status, a.body)
	}
	// A key by the CA is handed out as PEM and not otherwise; the refusal has not made a key, a certificate or a device.
	p12 := filepath.Join(t.TempDir(), "x.p12")
	r := s.CLI(t, "device", "bundle", "SN-000009", "--label", "iot", "--format", "p12", "--out", p12)
	if r.Code != 1 || !strings.Contains(r.Stderr, "bundle_format") || !strings.Contains(r.Stderr, "pem") {
		t.Errorf("PKCS#12: exit code %d, want 1 and bundle_format: %s", r.Code, r.Output())
	}
	for _, file := range []string{p12, p12 + ".password"} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("the refused bundle left %s", file)
		}
	}
	if s.CLI(t, "device", "show", "SN-000009").Code != 1 {
		t.Error("the refused bundle left a device")
	}
	s.MustCLI(t, "device", "bundle", "SN-000009", "--label", "iot", "--format", "pem", "--out", filepath.Join(t.TempDir(), "x.pem"))

	// After all that the code is still good, once.
	if a := d.enroll(t, s, "iot/simpleenroll", code); a.status != 200 {
		t.Fatalf("the right request: %d %s", a.status, a.body)
	}
	if leaf := leafOf(t, d.file("cert.pem")); leaf.Subject.String() != "CN="+d.id || leaf.Issuer.CommonName != issuingCA+" 2" {
		t.Errorf("subject %s, issuer %s", leaf.Subject, leaf.Issuer)
	}
	d.newKey(t, "rsa:2048")
	if a := d.enroll(t, s, "iot/simpleenroll", code); a.status != 401 {
		t.Errorf("the code again, for another key: %d %q, want 401", a.status, a.body)
	}
	// Codes are random, 128 bits or more, and nowhere in the database; one that somebody could guess is refused.
	plain := strings.TrimSpace(readText(t, code))
	if other := strings.TrimSpace(readText(t, s.CodeFile(t, "SN-000003", "--label", "iot"))); other == plain || len(plain) < 26 {
		t.Errorf("codes of %d characters, equal: %v", len(plain), other == plain)
	}
	weak := filepath.Join(t.TempDir(), "weak")
	writeText(t, weak, "dojot\n")
	if r := s.CLI(t, "code", "create", "SN-000004", "--label", "iot", "--code-file", weak); r.Code != 1 {
		t.Errorf("a code that can be guessed: exit code %d: %s", r.Code, r.Output())
	}
	for _, name := range []string{"est.db", "est.db-wal"} {
		if content, err := os.ReadFile(filepath.Join(s.Data, name)); err == nil && strings.Contains(string(content), plain) {
			t.Errorf("%s has the code", name)
		}
	}
}

// Some platforms know a CA by the hash of its PEM.
func TestCACertificateAddressIsByteStable(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "ca", "create", issuingCA, "--parent", "root", "--key", "ec:P-384", "--use", "broker")
	// Without any certificate or trust, as curl does it.
	fetch := func(name string) string {
		t.Helper()
		return harness.Command{Path: harness.Program(t, "curl"), Args: []string{"--silent", "--show-error", "--fail", "http://" + s.Public + "/ca/" + name}}.MustRun(t).Stdout
	}
	harness.RequirePrograms(t, "curl", "openssl")
	first := map[string]string{}
	for _, ca := range []string{issuingCA, "devices", "root"} {
		for _, ending := range []string{".pem", ".crt", ".der"} {
			first[ca+ending] = fetch(ca + ending)
		}
		if strings.Count(first[ca+".pem"], "BEGIN CERTIFICATE") != 1 || first[ca+".pem"] != first[ca+".crt"] && first[ca+".der"] != first[ca+".crt"] {
			t.Errorf("%s: not one certificate:\n%s", ca, first[ca+".pem"])
		}
	}
	same := func(when string) {
		t.Helper()
		for name, want := range first {
			if fetch(name) != want {
				t.Errorf("%s: /ca/%s has changed", when, name)
			}
		}
	}
	number := fetchCRL(t, s, issuingCA).Number
	s.MustCLI(t, "crl", "issue", issuingCA)
	if fetchCRL(t, s, issuingCA).Number.Cmp(number) <= 0 {
		t.Error("no new CRL")
	}
	d := newOpensslDevice(t, "SN-000001")
	d.newKey(t, "ec:P-256")
	if a := d.enroll(t, s, "simpleenroll", s.CodeFile(t, d.id)); a.status != 200 {
		t.Fatalf("enroll: %d %s", a.status, a.body)
	}
	s.MustCLI(t, "device", "revoke", d.id, "--reason", "keyCompromise")
	same("after CRLs, an issue and a revocation")
	s.Stop(t)
	s.Start(t)
	same("after a restart")
	s.Kill()
	s.Start(t)
	same("after a crash")
}
