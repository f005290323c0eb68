// Certificates that break a rule of RFC 5280 are named as such before anything signs them; what devices need passes.

package lint_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/lint"
	"github.com/natal-pki/natal/test/testpki"
)

// certificate is as this CA makes them, but for the edits.
func certificate(t *testing.T, issuer *testpki.Authority, cn string, edits ...func(*x509.Certificate)) []byte {
	t.Helper()
	serial := append([]byte{1}, []byte("an example of 16")...)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: cn}, NotBefore: issuer.Certificate.NotBefore, NotAfter: issuer.Certificate.NotBefore.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, SubjectKeyId: make([]byte, 20),
		PublicKey: testpki.Key(t, "ec:P-256").Public(),
	}
	for _, edit := range edits {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.Certificate, template.PublicKey, issuer.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func usage(bits x509.KeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.KeyUsage = bits }
}

func TestLint(t *testing.T) {
	t.Parallel()
	linter, err := lint.New()
	if err != nil {
		t.Fatal(err)
	}
	root := testpki.Root(t, "Root")
	other, seen := testpki.Root(t, "Other"), map[string]bool{}
	leaf := func(cn string, edits ...func(*x509.Certificate)) []byte { return certificate(t, root, cn, edits...) }
	rsa := func(c *x509.Certificate) { c.PublicKey = testpki.Key(t, "rsa:2048").Public() }
	is := func(use string) lint.Context { return lint.Context{Issuer: root.Certificate, Use: use} }
	for _, tc := range []struct {
		name   string
		leaf   []byte
		is     lint.Context
		broken string // "": passes
	}{
		{"a device's", leaf("dev-1"), is("broker"), ""},
		{"an RSA device's", leaf("dev-1", rsa, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment)), is("broker"), ""},
		{"key encipherment with EC", leaf("dev-1", usage(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment)), is("broker"), "e_ecdsa_allowed_ku"},
		{"a name of 65 characters", leaf(strings.Repeat("x", 65)), is("broker"), "e_subject_common_name_max_length"},
		{"no subject at all", leaf("", (func(c *x509.Certificate) { c.Subject = pkix.Name{} })), is("broker"), "san"},
		{"may sign certificates without being a CA", leaf("dev-1", usage(x509.KeyUsageCertSign)), is("broker"), "e_ext_key_usage_cert_sign_without_ca"},
		{"an empty name among its names", leaf("dev-1", (func(c *x509.Certificate) { c.DNSNames = []string{""} })), is("broker"), "e_"},

		{"an end before the beginning", leaf("dev-1", (func(c *x509.Certificate) { c.NotAfter = c.NotBefore })), is("broker"), "natal_validity_seconds"},
		{"an end after the issuer's", leaf("dev-1", (func(c *x509.Certificate) { c.NotAfter = root.Certificate.NotAfter.Add(time.Second) })), is("broker"), "natal_validity_in_issuer"},
		{"a begin before the issuer's", leaf("dev-1", (func(c *x509.Certificate) { c.NotBefore = root.Certificate.NotBefore.Add(-time.Second) })), is("broker"), "natal_validity_in_issuer"},
		{"a short serial number", leaf("dev-1", (func(c *x509.Certificate) { c.SerialNumber = big.NewInt(77) })), is("broker"), "natal_serial_form"},
		{"a serial number without the first octet", leaf("dev-1", (func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(5), 128) })), is("broker"), "natal_serial_form"},
		{"no subject key identifier", leaf("dev-1", (func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} })), is("broker"), "natal_subject_key_id"},
		{"another issuer", leaf("dev-1"), lint.Context{Issuer: other.Certificate, Use: "broker"}, "natal_authority_key_id, natal_issuer_name"},
		{"a device that is a server", leaf("dev-1", (func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), is("broker"), "natal_eku_use"},
		{"a device that is any", leaf("dev-1", (func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })), is("broker"), "natal_eku_use"},
		{"a device without an extended usage", leaf("dev-1", (func(c *x509.Certificate) { c.ExtKeyUsage = nil })), is("broker"), ""},
		{"a server without an extended usage", leaf("dev-1", (func(c *x509.Certificate) { c.ExtKeyUsage = nil })), is("management"), "natal_eku_use"},
		{"an OCSP signer that is a client", leaf("dev-1"), is("ocsp"), "natal_eku_use"},
		{"a device for a CA", leaf("dev-1"), is("ca"), "natal_basic_constraints"},
		{"a server without a name", leaf("dev-1", (func(c *x509.Certificate) {
			c.DNSNames, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		})), is("management"), "natal_san_consistent"},
		{"a name in capitals", leaf("dev-1", (func(c *x509.Certificate) { c.DNSNames = []string{"Example.com"} })), is("broker"), "natal_san_consistent"},
		{"an address as a name", leaf("dev-1", (func(c *x509.Certificate) { c.DNSNames = []string{"192.0.2.1"} })), is("broker"), "natal_san_consistent"},
		{"a control character in the name", leaf("dev\n1"), is("broker"), "natal_subject_common_name"},
		{"another CRL than the CA's", leaf("dev-1", (func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://a/crl"} })), lint.Context{Issuer: root.Certificate, Use: "broker", CRL: "http://b/crl"}, "natal_crl_address"},
		{"no CRL", leaf("dev-1"), lint.Context{Issuer: root.Certificate, Use: "broker", CRL: "http://b/crl"}, "natal_crl_address"},
		{"a critical extension that nobody knows", leaf("dev-1", (func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		})), is("broker"), "natal_no_unknown_extension"},
	} {
		err := linter.Check(tc.leaf, tc.is)
		if tc.broken == "" && err != nil || tc.broken != "" && (err == nil || !strings.Contains(err.Error(), tc.broken)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.broken)
		}
		if err == nil {
			continue
		}
		for _, name := range strings.Split(strings.TrimPrefix(err.Error(), "lint: "), ", ") {
			if strings.HasPrefix(name, "natal_") {
				seen[name] = true
			}
		}
	}
	for name := range lint.Rules {
		if !seen[name] {
			t.Errorf("rule %s was not seen to refuse anything", name)
		}
	}
	if err := linter.Check([]byte("no certificate"), lint.Context{Issuer: root.Certificate}); err == nil {
		t.Error("something that is no certificate passed")
	}
}
