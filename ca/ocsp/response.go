// Responses: the encoding of RFC 6960 section 4.2, signed by a delegated signer that goes with each of them.

package ocsp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Signer signs the answers about one CA's certificates. It never changes.
type Signer struct {
	Certificate *x509.Certificate
	key         crypto.Signer
	keyHash     []byte
	hash        crypto.Hash
	algorithm   []byte // AlgorithmIdentifier, DER
}

// NewSigner takes a key and the certificate that issuer gave it for id-kp-OCSPSigning (RFC 6960 section 4.2.2.2), and tries them out.
func NewSigner(key crypto.Signer, certificate, issuer *x509.Certificate) (*Signer, error) {
	if !slices.Contains(certificate.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return nil, errors.New("the certificate is not for signing OCSP answers")
	}
	if err := certificate.CheckSignatureFrom(issuer); err != nil {
		return nil, fmt.Errorf("the certificate is not from %s: %w", issuer.Subject, err)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(certificate.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	bits, err := publicKeyBits(certificate)
	if err != nil {
		return nil, err
	}
	s := &Signer{Certificate: certificate, key: key, keyHash: digest(crypto.SHA1, bits)}
	x509Algorithm, err := s.choose()
	if err != nil {
		return nil, err
	}
	const trial = "a signer is tried out before it answers"
	signature, err := s.Sign([]byte(trial))
	if err != nil {
		return nil, err
	}
	if err := certificate.CheckSignature(x509Algorithm, []byte(trial), signature); err != nil {
		return nil, fmt.Errorf("the key made a wrong signature: %w", err)
	}
	return s, nil
}

// SignatureAlgorithm is what a Signer with this public key signs with.
func SignatureAlgorithm(public crypto.PublicKey) (x509.SignatureAlgorithm, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P384() {
			return x509.ECDSAWithSHA384, nil
		}
		return x509.ECDSAWithSHA256, nil
	case *rsa.PublicKey:
		return x509.SHA256WithRSA, nil
	}
	return 0, fmt.Errorf("an OCSP signer cannot sign with %T", public)
}

// choose fixes what the key signs with.
func (s *Signer) choose() (x509.SignatureAlgorithm, error) {
	algorithm, err := SignatureAlgorithm(s.key.Public())
	if err != nil {
		return 0, err
	}
	oid := map[x509.SignatureAlgorithm]asn1.ObjectIdentifier{
		x509.ECDSAWithSHA256: {1, 2, 840, 10045, 4, 3, 2}, x509.ECDSAWithSHA384: {1, 2, 840, 10045, 4, 3, 3}, x509.SHA256WithRSA: {1, 2, 840, 113549, 1, 1, 11},
	}[algorithm]
	s.hash = crypto.SHA256
	if algorithm == x509.ECDSAWithSHA384 {
		s.hash = crypto.SHA384
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if algorithm == x509.SHA256WithRSA {
			b.AddASN1NULL()
		}
	})
	s.algorithm, err = b.Bytes()
	return algorithm, err
}

// ErrKey is wrapped by what a failing key gives: another look at the key may help.
var ErrKey = errors.New("the OCSP signer's key failed")

// Sign signs a message with the hash that goes with the key.
func (s *Signer) Sign(message []byte) ([]byte, error) {
	signature, err := s.key.Sign(rand.Reader, digest(s.hash, message), s.hash)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return signature, nil
}

// single is one SingleResponse.
type single struct {
	id         []byte
	status     Status
	thisUpdate time.Time
	nextUpdate time.Time
}

// respond encodes and signs a whole OCSPResponse.
func (s *Signer) respond(producedAt time.Time, answers []single, nonce []byte) ([]byte, error) {
	tbs, err := s.responseData(producedAt, answers, nonce)
	if err != nil {
		return nil, fmt.Errorf("encode OCSP response: %w", err)
	}
	signature, err := s.Sign(tbs)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0) // successful
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidBasic)
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddBytes(tbs)
						b.AddBytes(s.algorithm)
						b.AddASN1BitString(signature)
						b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
							b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(s.Certificate.Raw) })
						})
					})
				})
			})
		})
	})
	return b.Bytes()
}

// responseData encodes ResponseData: version 1, the responder named by its key.
func (s *Signer) responseData(producedAt time.Time, answers []single, nonce []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(explicit(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(s.keyHash) })
		b.AddASN1GeneralizedTime(producedAt)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for i := range answers {
				answers[i].encode(b)
			}
		})
		if nonce == nil {
			return
		}
		b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidNonce)
					b.AddASN1OctetString(nonce)
				})
			})
		})
	})
	return b.Bytes()
}

func (a *single) encode(b *cryptobyte.Builder) {
	implicit := func(tag uint8) cbasn1.Tag { return cbasn1.Tag(tag).ContextSpecific() }
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(a.id)
		switch a.status.State {
		case Good:
			b.AddASN1(implicit(0), func(*cryptobyte.Builder) {})
		case Revoked:
			b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
				b.AddASN1GeneralizedTime(time.Unix(a.status.RevokedAt, 0).UTC())
				if a.status.Reason != 0 {
					b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(a.status.Reason)) })
				}
			})
		default:
			b.AddASN1(implicit(2), func(*cryptobyte.Builder) {})
		}
		b.AddASN1GeneralizedTime(a.thisUpdate)
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(a.nextUpdate) })
	})
}

// etag names the content of an answer.
func etag(der []byte) string {
	sum := sha256.Sum256(der)
	return fmt.Sprintf("%x", sum[:16])
}
