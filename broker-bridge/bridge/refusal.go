// The words for everything that keeps a trust set or a device from reaching the broker. They are
// metric labels and go to the server with the acknowledgement, so they never change their meaning.

package bridge

import "fmt"

// Refusal is why something the server offered was not taken. Code is one of the Code constants, Detail
// names the thing, Err is the cause if there is one.
type Refusal struct {
	Code   string
	Detail string
	Err    error
}

func (r *Refusal) Error() string {
	s := r.Code + ": " + r.Detail
	if r.Err != nil {
		s += ": " + r.Err.Error()
	}
	return s
}

func (r *Refusal) Unwrap() error { return r.Err }

// Codes of a Refusal, and values of the label "code" of bridge_validation_failures_total.
const (
	CodeEncoding       = "bad_encoding"              // not PEM or DER of the kind it should be
	CodeEmpty          = "empty_set"                 // no anchor or no issuing CA: would lock every device out
	CodeAnchor         = "anchor_invalid"            // not a self-signed CA certificate
	CodeAnchorAdded    = "anchor_added"              // a root that was not there before waits for approval
	CodeShrunk         = "trust_shrunk"              // an anchor or issuing CA went away and waits for approval
	CodeIssuer         = "issuer_invalid"            // not a CA that may sign certificates and CRLs
	CodeUntrusted      = "issuer_untrusted"          // does not chain to an anchor of the set
	CodeCRLMissing     = "crl_missing"               // an issuing CA without CRL
	CodeCRLExtra       = "crl_extra"                 // two CRLs for one key, or one for no issuing CA of the set
	CodeCRLMismatch    = "crl_mismatch"              // the bytes are not those that the set announces
	CodeCRLSignature   = "crl_signature"             // not signed by the key it is for
	CodeCRLDelta       = "crl_delta"                 // a delta CRL: brokers ignore them and accept revoked certificates
	CodeCRLCritical    = "crl_critical_extension"    // indirect, partitioned or unknown: brokers refuse everybody
	CodeCRLReplayed    = "crl_replayed"              // a CRL number below the one in place
	CodeCRLReused      = "crl_number_reused"         // the number in place with another content
	CodeCRLBackwards   = "crl_this_update_went_back" // OpenSSL prefers the later thisUpdate, whatever the number
	CodeCRLFuture      = "crl_not_yet_valid"         // by this host's clock; brokers refuse everybody
	CodeCRLExpired     = "crl_expired"               // expired, or too close to it to be worth loading
	CodeCRLSize        = "crl_too_large"             // each connection costs the broker time in proportion
	CodeCanaryMissing  = "canary_missing"            // the server gave no certificate to prove this issuing CA with
	CodeCanaryUnlisted = "canary_not_listed"         // no revoked canary stands in the CRL: the set cannot be proven
	CodeDeviceID       = "device_id"                 // an id that must not stand in an ACL
	CodeProof          = "proof_failed"              // the broker did not do what the set says; rolled back
)

// codes is every Code, so that each series exists from the start.
var codes = []string{
	CodeEncoding, CodeEmpty, CodeAnchor, CodeAnchorAdded, CodeShrunk, CodeIssuer, CodeUntrusted, CodeCRLMissing, CodeCRLExtra,
	CodeCRLMismatch, CodeCRLSignature, CodeCRLDelta, CodeCRLCritical, CodeCRLReplayed, CodeCRLReused, CodeCRLBackwards,
	CodeCRLFuture, CodeCRLExpired, CodeCRLSize, CodeCanaryMissing, CodeCanaryUnlisted, CodeDeviceID, CodeProof,
}

func refuse(code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Detail: fmt.Sprintf(format, args...)}
}

func refuseErr(code string, err error, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Detail: fmt.Sprintf(format, args...), Err: err}
}
