// CSR attributes tell a client what its request should hold: key type, channel binding, extensions. "The client
// MUST ignore any OID or attribute it does not recognize" (RFC 7030 section 4.5.2), so unknown ones are kept as they are.

package wire

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
)

// maxCSRAttrs bounds the elements that ParseCSRAttrs reads.
const maxCSRAttrs = 256

// OIDs that occur in CSR attributes.
var (
	OIDChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	OIDExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	OIDECPublicKey       = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	OIDRSAEncryption     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	OIDCurveP256         = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	OIDCurveP384         = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	OIDCurveP521         = asn1.ObjectIdentifier{1, 3, 132, 0, 35}
	OIDECDSAWithSHA256   = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	OIDECDSAWithSHA384   = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
)

// AttrOrOID is one element: a bare OID (Values is nil) or an attribute (Values is not nil).
type AttrOrOID struct {
	OID    asn1.ObjectIdentifier // nil in what was parsed if an arc does not fit in 31 bits
	Values [][]byte              // the DER of each value

	rawOID []byte // DER of an OID that OID cannot hold
}

// IsOID reports whether e is the bare OID oid.
func (e AttrOrOID) IsOID(oid asn1.ObjectIdentifier) bool {
	return e.Values == nil && e.OID.Equal(oid)
}

// ECKey asks for an EC key on a curve: the attribute ecPublicKey {curve}.
func ECKey(curve asn1.ObjectIdentifier) AttrOrOID {
	der, err := asn1.Marshal(curve)
	if err != nil {
		panic("wire: curve is not an OID: " + err.Error())
	}
	return AttrOrOID{OID: OIDECPublicKey, Values: [][]byte{der}}
}

// RSAKey asks for an RSA key of so many bits: the attribute rsaEncryption {INTEGER} (RFC 9908 section 3.2).
func RSAKey(bits int) AttrOrOID {
	der, err := asn1.Marshal(bits)
	if err != nil {
		panic("wire: " + err.Error())
	}
	return AttrOrOID{OID: OIDRSAEncryption, Values: [][]byte{der}}
}

// Curve returns the curve that e asks for, if it is the attribute ecPublicKey with one OID.
func (e AttrOrOID) Curve() (asn1.ObjectIdentifier, bool) {
	var curve asn1.ObjectIdentifier
	if !e.OID.Equal(OIDECPublicKey) || len(e.Values) != 1 || unmarshalAll(e.Values[0], &curve) != nil {
		return nil, false
	}
	return curve, true
}

// RSABits returns the key size that e asks for, if it is the attribute rsaEncryption with one positive INTEGER.
func (e AttrOrOID) RSABits() (int, bool) {
	var bits int
	if !e.OID.Equal(OIDRSAEncryption) || len(e.Values) != 1 || unmarshalAll(e.Values[0], &bits) != nil || bits <= 0 {
		return 0, false
	}
	return bits, true
}

// EncodeCSRAttrs returns the DER of SEQUENCE OF AttrOrOID; 30 00 when there is none. Elements and values keep their order.
func EncodeCSRAttrs(elements []AttrOrOID) ([]byte, error) {
	var body []byte
	for i, e := range elements {
		der, err := e.encode()
		if err != nil {
			return nil, fmt.Errorf("CSR attribute %d: %w", i+1, err)
		}
		body = append(body, der...)
	}
	return asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
}

func (e AttrOrOID) encode() ([]byte, error) {
	oid := e.rawOID
	if oid == nil {
		var err error
		if oid, err = asn1.Marshal(e.OID); err != nil {
			return nil, err
		}
	}
	if e.Values == nil {
		return oid, nil
	}
	set, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: slices.Concat(e.Values...)})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: slices.Concat(oid, set)})
}

// ParseCSRAttrs reads the DER of SEQUENCE OF AttrOrOID. What it accepts, EncodeCSRAttrs gives back byte for byte.
func ParseCSRAttrs(der []byte) ([]AttrOrOID, error) {
	var seq asn1.RawValue
	if err := unmarshalAll(der, &seq); err != nil {
		return nil, fmt.Errorf("CSR attributes: %w", err)
	}
	if !isUniversal(seq, asn1.TagSequence, true) {
		return nil, errors.New("CSR attributes: not a SEQUENCE")
	}
	raws, err := split(seq.Bytes)
	if err != nil {
		return nil, fmt.Errorf("CSR attributes: %w", err)
	}
	elements := make([]AttrOrOID, 0, len(raws))
	for i, raw := range raws {
		e, err := parseAttrOrOID(raw)
		if err != nil {
			return nil, fmt.Errorf("CSR attribute %d: %w", i+1, err)
		}
		elements = append(elements, e)
	}
	return elements, nil
}

func parseAttrOrOID(raw asn1.RawValue) (AttrOrOID, error) {
	if isUniversal(raw, asn1.TagOID, false) {
		return newAttrOrOID(raw, nil), nil
	}
	if !isUniversal(raw, asn1.TagSequence, true) {
		return AttrOrOID{}, errors.New("neither an OID nor an attribute")
	}
	parts, err := split(raw.Bytes)
	if err != nil {
		return AttrOrOID{}, err
	}
	if len(parts) != 2 || !isUniversal(parts[0], asn1.TagOID, false) || !isSet(parts[1]) {
		return AttrOrOID{}, errors.New("malformed attribute")
	}
	values, err := split(parts[1].Bytes)
	if err != nil {
		return AttrOrOID{}, err
	}
	ders := make([][]byte, len(values))
	for i, v := range values {
		ders[i] = v.FullBytes
	}
	return newAttrOrOID(parts[0], ders), nil
}

// newAttrOrOID keeps the OID as bytes when encoding/asn1 cannot hold it (arcs made of UUIDs are legal).
func newAttrOrOID(oid asn1.RawValue, values [][]byte) AttrOrOID {
	e := AttrOrOID{Values: values}
	if err := unmarshalAll(oid.FullBytes, &e.OID); err != nil {
		e.OID, e.rawOID = nil, oid.FullBytes
	}
	return e
}

func split(der []byte) ([]asn1.RawValue, error) {
	raws := []asn1.RawValue{}
	for len(der) > 0 {
		if len(raws) == maxCSRAttrs {
			return nil, fmt.Errorf("more than %d elements", maxCSRAttrs)
		}
		var raw asn1.RawValue
		rest, err := asn1.Unmarshal(der, &raw)
		if err != nil {
			return nil, err
		}
		raws = append(raws, raw)
		der = rest
	}
	return raws, nil
}

func isUniversal(v asn1.RawValue, tag int, compound bool) bool {
	return v.Class == asn1.ClassUniversal && v.Tag == tag && v.IsCompound == compound
}
