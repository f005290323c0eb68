// What the device asks for: its key, the server's wishes about it, and the PKCS#10 request that binds the key to
// the connection (RFC 7030 section 3.5).

package client

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/natal-pki/natal/internal/wire"
)

// Request says what the certificate should hold. The server decides: a name that is not the device's is refused. The zero
// Request means for Enroll the name Client.User, for Reenroll everything as in the certificate being renewed.
type Request struct {
	CommonName  string
	DNSNames    []string
	IPAddresses []net.IP
}

func (r Request) isZero() bool {
	return r.CommonName == "" && len(r.DNSNames) == 0 && len(r.IPAddresses) == 0
}

func (r Request) template() x509.CertificateRequest {
	return x509.CertificateRequest{Subject: pkix.Name{CommonName: r.CommonName}, DNSNames: r.DNSNames, IPAddresses: r.IPAddresses}
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// templateOf copies subject and subject alternative names byte for byte: they "MUST be identical" (RFC 7030 section 4.2.2).
func templateOf(current *tls.Certificate) (x509.CertificateRequest, error) {
	leaf := current.Leaf
	if leaf == nil {
		if len(current.Certificate) == 0 {
			return x509.CertificateRequest{}, errors.New("certificate to renew: it is empty")
		}
		var err error
		if leaf, err = x509.ParseCertificate(current.Certificate[0]); err != nil {
			return x509.CertificateRequest{}, fmt.Errorf("certificate to renew: %w", err)
		}
	}
	template := x509.CertificateRequest{RawSubject: leaf.RawSubject}
	for _, e := range leaf.Extensions {
		if e.Id.Equal(oidSubjectAltName) {
			template.ExtraExtensions = append(template.ExtraExtensions, e)
		}
	}
	return template, nil
}

// GenerateKey makes a private key: "ec:P-256", "ec:P-384", "ec:P-521", "rsa:2048", "rsa:3072" or "rsa:4096".
func GenerateKey(spec string) (crypto.Signer, error) {
	switch spec {
	case "ec:P-256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ec:P-384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ec:P-521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "rsa:2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa:3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "rsa:4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("key %q: it must be ec:P-256, ec:P-384, ec:P-521, rsa:2048, rsa:3072 or rsa:4096", spec)
}

// KeySpec is what GenerateKey would have to be given to make a key like this one; "unknown" for other kinds.
func KeySpec(public crypto.PublicKey) string {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return "ec:" + key.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("rsa:%d", key.N.BitLen())
	}
	return "unknown"
}

// Attributes are the server's wishes about a request (RFC 7030 section 4.5.2, RFC 9908 section 3.2), as far as the client knows them.
type Attributes struct {
	// KeySpecs are the keys that the server takes, "ec:P-384" or "rsa:4096" or, for any size, "ec" or "rsa"; empty is any key.
	KeySpecs []string

	// ChannelBinding asks for a challengePassword that binds the request to its TLS connection.
	ChannelBinding bool

	// SignatureAlgorithm is the one to sign the request with; zero leaves it to the key.
	SignatureAlgorithm x509.SignatureAlgorithm

	// Raw is the DER that the server sent, with what the client does not know; nil if it sent nothing.
	Raw []byte
}

var signatureAlgorithms = map[string]x509.SignatureAlgorithm{
	"1.2.840.10045.4.3.2":   x509.ECDSAWithSHA256,
	"1.2.840.10045.4.3.3":   x509.ECDSAWithSHA384,
	"1.2.840.10045.4.3.4":   x509.ECDSAWithSHA512,
	"1.2.840.113549.1.1.11": x509.SHA256WithRSA,
	"1.2.840.113549.1.1.12": x509.SHA384WithRSA,
	"1.2.840.113549.1.1.13": x509.SHA512WithRSA,
}

var curveSpecs = map[string]string{
	wire.OIDCurveP256.String(): "ec:P-256",
	wire.OIDCurveP384.String(): "ec:P-384",
	wire.OIDCurveP521.String(): "ec:P-521",
}

func parseAttributes(body []byte) (Attributes, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return Attributes{}, nil
	}
	der, err := wire.DecodeBase64(body)
	if err != nil {
		return Attributes{}, err
	}
	elements, err := wire.ParseCSRAttrs(der)
	if err != nil {
		return Attributes{}, err
	}
	a := Attributes{Raw: der}
	for _, e := range elements {
		a.learn(e)
	}
	return a, nil
}

func (a *Attributes) learn(e wire.AttrOrOID) {
	if bits, ok := e.RSABits(); ok {
		a.addKey(fmt.Sprintf("rsa:%d", bits))
	} else if curve, ok := e.Curve(); ok {
		if spec, known := curveSpecs[curve.String()]; known {
			a.addKey(spec)
		} else {
			a.addKey("ec:" + curve.String())
		}
	}
	if e.Values != nil {
		return
	}
	if e.IsOID(wire.OIDChallengePassword) {
		a.ChannelBinding = true
	}
	if e.IsOID(wire.OIDRSAEncryption) {
		a.addKey("rsa")
	}
	if e.IsOID(wire.OIDECPublicKey) {
		a.addKey("ec")
	}
	if spec, ok := curveSpecs[e.OID.String()]; ok {
		a.addKey(spec)
	}
	if algorithm, ok := signatureAlgorithms[e.OID.String()]; ok && a.SignatureAlgorithm == 0 {
		a.SignatureAlgorithm = algorithm
	}
}

func (a *Attributes) addKey(spec string) {
	if !slices.Contains(a.KeySpecs, spec) {
		a.KeySpecs = append(a.KeySpecs, spec)
	}
}

// Accepts reports whether the server takes a key of this spec.
func (a Attributes) Accepts(spec string) bool {
	kind, _, _ := strings.Cut(spec, ":")
	return len(a.KeySpecs) == 0 || slices.Contains(a.KeySpecs, spec) || slices.Contains(a.KeySpecs, kind)
}

// ChooseKey returns preferred if the server takes it, else the first of the server's that GenerateKey can make, else preferred.
func (a Attributes) ChooseKey(preferred string) string {
	if a.Accepts(preferred) {
		return preferred
	}
	for _, spec := range a.KeySpecs {
		switch spec {
		case "ec":
			return "ec:P-256"
		case "rsa":
			return "rsa:2048"
		case "ec:P-256", "ec:P-384", "ec:P-521", "rsa:2048", "rsa:3072", "rsa:4096":
			return spec
		}
	}
	return preferred
}

func (a Attributes) check(operation string, key crypto.Signer) error {
	if spec := KeySpec(key.Public()); !a.Accepts(spec) {
		return &Error{Operation: operation, Reason: "csrattrs",
			Message: fmt.Sprintf("the server wants a key of %s, this one is %s", strings.Join(a.KeySpecs, " or "), spec)}
	}
	return nil
}

// newRequest is the body of a POST: a signed PKCS#10 in base64.
func newRequest(key crypto.Signer, template x509.CertificateRequest, a Attributes, state tls.ConnectionState) ([]byte, error) {
	template.SignatureAlgorithm = 0
	if fits(a.SignatureAlgorithm, key) {
		template.SignatureAlgorithm = a.SignatureAlgorithm
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if a.ChannelBinding {
		binding, err := channelBinding(state)
		if err != nil {
			return nil, err
		}
		if der, err = addChallengePassword(der, binding, key); err != nil {
			return nil, fmt.Errorf("certificate request: %w", err)
		}
	}
	return wire.EncodeBase64(der), nil
}

func fits(algorithm x509.SignatureAlgorithm, key crypto.Signer) bool {
	switch algorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
		_, ok := key.Public().(*ecdsa.PublicKey)
		return ok
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA:
		_, ok := key.Public().(*rsa.PublicKey)
		return ok
	}
	return false
}

// channelBinding is the value that only the two ends of this connection know: tls-unique (RFC 5929), or with TLS
// 1.3, which has none, tls-exporter (RFC 9266).
func channelBinding(state tls.ConnectionState) (string, error) {
	value := state.TLSUnique
	if state.Version >= tls.VersionTLS13 {
		var err error
		if value, err = state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
			return "", fmt.Errorf("channel binding: %w", err)
		}
	}
	if len(value) == 0 {
		return "", errors.New("channel binding: this connection has none")
	}
	return base64.StdEncoding.EncodeToString(value), nil
}

type certificationRequest struct {
	Info      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

type certificationRequestInfo struct {
	Version    int
	Subject    asn1.RawValue
	PublicKey  asn1.RawValue
	Attributes asn1.RawValue `asn1:"tag:0"`
}

var signatureHashes = map[x509.SignatureAlgorithm]crypto.Hash{
	x509.ECDSAWithSHA256: crypto.SHA256, x509.ECDSAWithSHA384: crypto.SHA384, x509.ECDSAWithSHA512: crypto.SHA512,
	x509.SHA256WithRSA: crypto.SHA256, x509.SHA384WithRSA: crypto.SHA384, x509.SHA512WithRSA: crypto.SHA512,
	x509.PureEd25519: 0,
}

// addChallengePassword adds the attribute to a request and signs it anew: crypto/x509 cannot write attributes whose
// value is a plain string.
func addChallengePassword(der []byte, value string, key crypto.Signer) ([]byte, error) {
	parsed, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	hash, ok := signatureHashes[parsed.SignatureAlgorithm]
	if !ok {
		return nil, fmt.Errorf("signature algorithm %s", parsed.SignatureAlgorithm)
	}
	var outer certificationRequest
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, err
	}
	var info certificationRequestInfo
	if _, err := asn1.Unmarshal(outer.Info.FullBytes, &info); err != nil {
		return nil, err
	}
	attribute, err := asn1.Marshal(struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}{wire.OIDChallengePassword, []asn1.RawValue{{Tag: asn1.TagPrintableString, Bytes: []byte(value)}}})
	if err != nil {
		return nil, err
	}
	attributes := [][]byte{attribute}
	if len(info.Attributes.Bytes) > 0 {
		attributes = append(attributes, info.Attributes.Bytes) // crypto/x509 writes one at most
		slices.SortFunc(attributes, bytes.Compare)
	}
	info.Attributes = asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: slices.Concat(attributes...)}
	tbs, err := asn1.Marshal(info)
	if err != nil {
		return nil, err
	}
	digest := tbs
	if hash != 0 {
		h := hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	signature, err := key.Sign(rand.Reader, digest, hash)
	if err != nil {
		return nil, err
	}
	outer.Info = asn1.RawValue{FullBytes: tbs}
	outer.Signature = asn1.BitString{Bytes: signature, BitLength: len(signature) * 8}
	return asn1.Marshal(outer)
}
