// A helper that makes wrong certificates by mistake would let other tests pass for the wrong reason,
// so the good tree is verified and each broken one is seen to be refused.

package testpki_test

import (
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/testpki"
)

func TestVerify(t *testing.T) {
	t.Parallel()
	root := testpki.Root(t, "root")
	shortRoot := testpki.Root(t, "short root", testpki.PathLen(0))
	good := root.Intermediate(t, "issuing", testpki.PathLen(0))
	cases := []struct {
		name string
		leaf *testpki.Leaf
		ok   bool
	}{
		{"good", good.Leaf(t, "dev-1"), true},
		{"birth certificate", good.Birth(t, "SN-1"), true},
		{"rsa", good.Leaf(t, "dev-1", testpki.KeySpec("rsa:2048")), true},
		{"expired", good.Leaf(t, "dev-1", testpki.Expired()), false},
		{"not yet valid", good.Leaf(t, "dev-1", testpki.NotYetValid()), false},
		{"server only", good.Leaf(t, "dev-1", testpki.EKU(x509.ExtKeyUsageServerAuth)), false},
		{"parent is no CA", root.Intermediate(t, "no ca", testpki.NotCA()).Leaf(t, "dev-1"), false},
		{"parent may not sign", root.Intermediate(t, "no sign", testpki.KeyUsage(x509.KeyUsageCRLSign)).Leaf(t, "dev-1"), false},
		{"parent expired", root.Intermediate(t, "old", testpki.Expired()).Leaf(t, "dev-1"), false},
		{"path too long", shortRoot.Intermediate(t, "one too many").Leaf(t, "dev-1"), false},
		{"foreign root", testpki.Root(t, "root").Leaf(t, "dev-1"), false},
		{"self-signed", testpki.SelfSigned(t, "dev-1"), false},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			intermediates := x509.NewCertPool()
			for a := tc.leaf.Issuer; a != nil && a.Parent != nil; a = a.Parent {
				intermediates.AddCert(a.Certificate)
			}
			_, err := tc.leaf.Certificate.Verify(x509.VerifyOptions{
				Roots:         testpki.Pool(root, shortRoot),
				Intermediates: intermediates,
				KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			})
			if (err == nil) != tc.ok {
				t.Errorf("verify: %v, want ok=%v", err, tc.ok)
			}
		})
	}
}

func TestCRLAndPEM(t *testing.T) {
	t.Parallel()
	root := testpki.Root(t, "root")
	leaf := root.Intermediate(t, "issuing").Leaf(t, "dev-1")
	if n := len(testpki.ParsePEM(t, leaf.ChainPEM())); n != 2 {
		t.Errorf("chain of the leaf: %d certificates, want 2 (no root)", n)
	}
	if n := len(leaf.TLS().Certificate); n != 2 {
		t.Errorf("TLS chain of the leaf: %d certificates, want 2 (no root)", n)
	}
	crl, err := x509.ParseRevocationList(root.CRL(t, 7, time.Hour, big.NewInt(42)))
	if err != nil {
		t.Fatal(err)
	}
	if err := crl.CheckSignatureFrom(root.Certificate); err != nil {
		t.Error(err)
	}
	if crl.Number.Int64() != 7 || len(crl.RevokedCertificateEntries) != 1 {
		t.Errorf("CRL: number %v, %d entries; want 7 and 1", crl.Number, len(crl.RevokedCertificateEntries))
	}
	csr, err := x509.ParseCertificateRequest(testpki.CSR(t, leaf.Key, "dev-1", nil))
	if err != nil || csr.CheckSignature() != nil || csr.Subject.CommonName != "dev-1" {
		t.Errorf("CSR: %v %v", csr, err)
	}
}
