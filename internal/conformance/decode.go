// Decoding of answers, by the letter: what a strict peer needs to find there.

package conformance

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
)

// decode64 wants base64 in lines of at most 76 characters and a final line end.
func decode64(body []byte) ([]byte, error) {
	if !bytes.HasSuffix(body, []byte("\n")) {
		return nil, errors.New("the body does not end with a line end")
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(body), "\n"), "\n") {
		if n := len(strings.TrimSuffix(line, "\r")); n > 76 {
			return nil, fmt.Errorf("a line of %d characters", n)
		}
	}
	der, err := base64.StdEncoding.Strict().DecodeString(string(body))
	if err != nil {
		return nil, err
	}
	return der, nil
}

// cmsCertificates decodes a certs-only message (RFC 5272 section 4.1) and wants it to be DER.
func cmsCertificates(der []byte) ([]*x509.Certificate, error) {
	var outer struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("CMS ContentInfo: %d bytes left, %v", len(rest), err)
	}
	if !outer.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}) {
		return nil, fmt.Errorf("CMS content type %v", outer.Type)
	}
	var signed struct {
		Version int
		Digests asn1.RawValue
		Content struct {
			Type asn1.ObjectIdentifier
			Rest asn1.RawValue `asn1:"optional"`
		}
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		CRLs         asn1.RawValue `asn1:"optional,tag:1"`
		Signers      asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(outer.Content.Bytes, &signed); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("CMS SignedData: %d bytes left, %v", len(rest), err)
	}
	switch {
	case signed.Version != 1:
		return nil, fmt.Errorf("CMS version %d", signed.Version)
	case len(signed.Signers.Bytes) != 0 || signed.Signers.Tag != asn1.TagSet:
		return nil, errors.New("CMS has signers")
	case !signed.Content.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}) || len(signed.Content.Rest.FullBytes) != 0:
		return nil, errors.New("CMS has content")
	}
	var certs []*x509.Certificate
	var before []byte
	for rest := signed.Certificates.Bytes; len(rest) > 0; {
		var raw asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &raw); err != nil {
			return nil, err
		}
		if bytes.Compare(before, raw.FullBytes) > 0 {
			return nil, errors.New("CMS certificates are not in the order of DER")
		}
		before = raw.FullBytes
		cert, err := x509.ParseCertificate(raw.FullBytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("CMS has no certificate")
	}
	return certs, nil
}

// mediaType compares the type and each parameter that is there.
func mediaType(r *response, want string, params map[string]string) error {
	got, given, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	if err != nil || got != want {
		return fmt.Errorf("%s: Content-Type %q, want %s", r.path, r.header.Get("Content-Type"), want)
	}
	for name, value := range params {
		if given[name] != value {
			return fmt.Errorf("%s: Content-Type %q, want %s=%s", r.path, r.header.Get("Content-Type"), name, value)
		}
	}
	return nil
}

// caCerts fetches and decodes /cacerts of a label.
func (s *Session) caCerts(ctx context.Context, label string) ([]*x509.Certificate, error) {
	r, err := s.get(ctx, path(label, "cacerts"))
	if err != nil {
		return nil, err
	}
	if err := expect(r, http.StatusOK); err != nil {
		return nil, err
	}
	if err := mediaType(r, "application/pkcs7-mime", nil); err != nil {
		return nil, err
	}
	der, err := decode64(r.body)
	if err != nil {
		return nil, err
	}
	return cmsCertificates(der)
}

// issuedCertificate decodes the answer to an enrollment: exactly one certificate, for key (RFC 7030 section 4.2.3).
func issuedCertificate(r *response, key crypto.PublicKey) (*x509.Certificate, error) {
	if err := mediaType(r, "application/pkcs7-mime", map[string]string{"smime-type": "certs-only"}); err != nil {
		return nil, err
	}
	der, err := decode64(r.body)
	if err != nil {
		return nil, err
	}
	certs, err := cmsCertificates(der)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("%d certificates in the answer, want the issued one only", len(certs))
	}
	if !sameKey(certs[0].PublicKey, key) {
		return nil, errors.New("the certificate is for another key")
	}
	return certs[0], nil
}

// verifyWith builds a chain from leaf to a self-signed certificate of certs, using only certs.
func verifyWith(leaf *x509.Certificate, certs []*x509.Certificate) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range certs {
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			roots.AddCert(c)
		} else {
			intermediates.AddCert(c)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime: leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2),
	})
	return err
}

// attrOrOID is an element of CSR attributes; Values is nil for a bare OID.
type attrOrOID struct {
	OID    asn1.ObjectIdentifier
	Values []asn1.RawValue
}

// csrAttributes decodes SEQUENCE OF AttrOrOID (RFC 7030 section 4.5.2).
func csrAttributes(der []byte) ([]attrOrOID, error) {
	var elements []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &elements); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("CsrAttrs: %d bytes left, %v", len(rest), err)
	}
	var attrs []attrOrOID
	for _, e := range elements {
		var oid asn1.ObjectIdentifier
		if e.Tag == asn1.TagOID {
			if _, err := asn1.Unmarshal(e.FullBytes, &oid); err != nil {
				return nil, err
			}
			attrs = append(attrs, attrOrOID{OID: oid})
			continue
		}
		var a struct {
			OID    asn1.ObjectIdentifier
			Values []asn1.RawValue `asn1:"set"`
		}
		if rest, err := asn1.Unmarshal(e.FullBytes, &a); err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("attribute: %d bytes left, %v", len(rest), err)
		}
		if len(a.Values) == 0 {
			return nil, fmt.Errorf("attribute %v has no value", a.OID)
		}
		attrs = append(attrs, attrOrOID(a))
	}
	return attrs, nil
}

func pemCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
