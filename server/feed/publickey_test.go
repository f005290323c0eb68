// A key of which only the public half is known: that of a CA that somebody else signs.

package feed

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"testing"
)

type publicOnly struct{ key crypto.PublicKey }

func (p publicOnly) Public() crypto.PublicKey { return p.key }

func (p publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("only the public half is known")
}

func parseCSR(t *testing.T, text []byte) *x509.CertificateRequest {
	t.Helper()
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
