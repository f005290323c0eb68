// The bytes that are signed, and the signature: made apart, so that lint, record and signature see the same bytes.

package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// serialPrefix is the fixed first octet of every serial number; 128 random bits follow. It keeps serial numbers
// positive, of one length, and without a random bit lost to the sign.
const serialPrefix = 0x01

func newSerial() (*big.Int, error) {
	octets := make([]byte, 17)
	if _, err := rand.Read(octets[1:]); err != nil {
		return nil, err
	}
	octets[0] = serialPrefix
	return new(big.Int).SetBytes(octets), nil
}

var errCaptured = errors.New("captured")

// capture stands in for the CA key: it keeps the bytes that it is asked to sign, and stops.
type capture struct {
	public crypto.PublicKey
	tbs    []byte
}

func (c *capture) Public() crypto.PublicKey { return c.public }

func (c *capture) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("a digest is not enough")
}

// SignMessage makes capture a crypto.MessageSigner, which is given the message itself.
func (c *capture) SignMessage(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	c.tbs = append([]byte(nil), message...)
	return nil, errCaptured
}

// signatureAlgorithm is what a CA with this key signs with.
func signatureAlgorithm(key crypto.PublicKey) (x509.SignatureAlgorithm, crypto.Hash, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P384() {
			return x509.ECDSAWithSHA384, crypto.SHA384, nil
		}
		return x509.ECDSAWithSHA256, crypto.SHA256, nil
	case *rsa.PublicKey:
		return x509.SHA256WithRSA, crypto.SHA256, nil
	}
	return 0, 0, fmt.Errorf("a CA cannot sign with %T", key)
}

// toBeSigned encodes the TBSCertificate of template as issued by parent (template itself for a root).
func toBeSigned(template, parent *x509.Certificate, subjectKey, issuerKey crypto.PublicKey) ([]byte, error) {
	var err error
	if template.SignatureAlgorithm, _, err = signatureAlgorithm(issuerKey); err != nil {
		return nil, err
	}
	c := &capture{public: issuerKey}
	if _, err := x509.CreateCertificate(rand.Reader, template, parent, subjectKey, c); !errors.Is(err, errCaptured) {
		return nil, fmt.Errorf("encode certificate: %w", err)
	}
	return c.tbs, nil
}

// sign signs exactly tbs and checks the signature before anybody sees it: a key that computes wrongly, in hardware or
// in memory, must not put a bad certificate into the world.
func sign(tbs []byte, key crypto.Signer) (der []byte, err error) {
	algorithm, hash, err := signatureAlgorithm(key.Public())
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(tbs)
	signature, err := key.Sign(rand.Reader, h.Sum(nil), hash)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	issuer := x509.Certificate{PublicKey: key.Public(), PublicKeyAlgorithm: keyAlgorithm(key.Public())}
	if err := issuer.CheckSignature(algorithm, tbs, signature); err != nil {
		return nil, fmt.Errorf("sign: the key made a wrong signature: %w", err)
	}
	return assemble(tbs, signature)
}

func keyAlgorithm(key crypto.PublicKey) x509.PublicKeyAlgorithm {
	if _, ok := key.(*rsa.PublicKey); ok {
		return x509.RSA
	}
	return x509.ECDSA
}

// assemble makes Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signature } (RFC 5280 section 4.1); the
// algorithm is the one that stands inside the TBSCertificate.
func assemble(tbs, signature []byte) ([]byte, error) {
	var inner, algorithm, serial, version cryptobyte.String
	input := cryptobyte.String(tbs)
	if !input.ReadASN1(&inner, cbasn1.SEQUENCE) ||
		!inner.ReadOptionalASN1(&version, nil, cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!inner.ReadASN1Element(&serial, cbasn1.INTEGER) ||
		!inner.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) {
		return nil, errors.New("assemble certificate: the TBSCertificate cannot be read")
	}
	return asn1.Marshal(struct{ TBS, Algorithm, Signature asn1.RawValue }{
		asn1.RawValue{FullBytes: tbs}, asn1.RawValue{FullBytes: algorithm}, asn1.RawValue{Tag: asn1.TagBitString, Bytes: append([]byte{0}, signature...)},
	})
}

// standIn is a signature of the right shape for a certificate that is only linted.
func standIn(key crypto.PublicKey) []byte {
	if k, ok := key.(*rsa.PublicKey); ok {
		return make([]byte, k.Size())
	}
	return []byte{0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01}
}
