// Requests: read strictly, because anybody may send anything.

package ocsp

import (
	"crypto"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// MaxRequestBytes is the longest request worth reading: one that is signed, with a chain of certificates.
	MaxRequestBytes = 16 << 10
	// maxCertificates is how many certificates one request may name. RFC 5019 section 2.1.1 wants one; openssl sends several.
	maxCertificates = 16
	maxNonce        = 128 // RFC 9654 section 2.1
	maxSerial       = 20  // octets, RFC 5280 section 4.1.2.2
)

// Request is a request that could be read.
type Request struct {
	certificates []certID
	nonce        []byte // as it is echoed; nil: none
}

// Nonce tells whether the answer is for this request alone.
func (r *Request) Nonce() bool { return r.nonce != nil }

type certID struct {
	raw      []byte // DER, echoed
	hash     crypto.Hash
	nameHash []byte
	keyHash  []byte
	serial   *big.Int
}

var errMalformed = errors.New("not an OCSPRequest")

func malformed(what string) error { return fmt.Errorf("%w: %s", errMalformed, what) }

// ParseRequest reads an OCSPRequest. A signature on it is not looked at: nothing here depends on who asks.
func ParseRequest(der []byte) (*Request, error) {
	input := cryptobyte.String(der)
	var request, tbs cryptobyte.String
	if len(der) > MaxRequestBytes || !input.ReadASN1(&request, cbasn1.SEQUENCE) || !input.Empty() || !request.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, malformed("structure")
	}
	var signature, version, requestor, list, extensions cryptobyte.String
	var hasVersion, hasExtensions bool
	if !request.ReadOptionalASN1(&signature, nil, explicit(0)) || !request.Empty() {
		return nil, malformed("after the tbsRequest")
	}
	if !tbs.ReadOptionalASN1(&version, &hasVersion, explicit(0)) ||
		!tbs.ReadOptionalASN1(&requestor, nil, explicit(1)) ||
		!tbs.ReadASN1(&list, cbasn1.SEQUENCE) ||
		!tbs.ReadOptionalASN1(&extensions, &hasExtensions, explicit(2)) || !tbs.Empty() {
		return nil, malformed("tbsRequest")
	}
	if number := 0; hasVersion && (!version.ReadASN1Integer(&number) || !version.Empty() || number != 0) {
		return nil, malformed("version")
	}
	r := &Request{}
	for !list.Empty() {
		id, err := readOne(&list)
		if err != nil {
			return nil, err
		}
		if r.certificates = append(r.certificates, id); len(r.certificates) > maxCertificates {
			return nil, malformed("too many certificates")
		}
	}
	if len(r.certificates) == 0 {
		return nil, malformed("no certificate")
	}
	if hasExtensions {
		err := readExtensions(extensions, func(oid asn1.ObjectIdentifier, value cryptobyte.String) (known bool, err error) {
			if !oid.Equal(oidNonce) {
				return false, nil
			}
			if r.nonce != nil {
				return true, malformed("two nonces")
			}
			r.nonce, err = readNonce(value)
			return true, err
		})
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

func explicit(tag uint8) cbasn1.Tag { return cbasn1.Tag(tag).ContextSpecific().Constructed() }

func readOne(list *cryptobyte.String) (certID, error) {
	var one, element, id, algorithm, extensions cryptobyte.String
	var oid asn1.ObjectIdentifier
	var hasExtensions bool
	if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1Element(&element, cbasn1.SEQUENCE) ||
		!one.ReadOptionalASN1(&extensions, &hasExtensions, explicit(0)) || !one.Empty() {
		return certID{}, malformed("Request")
	}
	out := certID{raw: element, serial: new(big.Int)}
	var name, key, null cryptobyte.String
	if !element.ReadASN1(&id, cbasn1.SEQUENCE) || !id.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!id.ReadASN1(&name, cbasn1.OCTET_STRING) || !id.ReadASN1(&key, cbasn1.OCTET_STRING) || !id.ReadASN1Integer(out.serial) || !id.Empty() {
		return certID{}, malformed("CertID")
	}
	if !algorithm.ReadASN1ObjectIdentifier(&oid) || !algorithm.ReadOptionalASN1(&null, nil, cbasn1.NULL) || len(null) > 0 || !algorithm.Empty() {
		return certID{}, malformed("hashAlgorithm")
	}
	if len(out.serial.Bytes()) > maxSerial {
		return certID{}, malformed("serialNumber")
	}
	out.nameHash, out.keyHash = name, key
	for _, h := range certIDHashes {
		if !h.oid.Equal(oid) {
			continue
		}
		if out.hash = h.hash; len(name) != h.hash.Size() || len(key) != h.hash.Size() {
			return certID{}, malformed("length of a hash")
		}
	}
	if hasExtensions {
		err := readExtensions(extensions, func(asn1.ObjectIdentifier, cryptobyte.String) (bool, error) { return false, nil })
		if err != nil {
			return certID{}, err
		}
	}
	return out, nil
}

// readExtensions shows each extension to known. RFC 6960 section 4.4: "Unrecognized extensions MUST be ignored (unless they have the critical flag
// set and are not understood)".
func readExtensions(explicitly cryptobyte.String, known func(asn1.ObjectIdentifier, cryptobyte.String) (bool, error)) error {
	var list cryptobyte.String
	if !explicitly.ReadASN1(&list, cbasn1.SEQUENCE) || !explicitly.Empty() {
		return malformed("extensions")
	}
	for !list.Empty() {
		var extension, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		critical := false
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) ||
			extension.PeekASN1Tag(cbasn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical) ||
			!extension.ReadASN1(&value, cbasn1.OCTET_STRING) || !extension.Empty() {
			return malformed("extension")
		}
		understood, err := known(oid, value)
		if err != nil {
			return err
		}
		if critical && !understood {
			return malformed("critical extension " + oid.String())
		}
	}
	return nil
}

// readNonce returns the extension's value. RFC 9654 section 2.1: "Nonce ::= OCTET STRING(SIZE(1..128))"; another length is malformedRequest.
func readNonce(value cryptobyte.String) ([]byte, error) {
	whole := []byte(value)
	var nonce cryptobyte.String
	if !value.ReadASN1(&nonce, cbasn1.OCTET_STRING) || !value.Empty() || len(nonce) == 0 || len(nonce) > maxNonce {
		return nil, malformed("nonce")
	}
	return whole, nil
}
