// What an enrollment finds out about a request before it asks who sent it; also for those who only want to know.

package front

import "crypto/x509"

// Check is one of the looks at a request, with the reason word that it refuses by.
type Check struct {
	Reason string
	OK     bool
	Detail string
}

// formChecks are the looks, in their order, and what it means that a request got past them.
var formChecks = []Check{
	{string(BadCSR), true, "a PKCS#10 request that everybody reads alike"},
	{string(BadKey), true, "not a key that is weak whatever the profile"},
	{"signature_algorithm", true, "signed with SHA-256 or better"},
	{"change_subject_name", true, "no change of name asked for"},
	{string(BadSignature), true, "signed by its own key"},
}

// Inspect looks at the DER of a request as an enrollment does. The request is nil if it cannot be read at all.
func Inspect(der []byte) (*x509.CertificateRequest, []Check) {
	checks := append([]Check(nil), formChecks...)
	fail := func(err error) []Check {
		e, ok := err.(*Error)
		if !ok {
			e = &Error{Kind: BadCSR, Detail: "malformed PKCS#10 request"}
		}
		reason := e.Reason
		if reason == "" {
			reason = string(e.Kind)
		}
		for i, c := range checks {
			if c.Reason == reason {
				checks[i].OK, checks[i].Detail = false, e.Detail
				checks[0], checks[i] = checks[i], checks[0] // what refuses comes first
			}
		}
		return checks
	}
	csr, unreadable := x509.ParseCertificateRequest(der)
	if _, err := inspectCSR(der); err != nil {
		return csr, fail(err)
	}
	if unreadable != nil || csr.CheckSignature() != nil {
		return csr, fail(whyRefused(der))
	}
	return csr, checks
}
