// An Authority signs whatever it is asked to, so that tests can build valid and broken trees alike.

package testpki

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"testing"
	"time"
)

// Authority is a CA certificate with its key.
type Authority struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
	Parent      *Authority // nil for a root
}

// Leaf is an end entity certificate with its key.
type Leaf struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
	Issuer      *Authority // nil for a self-signed leaf
}

// Root makes a self-signed CA of ten years, EC P-256, named by its CN.
func Root(t testing.TB, cn string, options ...Option) *Authority {
	t.Helper()
	s := newSpec(cn, authority, options)
	cert, key := s.sign(t, nil)
	return &Authority{Certificate: cert, Key: key}
}

// Intermediate makes a CA under a, of ten years, EC P-256.
func (a *Authority) Intermediate(t testing.TB, cn string, options ...Option) *Authority {
	t.Helper()
	s := newSpec(cn, authority, options)
	cert, key := s.sign(t, a)
	return &Authority{Certificate: cert, Key: key, Parent: a}
}

// Leaf makes an end entity certificate under a: one year, EC P-256, key usage digitalSignature, EKU clientAuth.
func (a *Authority) Leaf(t testing.TB, cn string, options ...Option) *Leaf {
	t.Helper()
	s := newSpec(cn, endEntity, options)
	cert, key := s.sign(t, a)
	return &Leaf{Certificate: cert, Key: key, Issuer: a}
}

// Birth makes a birth certificate (IDevID) for the device id: subject serialNumber = id, no CN, no end of
// validity worth the name (99991231235959Z, as IEEE 802.1AR asks), no EKU.
func (a *Authority) Birth(t testing.TB, id string, options ...Option) *Leaf {
	t.Helper()
	birth := Edit(func(c *x509.Certificate) {
		c.Subject = pkix.Name{Organization: []string{"Test Factory"}, SerialNumber: id}
		c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		c.ExtKeyUsage = nil
	})
	return a.Leaf(t, "", append([]Option{birth}, options...)...)
}

// SelfSigned makes a self-signed end entity certificate.
func SelfSigned(t testing.TB, cn string, options ...Option) *Leaf {
	t.Helper()
	s := newSpec(cn, endEntity, options)
	cert, key := s.sign(t, nil)
	return &Leaf{Certificate: cert, Key: key}
}

// CRL signs a CRL over the given serial numbers that is valid from a minute ago for the given time. It returns DER.
func (a *Authority) CRL(t testing.TB, number int64, valid time.Duration, revoked ...*big.Int) []byte {
	t.Helper()
	now := time.Now()
	list := &x509.RevocationList{
		Number:     big.NewInt(number),
		ThisUpdate: now.Add(-time.Minute),
		NextUpdate: now.Add(valid),
	}
	for _, serial := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now.Add(-time.Minute), ReasonCode: 1})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.Certificate, a.Key)
	if err != nil {
		t.Fatalf("testpki: sign CRL of %s: %v", a.Certificate.Subject, err)
	}
	return der
}

// Pool returns the authorities' certificates as a pool.
func Pool(authorities ...*Authority) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, a := range authorities {
		pool.AddCert(a.Certificate)
	}
	return pool
}

// TLS returns the leaf for a tls.Config: leaf and intermediates, without the root.
func (l *Leaf) TLS() tls.Certificate {
	c := tls.Certificate{PrivateKey: l.Key, Leaf: l.Certificate, Certificate: [][]byte{l.Certificate.Raw}}
	for a := l.Issuer; a != nil && a.Parent != nil; a = a.Parent {
		c.Certificate = append(c.Certificate, a.Certificate.Raw)
	}
	return c
}

// Fingerprint is the SHA-256 of the certificate's DER, lower-case hex.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

func (s *spec) sign(t testing.TB, issuer *Authority) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := s.key
	if key == nil {
		key = Key(t, s.keySpec)
	}
	template := s.template
	template.SerialNumber = serial(t)
	if template.IsCA {
		template.SubjectKeyId = keyID(t, key.Public())
	}
	parent, signer := &template, key
	if issuer != nil {
		parent, signer = issuer.Certificate, issuer.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, key.Public(), signer)
	if err != nil {
		t.Fatalf("testpki: sign %s: %v", template.Subject, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("testpki: parse %s: %v", template.Subject, err)
	}
	return cert, key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		t.Fatalf("testpki: serial number: %v", err)
	}
	return n.Add(n, big.NewInt(1))
}

// keyID is RFC 7093 method 1: the leftmost 160 bits of the SHA-256 of the public key's bits.
func keyID(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatalf("testpki: public key: %v", err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Bits      asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		t.Fatalf("testpki: public key: %v", err)
	}
	sum := sha256.Sum256(info.Bits.Bytes)
	return sum[:20]
}
