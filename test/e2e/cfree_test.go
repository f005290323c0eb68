// Profile cfree-compat at a real server: what dojot's CFREE gave a device is there, and what let a device make a CA of itself is not.

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

// reason is the word that a refusal begins with.
func (a answer) reason() string {
	word, _, _ := strings.Cut(a.body, ":")
	return word
}

// extensions are the names of the certificate's extensions, in order of name.
func (d *opensslDevice) extensions(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, e := range leafOf(t, d.file("cert.pem")).Extensions {
		names = append(names, e.Id.String())
	}
	slices.Sort(names)
	return names
}

func TestCFREE(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "ca", "create", "IOTmidCA", "--parent", "root", "--key", "rsa:3072", "--use", "broker")
	s.MustCLI(t, "label", "add", "cfree", "--ca", "IOTmidCA", "--profile", "cfree-compat", "--auth", "code")
	const operation = "cfree/simpleenroll"

	// A request beyond the profile is refused by the name of the rule, and costs nobody his code.
	d := newOpensslDevice(t, "24f6")
	code := s.CodeFile(t, d.id, "--label", "cfree")
	d.newKey(t, "rsa:2048")
	for _, c := range []struct{ extension, reason string }{
		{"basicConstraints=critical,CA:TRUE", "basic_constraints"},
		{"keyUsage=digitalSignature,keyCertSign,cRLSign", "key_usage"},
		{"extendedKeyUsage=serverAuth", "extended_key_usage"},
		{"extendedKeyUsage=clientAuth", "extended_key_usage"},
		{"1.2.3.4=ASN1:UTF8String:mine", "extension_unlisted"},
		{"nsComment=mine", "extension_unlisted"},
		{"subjectAltName=URI:urn:x", "san_unlisted"},
		{"subjectAltName=DNS:device-1", "san_reserved"}, // the id of another device
	} {
		a := d.enrollWith(t, s, operation, code, []string{"-subj", "/CN=" + d.id, "-addext", c.extension})
		if a.status != 400 || a.reason() != c.reason {
			t.Errorf("%s: %d %q, want 400 %s", c.extension, a.status, a.body, c.reason)
		}
	}
	for spec, reason := range map[string]string{"rsa:1024": "bad_key", "rsa:2560": "key_type", "ec:P-256": "key_type"} {
		d.newKey(t, spec)
		if a := d.enroll(t, s, operation, code); a.status != 400 || a.reason() != reason {
			t.Errorf("%s: %d %q, want 400 %s", spec, a.status, a.body, reason)
		}
	}
	d.newKey(t, "rsa:2048")
	a := d.enrollWith(t, s, operation, code, []string{"-subj", "/CN=" + d.id, "-addext", "subjectAltName=DNS:mqtt,DNS:mosquitto,IP:192.0.2.7,IP:2001:db8::1",
		"-addext", "keyUsage=digitalSignature,nonRepudiation,keyEncipherment,dataEncipherment,keyAgreement"})
	if a.status != 200 {
		t.Fatalf("names of its own: %d %s", a.status, a.body)
	}
	text := d.text(t)
	for _, want := range []string{
		`Subject: CN = 24f6\n`,
		`Signature Algorithm: sha256WithRSAEncryption\n`,
		`X509v3 Key Usage: \n\s+Digital Signature, Non Repudiation, Key Encipherment, Data Encipherment, Key Agreement\n`,
		`X509v3 Basic Constraints: \n\s+CA:FALSE\n`,
		`X509v3 Subject Alternative Name: \n\s+DNS:mqtt, DNS:mosquitto, IP Address:192.0.2.7, IP Address:2001:DB8:0:0:0:0:0:1\n`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("the certificate lacks %q:\n%s", want, text)
		}
	}
	if got, want := strings.Join(d.extensions(t), " "), "2.5.29.14 2.5.29.15 2.5.29.17 2.5.29.19 2.5.29.35"; got != want {
		t.Errorf("extensions %s, want %s: no extended key usage, no addresses", got, want)
	}
	if life := lifetime(t, d); life+time.Second != 730*24*time.Hour {
		t.Errorf("lifetime %v, its last second not counted, want 730 days", life)
	}
	if !d.verifies(t, s.Trust()) {
		t.Error("openssl does not take it for a TLS client's")
	}

	for _, bits := range []string{"3072", "4096", "6144", "8192"} {
		d := newOpensslDevice(t, "dev-"+bits)
		if bits == "3072" {
			d.newKey(t, "rsa:3072")
		} else {
			d.write(t, "key.pem", testpki.LargeKey(t, bits))
		}
		if a := d.enroll(t, s, operation, s.CodeFile(t, d.id, "--label", "cfree")); a.status != 200 {
			t.Errorf("RSA %s: %d %s", bits, a.status, a.body)
		}
	}

	// Under a CA with an EC key the signature would be another one.
	s.MustCLI(t, "label", "add", "cfree-ec", "--ca", "devices", "--profile", "cfree-compat", "--auth", "code")
	e := newOpensslDevice(t, "24f7")
	e.newKey(t, "rsa:2048")
	if a := e.enroll(t, s, "cfree-ec/simpleenroll", s.CodeFile(t, e.id, "--label", "cfree-ec")); a.status != 400 || a.reason() != "signature" {
		t.Errorf("under an EC key: %d %q, want 400 signature", a.status, a.body)
	}

	// profile explain says the same words beforehand. The request of the refused CA is made again, in PEM.
	d.openssl(t, "req", "-new", "-key", "key.pem", "-subj", "/CN="+d.id, "-addext", "basicConstraints=critical,CA:TRUE", "-out", "csr.pem")
	r := s.CLI(t, "profile", "explain", "--profile", "cfree-compat", "--csr", d.file("csr.pem"), "--ca", "IOTmidCA", "--device", d.id)
	if refused := explained(r.Stdout); r.Code != 1 || !slices.Equal(refused, []string{"basic_constraints"}) {
		t.Errorf("profile explain: exit code %d, refuses by %v\n%s", r.Code, refused, r.Output())
	}
}

// explained are the rules that refuse, in the output of profile explain.
func explained(output string) []string {
	var rules []string
	for line := range strings.Lines(output) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "REFUSE" {
			rules = append(rules, words[1])
		}
	}
	return rules
}

// The commands about profiles, from the file to the certificate.
func TestProfileCommands(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	dir := t.TempDir()
	file := filepath.Join(dir, "meter.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const good = "name: meter\nuse: broker\nkeys: [ec:P-256]\nvalidity: 90d\nsubject:\n  common_name: device\nextended_key_usage: [clientAuth]\n"

	// check: what cannot be is refused by its key; what would be useless is an error; what is right passes, with a server and without.
	for _, c := range []struct{ edit, to, word string }{
		{"ec:P-256", "ec:P-224", "keys"}, {"90d", "4000d", "validity"}, {"[clientAuth]", "[serverAuth]", "extended_key_usage"}, {"validity", "valdity", "valdity"},
	} {
		write(strings.Replace(good, c.edit, c.to, 1))
		if r := s.CLI(t, "profile", "check", file); r.Code != 1 || !strings.Contains(r.Stderr, c.word) {
			t.Errorf("check with %s: exit code %d, want 1 and %q: %s", c.to, r.Code, c.word, r.Output())
		}
	}
	write(good)
	for _, args := range [][]string{nil, {"--ca", filepath.Join(s.Data, "ca", "devices.pem")}} {
		if out := s.MustCLI(t, append([]string{"profile", "check", file}, args...)...).Stdout; !strings.Contains(out, "profile meter is valid") {
			t.Errorf("check: %s", out)
		}
	}

	s.MustCLI(t, "profile", "add", file)
	s.MustCLI(t, "label", "add", "meters", "--ca", "devices", "--profile", "meter", "--auth", "code")
	d := newOpensslDevice(t, "meter-1")
	d.newKey(t, "ec:P-256")
	if a := d.enroll(t, s, "meters/simpleenroll", s.CodeFile(t, d.id, "--label", "meters")); a.status != 200 {
		t.Fatalf("enroll: %d %s", a.status, a.body)
	}
	write(strings.Replace(good, "90d", "30d", 1))
	s.MustCLI(t, "profile", "add", file)

	var versions struct {
		Items []struct {
			Version int
			Hash    string
		}
	}
	parse(t, s.MustCLI(t, "profile", "show", "meter", "--versions", "--json").Stdout, &versions)
	if len(versions.Items) != 2 || versions.Items[0].Hash == versions.Items[1].Hash {
		t.Fatalf("versions: %+v", versions)
	}
	// The certificate names the version that made it, and that one can still be read.
	var cert struct {
		Hash string `json:"profile_hash"`
	}
	parse(t, s.MustCLI(t, "cert", "show", certificates(t, s, "--device", d.id)[0].Serial, "--json").Stdout, &cert)
	if got := s.MustCLI(t, "profile", "show", "meter", "--hash", cert.Hash[:16]).Stdout; got != good {
		t.Errorf("the version of the certificate:\n%s", got)
	}
	if got := s.MustCLI(t, "profile", "show", "meter").Stdout; !strings.Contains(got, "30d") {
		t.Errorf("the newest version:\n%s", got)
	}

	// explain and the EST answer say one word, whatever the request.
	other := newOpensslDevice(t, "meter-2")
	code := s.CodeFile(t, other.id, "--label", "meters")
	for _, c := range []struct {
		key, reason string
		csr         []string
	}{
		{"rsa:2048", "key_type", []string{"-subj", "/CN=meter-2"}},
		{"ec:P-256", "identity_differs", []string{"-subj", "/CN=meter-3"}},
		{"ec:P-256", "subject_unlisted", []string{"-subj", "/CN=meter-2/O=Example"}},
		{"ec:P-256", "san_unlisted", []string{"-subj", "/CN=meter-2", "-addext", "subjectAltName=DNS:meter-2.example.com"}},
		{"ec:P-256", "basic_constraints", []string{"-subj", "/CN=meter-2", "-addext", "basicConstraints=CA:TRUE"}},
		{"ec:P-256", "", []string{"-subj", "/CN=meter-2"}},
	} {
		other.newKey(t, c.key)
		other.openssl(t, append([]string{"req", "-new", "-key", "key.pem", "-out", "csr.pem"}, c.csr...)...)
		r := s.CLI(t, "profile", "explain", "--profile", "meter", "--csr", other.file("csr.pem"), "--device", other.id)
		a := other.enrollWith(t, s, "meters/simpleenroll", code, c.csr)
		refused := explained(r.Stdout)
		switch {
		case c.reason == "" && (r.Code != 0 || refused != nil || a.status != 200):
			t.Errorf("a request that fits: exit code %d %v, answer %d %s", r.Code, refused, a.status, a.body)
		case c.reason != "" && (r.Code != 1 || len(refused) == 0 || refused[0] != c.reason || a.status == 200 || a.reason() != c.reason):
			t.Errorf("explain (exit code %d) refuses by %v, the EST server by %d %q, want %s first", r.Code, refused, a.status, a.body, c.reason)
		}
	}
}
