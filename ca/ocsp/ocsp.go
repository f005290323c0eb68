// Package ocsp is RFC 6960 on the wire, in the profile of RFC 5019: requests in, signed answers out. It knows no HTTP, no database and
// no CA: who may sign and what a certificate's state is, its caller says.
//
// The responses are encoded here because nonces belong into responseExtensions (RFC 9654), which golang.org/x/crypto/ocsp cannot write.
//
//	ocsp.go       Issuer, Status, the error answers
//	request.go    DER -> Request, strictly
//	response.go   Signer, and the encoding of what it signs
//	responder.go  Responder: from a request to an answer, with the answers that need not be signed again
package ocsp

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // the hash of most requests (RFC 5019 section 2.1.1)
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidBasic = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
)

// certIDHashes are the hashes by which a request may name an issuer.
var certIDHashes = []struct {
	oid  asn1.ObjectIdentifier
	hash crypto.Hash
}{
	{asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, crypto.SHA1},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA256},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA384},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, crypto.SHA512},
}

// Issuer is a CA as requests name it: by hashes of its name and its key.
type Issuer struct {
	Name        string // of the CA, in records
	Certificate *x509.Certificate
	hashes      map[crypto.Hash]issuerHash
}

type issuerHash struct{ name, key []byte }

// NewIssuer computes the hashes of a CA.
func NewIssuer(name string, certificate *x509.Certificate) (*Issuer, error) {
	key, err := publicKeyBits(certificate)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", name, err)
	}
	i := &Issuer{Name: name, Certificate: certificate, hashes: map[crypto.Hash]issuerHash{}}
	for _, h := range certIDHashes {
		i.hashes[h.hash] = issuerHash{digest(h.hash, certificate.RawSubject), digest(h.hash, key)}
	}
	return i, nil
}

func (i *Issuer) is(id *certID) bool {
	h, known := i.hashes[id.hash]
	return known && bytes.Equal(h.name, id.nameHash) && bytes.Equal(h.key, id.keyHash)
}

func digest(hash crypto.Hash, data []byte) []byte {
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}

// publicKeyBits is the content of the BIT STRING subjectPublicKey: what key hashes are made of (RFC 6960 section 4.1.1).
func publicKeyBits(c *x509.Certificate) ([]byte, error) {
	var spki, algorithm cryptobyte.String
	var bits asn1.BitString
	input := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	if !input.ReadASN1(&spki, cbasn1.SEQUENCE) || !spki.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !spki.ReadASN1BitString(&bits) {
		return nil, fmt.Errorf("the public key of %s cannot be read", c.Subject)
	}
	return bits.RightAlign(), nil
}

// State is what an answer says about a certificate.
type State int

// States of RFC 6960 section 2.2.
const (
	Unknown State = iota // never issued, not issued yet, ended, or another CA's
	Good                 // issued, valid, neither revoked nor held
	Revoked              // for ever, or held (reason certificateHold)
)

func (s State) String() string { return [...]string{"unknown", "good", "revoked"}[s] }

// Status is the state of one certificate. Two that are equal give the same answer.
type Status struct {
	State     State
	RevokedAt int64 // Unix seconds
	Reason    int   // CRLReason of RFC 5280; 0 is left out, as in CRLs
	NotAfter  int64 // Unix seconds; of a good one: no answer reaches beyond it
}

// Outcomes of requests: the states, and the errors of RFC 6960 section 4.2.1.
const (
	OutcomeGood         = "good"
	OutcomeRevoked      = "revoked"
	OutcomeUnknown      = "unknown"
	OutcomeMalformed    = "malformed_request"
	OutcomeInternal     = "internal_error"
	OutcomeTryLater     = "try_later"
	OutcomeUnauthorized = "unauthorized"
)

// Outcomes are all of them, for whoever counts.
var Outcomes = []string{OutcomeGood, OutcomeRevoked, OutcomeUnknown, OutcomeMalformed, OutcomeInternal, OutcomeTryLater, OutcomeUnauthorized}

var errorStatus = map[string]byte{OutcomeMalformed: 1, OutcomeInternal: 2, OutcomeTryLater: 3, OutcomeUnauthorized: 6}

// Failure is the unsigned answer that an error outcome gives: OCSPResponse { responseStatus }.
func Failure(outcome string) Response {
	return Response{Outcome: outcome, DER: []byte{0x30, 0x03, 0x0a, 0x01, errorStatus[outcome]}}
}
