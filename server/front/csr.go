// The shape of a PKCS#10 request (RFC 2986), checked on its bytes before anything dear is done with it. The walk sees
// what crypto/x509 does not show: attributes, repeated names, the encoding of a common name. Everything here costs
// microseconds; the signature is verified afterwards.

package front

import (
	"encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/natal-pki/natal/internal/wire"
)

// requestShape is what the walk found.
type requestShape struct {
	der          []byte
	challenge    string // value of challengePassword
	hasChallenge bool
}

var (
	oidCommonName        = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidChangeSubjectName = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 7, 36} // RFC 6402 section 2.8
)

func badCSR(detail string) *Error { return &Error{Kind: BadCSR, Detail: detail} }

// inspectCSR checks version, subject, key, attributes and signature algorithm of the request der.
func inspectCSR(der []byte) (requestShape, error) {
	shape := requestShape{der: der}
	input := cryptobyte.String(der)
	var outer, info, name, spki, algorithm cryptobyte.String
	var version int64
	var signature asn1.BitString
	malformed := badCSR("malformed PKCS#10 request")
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !input.Empty() ||
		!outer.ReadASN1(&info, cbasn1.SEQUENCE) || !outer.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!outer.ReadASN1BitString(&signature) || !outer.Empty() ||
		!info.ReadASN1Integer(&version) || !info.ReadASN1(&name, cbasn1.SEQUENCE) || !info.ReadASN1(&spki, cbasn1.SEQUENCE) {
		return shape, malformed
	}
	if version != 0 {
		return shape, badCSR("PKCS#10 version is not 1")
	}
	if err := checkSubject(name); err != nil {
		return shape, err
	}
	if err := checkKey(spki); err != nil {
		return shape, err
	}
	if err := checkSignatureAlgorithm(algorithm); err != nil {
		return shape, err
	}
	if info.Empty() { // some tools leave the empty set of attributes out
		return shape, nil
	}
	var attributes cryptobyte.String
	if !info.ReadASN1(&attributes, cbasn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() {
		return shape, malformed
	}
	return shape, shape.readAttributes(attributes)
}

// checkSubject wants at most one common name, in an encoding that everybody reads alike: brokers take the first of
// two, crypto/x509 the last.
func checkSubject(name cryptobyte.String) error {
	commonNames := 0
	for !name.Empty() {
		var rdn cryptobyte.String
		if !name.ReadASN1(&rdn, cbasn1.SET) || rdn.Empty() {
			return badCSR("malformed subject")
		}
		for !rdn.Empty() {
			var ava, value cryptobyte.String
			var oid asn1.ObjectIdentifier
			var tag cbasn1.Tag
			if !rdn.ReadASN1(&ava, cbasn1.SEQUENCE) || !ava.ReadASN1ObjectIdentifier(&oid) || !ava.ReadAnyASN1(&value, &tag) || !ava.Empty() {
				return badCSR("malformed subject")
			}
			if !oid.Equal(oidCommonName) {
				continue
			}
			commonNames++
			if tag != cbasn1.UTF8String && tag != cbasn1.PrintableString && tag != cbasn1.IA5String {
				return badCSR("the common name is neither UTF8String nor PrintableString")
			}
		}
	}
	if commonNames > 1 {
		return badCSR("the subject has more than one common name")
	}
	return nil
}

// signatureAlgorithms are the algorithms that a request may be signed with.
var signatureAlgorithms = []asn1.ObjectIdentifier{
	{1, 2, 840, 10045, 4, 3, 2}, {1, 2, 840, 10045, 4, 3, 3}, {1, 2, 840, 10045, 4, 3, 4}, // ECDSA with SHA-256, 384, 512
	{1, 2, 840, 113549, 1, 1, 11}, {1, 2, 840, 113549, 1, 1, 12}, {1, 2, 840, 113549, 1, 1, 13}, // PKCS#1 v1.5
	{1, 2, 840, 113549, 1, 1, 10}, // RSASSA-PSS
	{1, 3, 101, 112},              // Ed25519
}

func checkSignatureAlgorithm(algorithm cryptobyte.String) error {
	var oid asn1.ObjectIdentifier
	if !algorithm.ReadASN1ObjectIdentifier(&oid) {
		return badCSR("malformed signature algorithm")
	}
	for _, allowed := range signatureAlgorithms {
		if oid.Equal(allowed) {
			return nil
		}
	}
	return &Error{Kind: BadCSR, Reason: "signature_algorithm", Detail: "signature algorithm " + oid.String() + " is not accepted; use SHA-256 or better"}
}

// readAttributes refuses repeated attributes and extensions: two readers could choose different ones. Unknown attributes are ignored.
func (s *requestShape) readAttributes(attributes cryptobyte.String) error {
	var seen []asn1.ObjectIdentifier
	for !attributes.Empty() {
		var attribute, values, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var tag cbasn1.Tag
		if !attributes.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
			!attribute.ReadASN1(&values, cbasn1.SET) || !attribute.Empty() {
			return badCSR("malformed attributes")
		}
		if len(seen) == maxAttributes {
			return badCSR("too many attributes")
		}
		for _, other := range seen {
			if other.Equal(oid) {
				return badCSR("attribute " + oid.String() + " is there twice")
			}
		}
		seen = append(seen, oid)
		if oid.Equal(oidChangeSubjectName) {
			return &Error{Kind: BadCSR, Reason: "change_subject_name", Detail: "a device's name never changes: ChangeSubjectName is not supported"}
		}
		challenge, extensions := oid.Equal(wire.OIDChallengePassword), oid.Equal(wire.OIDExtensionRequest)
		if !challenge && !extensions {
			continue
		}
		if !values.ReadAnyASN1(&value, &tag) || !values.Empty() {
			return badCSR("attribute " + oid.String() + " must have one value")
		}
		if challenge {
			s.challenge, s.hasChallenge = string(value), true
		} else if err := checkExtensions(value, tag); err != nil {
			return err
		}
	}
	return nil
}

// maxAttributes and maxExtensions keep the search for repetitions short.
const (
	maxAttributes = 256
	maxExtensions = 64
)

func checkExtensions(list cryptobyte.String, tag cbasn1.Tag) error {
	if tag != cbasn1.SEQUENCE {
		return badCSR("malformed extension request")
	}
	var seen []asn1.ObjectIdentifier
	for !list.Empty() {
		var extension cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) {
			return badCSR("malformed extension request")
		}
		if len(seen) == maxExtensions {
			return badCSR("too many extensions")
		}
		for _, other := range seen {
			if other.Equal(oid) {
				return badCSR("extension " + oid.String() + " is there twice")
			}
		}
		seen = append(seen, oid)
	}
	return nil
}
