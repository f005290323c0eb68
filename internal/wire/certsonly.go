// A certs-only message is a CMS SignedData without content and without signers, used as a box for certificates.
// It is made and read by hand: the general CMS packages are large, and one of them can be crashed by four bytes.

package wire

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
)

// Limits on what ParseCertsOnly reads. A real answer of /cacerts has at most a dozen certificates.
const (
	maxCertsOnlyBytes = 1 << 20
	maxCertificates   = 64
)

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
)

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,tag:0"`
}

type encapContentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"optional,explicit,tag:0"`
}

type signedData struct {
	Version          int
	DigestAlgorithms asn1.RawValue
	EncapContentInfo encapContentInfo
	Certificates     asn1.RawValue `asn1:"optional,tag:0"`
	CRLs             asn1.RawValue `asn1:"optional,tag:1"`
	SignerInfos      asn1.RawValue
}

// CertsOnly returns the DER of a certs-only message with certs in the order that DER asks of a SET OF (so the order
// given does not matter).
func CertsOnly(certs ...*x509.Certificate) ([]byte, error) {
	if len(certs) == 0 || len(certs) > maxCertificates {
		return nil, fmt.Errorf("certs-only message of %d certificates", len(certs))
	}
	raw := make([][]byte, len(certs))
	for i, c := range certs {
		if c == nil || len(c.Raw) == 0 {
			return nil, errors.New("certs-only message of an empty certificate")
		}
		raw[i] = c.Raw
	}
	slices.SortFunc(raw, bytes.Compare)
	emptySet := asn1.RawValue{Tag: asn1.TagSet, IsCompound: true}
	inner, err := asn1.Marshal(signedData{
		Version:          1,
		DigestAlgorithms: emptySet,
		EncapContentInfo: encapContentInfo{Type: oidData},
		Certificates:     asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: slices.Concat(raw...)},
		SignerInfos:      emptySet,
	})
	if err != nil {
		return nil, fmt.Errorf("certs-only message: %w", err)
	}
	return asn1.Marshal(struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{oidSignedData, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner}})
}

// ParseCertsOnly returns the certificates of a certs-only message in the order in which they stand in it. It refuses
// signers, content, certificates of other kinds than X.509, BER, bytes after the end, and more than 64 certificates or 1 MiB.
// Nothing about the certificates is verified.
func ParseCertsOnly(der []byte) ([]*x509.Certificate, error) {
	if len(der) > maxCertsOnlyBytes {
		return nil, fmt.Errorf("certs-only message: %d bytes, at most %d allowed", len(der), maxCertsOnlyBytes)
	}
	var outer contentInfo
	if err := unmarshalAll(der, &outer); err != nil {
		return nil, fmt.Errorf("certs-only message: %w", err)
	}
	if !outer.Type.Equal(oidSignedData) {
		return nil, errors.New("certs-only message: not SignedData")
	}
	var sd signedData
	if err := unmarshalAll(outer.Content.Bytes, &sd); err != nil {
		return nil, fmt.Errorf("certs-only message: %w", err)
	}
	switch {
	case sd.Version < 1 || sd.Version > 5:
		return nil, fmt.Errorf("certs-only message: version %d", sd.Version)
	case !isSet(sd.DigestAlgorithms) || !isSet(sd.SignerInfos):
		return nil, errors.New("certs-only message: malformed SignedData")
	case len(sd.SignerInfos.Bytes) != 0:
		return nil, errors.New("certs-only message: it is signed")
	case !sd.EncapContentInfo.Type.Equal(oidData) || len(sd.EncapContentInfo.Content.FullBytes) != 0:
		return nil, errors.New("certs-only message: it has content")
	}
	return parseCertificates(sd.Certificates.Bytes)
}

func parseCertificates(der []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(der) > 0 {
		if len(certs) == maxCertificates {
			return nil, fmt.Errorf("certs-only message: more than %d certificates", maxCertificates)
		}
		var raw asn1.RawValue
		rest, err := asn1.Unmarshal(der, &raw)
		if err != nil {
			return nil, fmt.Errorf("certs-only message: certificate %d: %w", len(certs)+1, err)
		}
		cert, err := x509.ParseCertificate(raw.FullBytes)
		if err != nil {
			return nil, fmt.Errorf("certs-only message: certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
		der = rest
	}
	if len(certs) == 0 {
		return nil, errors.New("certs-only message: no certificate in it")
	}
	return certs, nil
}

func isSet(v asn1.RawValue) bool {
	return v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSet && v.IsCompound
}

func unmarshalAll(der []byte, into any) error {
	rest, err := asn1.Unmarshal(der, into)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes after the end", len(rest))
	}
	return nil
}
