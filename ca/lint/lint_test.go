// Certificates that break a rule of RFC 5280 are named as such before anything signs them; what devices need passes.

package lint_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"

	"github.com/natal-pki/natal/ca/lint"
	"github.com/natal-pki/natal/test/testpki"
)

func TestLint(t *testing.T) {
	t.Parallel()
	linter, err := lint.New()
	if err != nil {
		t.Fatal(err)
	}
	root := testpki.Root(t, "Root")
	edit := testpki.Edit
	for _, tc := range []struct {
		name   string
		leaf   *testpki.Leaf
		broken string // "": passes
	}{
		{"a device's", root.Leaf(t, "dev-1"), ""},
		{"an RSA device's", root.Leaf(t, "dev-1", testpki.KeySpec("rsa:2048"), testpki.KeyUsage(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment)), ""},
		{"key encipherment with EC", root.Leaf(t, "dev-1", testpki.KeyUsage(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment)), "e_ecdsa_allowed_ku"},
		{"a name of 65 characters", root.Leaf(t, strings.Repeat("x", 65)), "e_subject_common_name_max_length"},
		{"no subject at all", root.Leaf(t, "", testpki.Subject(pkix.Name{})), "san"},
		{"may sign certificates without being a CA", root.Leaf(t, "dev-1", testpki.KeyUsage(x509.KeyUsageCertSign)), "e_ext_key_usage_cert_sign_without_ca"},
		{"an empty name among its names", root.Leaf(t, "dev-1", edit(func(c *x509.Certificate) { c.DNSNames = []string{""} })), "e_"},
	} {
		err := linter.Certificate(tc.leaf.Certificate.Raw)
		if tc.broken == "" && err != nil || tc.broken != "" && (err == nil || !strings.Contains(err.Error(), tc.broken)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.broken)
		}
	}
	if err := linter.Certificate([]byte("no certificate")); err == nil {
		t.Error("something that is no certificate passed")
	}
}
