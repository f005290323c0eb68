// Each shipped profile with requests that it takes and requests that it refuses, by which rule; and names that nobody should have.

package profile_test

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/test/testpki"
)

// example is a request and what becomes of it.
type example struct {
	name, key string
	edit      func(*x509.CertificateRequest)
	rule      string // "": accepted
}

func dns(names ...string) func(*x509.CertificateRequest) {
	return func(r *x509.CertificateRequest) { r.DNSNames = names }
}

func addresses(texts ...string) func(*x509.CertificateRequest) {
	return func(r *x509.CertificateRequest) {
		for _, text := range texts {
			r.IPAddresses = append(r.IPAddresses, net.ParseIP(text))
		}
	}
}

func together(edits ...func(*x509.CertificateRequest)) func(*x509.CertificateRequest) {
	return func(r *x509.CertificateRequest) {
		for _, edit := range edits {
			edit(r)
		}
	}
}

var (
	askCA    = extension(oidBC, true, constraints{CA: true, PathLen: -1})
	askOrg   = name(oidO, "Example")
	askOther = extension(asn1.ObjectIdentifier{1, 2, 3, 4}, false, []byte{5, 0})
	noName   = func(r *x509.CertificateRequest) { r.Subject = pkix.Name{} }
)

var examples = map[string][]example{
	"iot-device": {
		{"EC", "ec:P-256", nil, ""}, {"P-384", "ec:P-384", nil, ""}, {"RSA 2048", "rsa:2048", nil, ""}, {"RSA 3072", "rsa:3072", nil, ""}, {"clientAuth", "", extension(oidEKU, false, eku(2)), ""},
		{"RSA 4096", "rsa:4096", nil, "key_type"}, {"Ed25519", "ed25519", nil, "key_type"}, {"a CA", "", askCA, "basic_constraints"}, {"a name", "", dns("a.b"), "san_unlisted"}, {"O", "", askOrg, "subject_unlisted"},
	},
	"iot-device-rsa2048": {
		{"RSA 2048", "rsa:2048", nil, ""}, {"a name, dropped", "rsa:2048", dns("a.b"), ""}, {"an address, dropped", "rsa:2048", addresses("192.0.2.1"), ""},
		{"RSA 1024", "rsa:1024", nil, "key_type"}, {"RSA 3072", "rsa:3072", nil, "key_type"}, {"RSA 4096", "rsa:4096", nil, "key_type"}, {"P-256", "ec:P-256", nil, "key_type"}, {"Ed25519", "ed25519", nil, "key_type"},
		{"O", "rsa:2048", askOrg, "subject_unlisted"}, {"no CN", "rsa:2048", noName, "subject_common_name"}, {"another usage", "rsa:2048", extension(oidKU, true, usage(0, 2, 3)), "key_usage"},
	},
	"cfree-compat": {
		{"RSA 2048", "rsa:2048", nil, ""}, {"RSA 3072", "rsa:3072", nil, ""}, {"RSA 4096", "rsa:4096", nil, ""}, {"RSA 6144", "rsa:6144", nil, ""}, {"RSA 8192", "rsa:8192", nil, ""},
		{"names of its own", "rsa:2048", together(dns("mqtt", "mosquitto", "localhost"), addresses("192.0.2.7", "2001:db8::1")), ""}, {"its usages", "rsa:2048", extension(oidKU, false, usage(0, 1, 2, 3, 4)), ""},
		{"RSA 1024", "rsa:1024", nil, "key_type"}, {"RSA 2560", "rsa:2560", nil, "key_type"}, {"P-256", "ec:P-256", nil, "key_type"}, {"a CA", "rsa:2048", askCA, "basic_constraints"},
		{"keyCertSign", "rsa:2048", extension(oidKU, true, usage(0, 5)), "key_usage"}, {"clientAuth", "rsa:2048", extension(oidEKU, false, eku(2)), "extended_key_usage"}, {"an unknown extension", "rsa:2048", askOther, "extension_unlisted"},
		{"O", "rsa:2048", askOrg, "subject_unlisted"}, {"a wildcard", "rsa:2048", dns("*.example.com"), "san_not_allowed"}, {"a URI", "rsa:2048", func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "urn", Opaque: "x"}} }, "san_unlisted"},
		{"somebody's name", "rsa:2048", dns("taken.example.com"), "san_reserved"}, {"nine names", "rsa:2048", dns("a", "b", "c", "d", "e", "f", "g", "h", "i"), "san_limit"},
	},
	"mqtt-server": {
		{"EC", "", nil, ""}, {"RSA", "rsa:2048", nil, ""}, {"its own name", "", dns("dev-1"), ""}, {"serverAuth", "", extension(oidEKU, false, eku(1)), ""},
		{"another name", "", dns("other.example.com"), "san_not_registered"}, {"another address", "", addresses("192.0.2.1"), "san_not_registered"}, {"clientAuth", "", extension(oidEKU, false, eku(2)), "extended_key_usage"},
		{"key encipherment with EC", "", extension(oidKU, true, usage(0, 2)), "key_usage"},
	},
	"birth":       {{"EC", "", nil, ""}, {"its serial number", "", name(oidSN, "dev-1"), ""}, {"another serial number", "", name(oidSN, "dev-2"), "subject_serial_number"}, {"a CA", "", askCA, "basic_constraints"}},
	"est-server":  {{"its registered names", "", noName, ""}, {"RSA", "rsa:2048", noName, "key_type"}, {"O", "", together(noName, askOrg), "subject_unlisted"}},
	"ocsp-signer": {{"EC", "", nil, ""}, {"RSA", "rsa:4096", nil, ""}, {"clientAuth", "", extension(oidEKU, false, eku(2)), "extended_key_usage"}, {"P-521", "ec:P-521", nil, "key_type"}},
	"station": {
		{"EC", "", nil, ""}, {"both usages", "", extension(oidEKU, false, eku(2, 28)), ""}, {"serverAuth", "", extension(oidEKU, false, eku(1)), "extended_key_usage"}, {"a name", "", dns("a.b"), "san_unlisted"},
	},
	"admin":  {{"RSA 3072", "rsa:3072", nil, ""}, {"O", "", askOrg, "subject_unlisted"}, {"a CA", "", askCA, "basic_constraints"}},
	"bridge": {{"EC", "", nil, ""}, {"RSA", "rsa:2048", nil, "key_type"}, {"a name", "", dns("a.b"), "san_unlisted"}},
	"canary": {{"EC", "", nil, ""}, {"P-384", "ec:P-384", nil, "key_type"}, {"serverAuth", "", extension(oidEKU, false, eku(1)), "extended_key_usage"}},
}

func TestExamples(t *testing.T) {
	t.Parallel()
	for name, p := range shipped(t) {
		accepted, refused := 0, 0
		for _, e := range examples[name] {
			if e.key == "" {
				e.key = "ec:P-256"
			}
			in := profile.Input{Device: "dev-1", Issuer: issuer(), Signature: x509.SHA256WithRSA, Now: now, Reserved: func(name string) bool { return name == "dns:taken.example.com" }}
			in.CSR = request(t, "dev-1", e.key, e.edit)
			if name == "est-server" {
				in.Registered = []string{"dns:est.example.com"}
			}
			_, _, err := p.Build(in)
			var v *profile.Violation
			switch {
			case e.rule == "" && err != nil:
				t.Errorf("%s, %s: %v", name, e.name, err)
			case e.rule != "" && (!errors.As(err, &v) || v.Finding.Rule != e.rule):
				t.Errorf("%s, %s: %v, want %s", name, e.name, err, e.rule)
			}
			if e.rule == "" {
				accepted++
			} else {
				refused++
			}
		}
		if accepted == 0 || refused < 1 {
			t.Errorf("%s has %d examples that pass and %d that do not", name, accepted, refused)
		}
	}
}

// What the foreign system's certificates have, to the letter.
func TestCFREE(t *testing.T) {
	t.Parallel()
	in := profile.Input{Device: "dev-1", Issuer: issuer(), Signature: x509.SHA256WithRSA, PublicURL: "http://pki.example.com", IssuerName: "ca", Now: now}
	in.CSR = request(t, "dev-1", "rsa:2048", together(dns("MQTT"), addresses("192.0.2.7")))
	p := shipped(t)["cfree-compat"]
	c, _, err := p.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage)+len(c.CRLDistributionPoints)+len(c.IssuingCertificateURL)+len(c.OCSPServer) > 0 || c.BasicConstraintsValid || c.IsCA ||
		strings.Join(c.DNSNames, " ") != "mqtt" || c.IPAddresses[0].String() != "192.0.2.7" || c.NotAfter.Sub(c.NotBefore) != 730*24*time.Hour-time.Second {
		t.Errorf("template %+v", c)
	}
	want := []pkix.Extension{{Id: oidKU, Value: []byte{3, 2, 3, 0xf8}}, {Id: oidBC, Value: []byte{0x30, 0}}}
	if fmt.Sprint(c.ExtraExtensions) != fmt.Sprint(want) {
		t.Errorf("extensions %v, want %v", c.ExtraExtensions, want)
	}
	if !p.ClientAuth() {
		t.Error("a broker takes it, so it is a client's")
	}
	in.Signature = x509.ECDSAWithSHA256
	_, _, err = p.Build(in)
	var v *profile.Violation
	if !errors.As(err, &v) || v.Finding.Rule != "signature" {
		t.Errorf("under an EC key: %v", err)
	}
}

// naughty are names that two readers read differently, that are too long, or that mean something to a shell, a broker or a template.
var naughty = []string{
	"", " ", "dev-2", "dev-1 ", " dev-1", "DEV-1", "dev-1\x00", "dev-1\x00.evil.com", "dev\n1", "dev\r\n1", "dev\t1", "\x1b[31mdev", "dev\x7f1", "#", "+", "$SYS", "$SYS/broker", "a/b", "a/#", "../../etc/passwd",
	"dev-1,CN=admin", "dev-1+CN=admin", "CN=dev-1", "*", "*.example.com", "%u", "%c", "{{.Device}}", "${jndi:ldap://x}", "$(reboot)", "`id`", "' OR '1'='1", "\"; DROP TABLE x", "<script>", "\u200bdev-1", "\u202edev-1",
	"d\u0435v-1", "dev\u00ad1", "\ufeffdev-1", "dev-1\u0301", "\U0001f600", "xn--dev-1-", "localhost", "127.0.0.1", "::1", "0x7f000001", strings.Repeat("a", 65), strings.Repeat("a", 5000),
}

// Wherever a request puts such a name, no certificate has it: it is refused, or dropped by a profile that says so.
func TestNaughtyNames(t *testing.T) {
	t.Parallel()
	profiles := shipped(t)
	custom, err := profile.Parse([]byte(strings.Replace(good, "common_name: device", `common_name: device
  fields:
    O: {pattern: "^[A-Z][a-z]+$"}
    OU: {pattern: "^.+$"}
san:
  requested:
    dns: {suffixes: [example.com]}
    uri: {prefixes: ["urn:dev:"]}
    email: {domains: [example.com]}`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	profiles["custom"] = custom
	places := map[string]func(string) func(*x509.CertificateRequest){
		"CN": func(s string) func(*x509.CertificateRequest) {
			return func(r *x509.CertificateRequest) { r.Subject = pkix.Name{}; name(oidCN, s)(r) }
		},
		"a second CN":   func(s string) func(*x509.CertificateRequest) { return name(oidCN, s) },
		"serial number": func(s string) func(*x509.CertificateRequest) { return name(oidSN, s) },
		"O":             func(s string) func(*x509.CertificateRequest) { return name(oidO, s) },
		"OU":            func(s string) func(*x509.CertificateRequest) { return name(asn1.ObjectIdentifier{2, 5, 4, 11}, s) },
		"BMP CN": func(s string) func(*x509.CertificateRequest) {
			return name(oidCN, asn1.RawValue{Tag: asn1.TagBMPString, Bytes: wide(s)})
		},
		"T61 CN": func(s string) func(*x509.CertificateRequest) {
			return name(oidCN, asn1.RawValue{Tag: asn1.TagT61String, Bytes: []byte(s)})
		},
		"universal CN": func(s string) func(*x509.CertificateRequest) {
			return name(oidCN, asn1.RawValue{Tag: 28, Bytes: wide(s)})
		},
		"DNS":  func(s string) func(*x509.CertificateRequest) { return generalName(2, s) },
		"mail": func(s string) func(*x509.CertificateRequest) { return generalName(1, s) },
		"URI":  func(s string) func(*x509.CertificateRequest) { return generalName(6, s) },
	}
	tried := 0
	for where, put := range places {
		for _, bad := range naughty {
			csr, err := x509.ParseCertificateRequest(rawRequest(t, put(bad)))
			if err != nil {
				continue // it does not get as far as a profile
			}
			for profileName, p := range profiles {
				if profileName == "est-server" || !slices.Contains(p.KeySpecs(), "ec:P-256") {
					setKey(csr, public(t, "rsa:2048"))
				}
				tried++
				c, _, err := p.Build(profile.Input{Device: "dev-1", Issuer: issuer(), Signature: x509.SHA256WithRSA, CSR: csr, Now: now})
				if err != nil {
					continue
				}
				printable := where == "OU" && profileName == "custom" && len(bad) <= 64 // its pattern takes anything printable
				names := slices.Concat(c.DNSNames, c.EmailAddresses)
				if c.Subject.CommonName != "dev-1" || slices.Contains(names, bad) && bad != "localhost" && profileName != "cfree-compat" || !printable && strings.Contains(c.Subject.String(), bad) && !strings.Contains("CN=dev-1", bad) {
					t.Errorf("%s, %s %q: issued for %s, %v", profileName, where, bad, c.Subject, names)
				}
				if printable && strings.ContainsFunc(bad, func(r rune) bool { return r < ' ' || r == 0x200b || r == 0x202e || r == 0xfeff }) {
					t.Errorf("%s %q was taken", where, bad)
				}
			}
		}
	}
	if tried < 1000 {
		t.Errorf("only %d attempts", tried)
	}
}

// wide encodes a text with two octets for each character.
func wide(s string) []byte {
	var out []byte
	for _, r := range s {
		out = append(out, byte(r>>8), byte(r))
	}
	return out
}

// generalName asks for one alternative name as it is written, well formed or not.
func generalName(tag byte, value string) func(*x509.CertificateRequest) {
	der, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: int(tag), Bytes: []byte(value)}})
	if err != nil {
		panic(err)
	}
	return extension(oidSAN, false, der)
}

func rawRequest(t *testing.T, edit func(*x509.CertificateRequest)) []byte {
	t.Helper()
	return testpki.CSR(t, sameKey(t), "dev-1", edit)
}

// sameKey is one key for many requests that nothing is issued for.
var sameKey = func() func(*testing.T) crypto.Signer {
	var key crypto.Signer
	return func(t *testing.T) crypto.Signer {
		if key == nil {
			key = testpki.Key(t, "ec:P-256")
		}
		return key
	}
}()
