// PKCS#10 requests: good ones by crypto/x509, broken ones by hand.

package conformance

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"time"
)

const typePKCS10 = "application/pkcs10"

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// newCSR returns the DER of a request for name with a fresh or given key.
func newCSR(name string, key crypto.Signer, edit func(*x509.CertificateRequest)) ([]byte, crypto.Signer, error) {
	if key == nil {
		k, err := newKey()
		if err != nil {
			return nil, nil, err
		}
		key = k
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	return der, key, err
}

// encode64 is base64 in lines of 64 characters.
func encode64(der []byte) []byte { return lines(der, 64, "\n") }

func lines(der []byte, length int, end string) []byte {
	text := base64.StdEncoding.EncodeToString(der)
	var b bytes.Buffer
	for len(text) > 0 {
		n := min(length, len(text))
		b.WriteString(text[:n] + end)
		text = text[n:]
	}
	return b.Bytes()
}

// brokenSignature changes the last byte of the signature; the structure stays intact.
func brokenSignature(der []byte) []byte {
	out := bytes.Clone(der)
	out[len(out)-1] ^= 0x55
	return out
}

type csrOuter struct {
	Info      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

// resigned returns the request der of an RSA key with a signature over an old hash.
func resigned(der []byte, key *rsa.PrivateKey, hash crypto.Hash) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	var digest []byte
	oid := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}
	switch hash {
	case crypto.SHA1:
		sum := sha1.Sum(csr.RawTBSCertificateRequest)
		digest = sum[:]
	case crypto.MD5:
		sum := md5.Sum(csr.RawTBSCertificateRequest)
		digest, oid = sum[:], asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 4}
	default:
		return nil, errors.New("unknown hash")
	}
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, hash, digest)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(csrOuter{
		Info:      asn1.RawValue{FullBytes: csr.RawTBSCertificateRequest},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.NullRawValue},
		Signature: asn1.BitString{Bytes: signature, BitLength: len(signature) * 8},
	})
}

// dsaCSR has a DSA key; its signature is none, which a server must not get as far as noticing.
func dsaCSR(name string) ([]byte, error) {
	subject, err := asn1.Marshal(pkix.Name{CommonName: name}.ToRDNSequence())
	if err != nil {
		return nil, err
	}
	type params struct{ P, Q, G *big.Int }
	number := big.NewInt(1<<62 + 1)
	parameters, err := asn1.Marshal(params{number, number, number})
	if err != nil {
		return nil, err
	}
	type spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	info, err := asn1.Marshal(struct {
		Version    int
		Subject    asn1.RawValue
		Key        spki
		Attributes asn1.RawValue
	}{
		0, asn1.RawValue{FullBytes: subject},
		spki{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}, Parameters: asn1.RawValue{FullBytes: parameters}},
			asn1.BitString{Bytes: []byte{2, 1, 5}, BitLength: 24}},
		asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(csrOuter{
		Info:      asn1.RawValue{FullBytes: info},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 2}},
		Signature: asn1.BitString{Bytes: []byte{0x30, 6, 2, 1, 1, 2, 1, 1}, BitLength: 64},
	})
}

// withAttribute adds an attribute that crypto/x509 has no field for and signs the request anew.
func withAttribute(der []byte, key crypto.Signer, oid asn1.ObjectIdentifier, value []byte) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	type attribute struct {
		OID   asn1.ObjectIdentifier
		Value []asn1.RawValue `asn1:"set"`
	}
	var info struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	if _, err := asn1.Unmarshal(csr.RawTBSCertificateRequest, &info); err != nil {
		return nil, err
	}
	added, err := asn1.Marshal(attribute{oid, []asn1.RawValue{{FullBytes: value}}})
	if err != nil {
		return nil, err
	}
	info.Attributes = append(info.Attributes, asn1.RawValue{FullBytes: added})
	tbs, err := asn1.Marshal(info)
	if err != nil {
		return nil, err
	}
	digest := crypto.SHA256.New()
	digest.Write(tbs)
	signature, err := key.Sign(rand.Reader, digest.Sum(nil), crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(csrOuter{
		Info:      asn1.RawValue{FullBytes: tbs},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		Signature: asn1.BitString{Bytes: signature, BitLength: len(signature) * 8},
	})
}

// enrollment is an enrol request for der: POST /simpleenroll with the right media type.
func enrollment(label string, der []byte) request {
	return request{method: http.MethodPost, path: path(label, "simpleenroll"), contentType: typePKCS10, body: encode64(der)}
}

func reenrollment(der []byte, identity *tls.Certificate) request {
	return request{method: http.MethodPost, path: path("", "simplereenroll"), contentType: typePKCS10, body: encode64(der), certificate: identity}
}

// enrolled gets a certificate for a fresh device by code.
func (s *Session) enrolled(ctx context.Context, label string) (Identity, error) {
	code, err := s.freshCode(ctx, label)
	if err != nil {
		return Identity{}, err
	}
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return Identity{}, err
	}
	r := enrollment(label, der)
	r.code = &code
	cert, err := s.issue(ctx, r, key.Public())
	if err != nil {
		return Identity{}, err
	}
	return Identity{Device: code.Device, Certificate: identity(cert, key)}, nil
}

func identity(cert *x509.Certificate, key crypto.Signer) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// issue does r and wants a certificate for key.
func (s *Session) issue(ctx context.Context, r request, key crypto.PublicKey) (*x509.Certificate, error) {
	answer, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := expect(answer, http.StatusOK); err != nil {
		return nil, err
	}
	return issuedCertificate(answer, key)
}

// refused does r and wants a readable 4xx.
func (s *Session) refused(ctx context.Context, r request) error {
	answer, err := s.do(ctx, r)
	if err != nil {
		return err
	}
	return expect4xx(answer)
}

// stranger returns a certificate that no server knows, issued by itself or by a CA of its own.
func stranger(name string, selfSigned bool) (tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	issuer, issuerKey := template, key
	if !selfSigned {
		if issuerKey, err = newKey(); err != nil {
			return tls.Certificate{}, err
		}
		issuer = &x509.Certificate{Subject: pkix.Name{CommonName: "Unknown CA"}, SubjectKeyId: []byte{1, 2, 3}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return identity(leaf, key), nil
}

func pemCSR(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// sameKey compares public keys.
func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// keyOf returns the private key of an identity.
func keyOf(i Identity) (crypto.Signer, error) {
	key, ok := i.Certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key of %s cannot sign", i.Device)
	}
	return key, nil
}
