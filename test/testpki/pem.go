// Keys, requests and files in the encodings that openssl, curl and mosquitto read.

package testpki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/pem"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Key makes a private key: "ec:P-224", "ec:P-256", "ec:P-384", "ec:P-521", "rsa:BITS" or "ed25519".
func Key(t testing.TB, spec string) crypto.Signer {
	t.Helper()
	curves := map[string]elliptic.Curve{
		"ec:P-224": elliptic.P224(), "ec:P-256": elliptic.P256(), "ec:P-384": elliptic.P384(), "ec:P-521": elliptic.P521(),
	}
	var key crypto.Signer
	var err error
	if curve, ok := curves[spec]; ok {
		key, err = ecdsa.GenerateKey(curve, rand.Reader)
	} else if bits, ok := strings.CutPrefix(spec, "rsa:"); ok {
		var n int
		if n, err = strconv.Atoi(bits); err == nil {
			key, err = rsa.GenerateKey(rand.Reader, n)
		}
	} else if spec == "ed25519" {
		_, key, err = ed25519.GenerateKey(rand.Reader)
	} else {
		t.Fatalf("testpki: no key of kind %q", spec)
	}
	if err != nil {
		t.Fatalf("testpki: make key %s: %v", spec, err)
	}
	return key
}

//go:embed testdata
var large embed.FS

// LargeKey is the PEM of an RSA key of 4096, 6144 or 8192 bits, always the same one: to make such keys takes up to half a minute.
func LargeKey(t testing.TB, bits string) []byte {
	t.Helper()
	key, err := large.ReadFile("testdata/rsa-" + bits + ".pem")
	if err != nil {
		t.Fatalf("testpki: %v", err)
	}
	return key
}

// CSR makes a request signed by key for the CN; edit, if not nil, changes it before. It returns DER.
func CSR(t testing.TB, key crypto.Signer, cn string, edit func(*x509.CertificateRequest)) []byte {
	t.Helper()
	request := x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}
	if edit != nil {
		edit(&request)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &request, key)
	if err != nil {
		t.Fatalf("testpki: sign CSR for %q: %v", cn, err)
	}
	return der
}

// CSRPEM wraps a DER request.
func CSRPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// CertPEM writes certificates one after the other.
func CertPEM(certs ...*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return out.Bytes()
}

// KeyPEM is the key as unencrypted PKCS#8.
func KeyPEM(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatalf("testpki: encode key: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return CertPEM(a.Certificate) }

// ChainPEM is the authority's certificate and those above it, the root last.
func (a *Authority) ChainPEM() []byte {
	var out []byte
	for ; a != nil; a = a.Parent {
		out = append(out, a.PEM()...)
	}
	return out
}

// PEM is the leaf's certificate alone.
func (l *Leaf) PEM() []byte { return CertPEM(l.Certificate) }

// ChainPEM is the leaf and the intermediates above it, without the root.
func (l *Leaf) ChainPEM() []byte {
	out := l.PEM()
	for a := l.Issuer; a != nil && a.Parent != nil; a = a.Parent {
		out = append(out, a.PEM()...)
	}
	return out
}

// ParsePEM returns all certificates in data, in order.
func ParsePEM(t testing.TB, data []byte) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			return certs
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatalf("testpki: parse certificate: %v", err)
		}
		certs = append(certs, c)
	}
}

// WriteFile writes the parts one after the other into path (0600) and returns path.
func WriteFile(t testing.TB, path string, parts ...[]byte) string {
	t.Helper()
	if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
		t.Fatalf("testpki: %v", err)
	}
	return path
}
