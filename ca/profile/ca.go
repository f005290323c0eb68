// Profiles of CAs: what `ca create` and `ca sign` put into a certificate that signs others.

package profile

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"strings"
	"time"
)

// CAInput is all that the certificate of a CA may depend on.
type CAInput struct {
	Subject    pkix.Name
	PublicKey  crypto.PublicKey
	Issuer     *x509.Certificate // nil: a root, which signs itself
	Signature  x509.SignatureAlgorithm
	PublicURL  string // of the issuer
	IssuerName string
	CRLPath    string // as in Input
	Now        time.Time
}

// BuildCA applies a profile of use ca. The error is a *Violation.
func (p *Profile) BuildCA(in CAInput) (*x509.Certificate, error) {
	violation := func(rule, format string, args ...any) error {
		b := builder{}
		b.fail(rule, format, args...)
		return &Violation{b.findings[0]}
	}
	spec, err := KeySpec(in.PublicKey)
	switch {
	case p.file.Use != UseCA:
		return nil, violation("profile_use", "profile %s is for use %s, not ca", p.file.Name, p.file.Use)
	case err != nil:
		return nil, violation("key_type", "%v", err)
	case !slices.Contains(p.file.Keys, spec):
		return nil, violation("key_type", "%s is not one of %s", spec, strings.Join(p.file.Keys, ", "))
	case p.signature != nil && !slices.Contains(p.signature, in.Signature):
		return nil, violation("signature", "the issuer signs with %s, the profile wants %s", in.Signature, strings.Join(p.file.Signature, " or "))
	}
	// Times and addresses are those of any certificate; a root has no issuer to outlive.
	b := &builder{Profile: p, in: Input{PublicKey: in.PublicKey, Issuer: in.Issuer, PublicURL: in.PublicURL, IssuerName: in.IssuerName, CRLPath: in.CRLPath, Now: in.Now}, template: &x509.Certificate{}}
	if in.Issuer == nil {
		b.in.Issuer = &x509.Certificate{NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}
	}
	if b.validity(); !b.findings[0].OK {
		return nil, &Violation{b.findings[0]}
	}
	if in.Issuer != nil {
		b.addresses()
	}
	t := b.template
	t.Subject, t.IsCA, t.BasicConstraintsValid = in.Subject, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	t.ExtKeyUsage, t.UnknownExtKeyUsage, t.Policies = p.ekus, p.unknownEKUs, p.policies
	p.limit(t, in.Issuer == nil)
	t.SubjectKeyId, err = KeyID(in.PublicKey)
	return t, err
}

// limit sets the path length and the name constraints. A root has a path length only if the file says so.
func (p *Profile) limit(t *x509.Certificate, root bool) {
	length := 0
	if p.file.PathLength != nil {
		length = *p.file.PathLength
	}
	if t.MaxPathLen = length; length == 0 {
		t.MaxPathLenZero = true
	}
	if root && p.file.PathLength == nil {
		t.MaxPathLen, t.MaxPathLenZero = -1, false
	}
	in, out := p.file.Constraints.Permitted, p.file.Constraints.Excluded
	t.PermittedDNSDomainsCritical = !p.file.Constraints.empty()
	t.PermittedDNSDomains, t.PermittedIPRanges, t.PermittedEmailAddresses, t.PermittedURIDomains = in.DNS, p.permittedIPs, in.Email, in.URI
	t.ExcludedDNSDomains, t.ExcludedIPRanges, t.ExcludedEmailAddresses, t.ExcludedURIDomains = out.DNS, p.excludedIPs, out.Email, out.URI
}
