// What the certificates of CAs look like: by a profile of use ca, or as they are made when none is named.

package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca/lint"
	"github.com/natal-pki/natal/ca/profile"
)

// caProfile finds the profile of a CA to be made; nil when none is named.
func (a *Authorities) caProfile(ctx context.Context, name string, years int) (*profile.Profile, error) {
	if name == "" {
		return nil, nil
	}
	if years != 0 {
		return nil, refuse(Invalid, "ca_years", "profile %s says how long the certificate is valid: give no years", name)
	}
	if err := a.current(ctx); err != nil {
		return nil, err
	}
	p, err := a.Profile(ctx, name)
	if err == nil && p.Use() != profile.UseCA {
		err = refuse(Invalid, "profile_use", "profile %s is for use %s, not ca", name, p.Use())
	}
	return p, err
}

// fits refuses, before a key is made, what the profile would refuse.
func fits(p *profile.Profile, req *CreateRequest) error {
	switch {
	case p == nil:
		return nil
	case req.External:
		return refuse(Invalid, "profile_use", "what a CA that is signed elsewhere looks like is decided there: give no profile")
	case !slices.Contains(p.KeySpecs(), req.Key):
		return refuse(ProfileViolation, "key_type", "%s is not one of %s", req.Key, strings.Join(p.KeySpecs(), ", "))
	}
	return nil
}

// prepareCA encodes a CA certificate signed by au, or by itself for a root. Without a profile, a CA below a root issues leaves only (pathlen 0).
func (a *Authorities) prepareCA(au *authority, subject pkix.Name, public crypto.PublicKey, years int, root bool, p *profile.Profile) (*prepared, error) {
	now := a.clock.Now()
	serial, err := newSerial()
	if err != nil {
		return nil, unavailable("serial number", err)
	}
	var template *x509.Certificate
	if p == nil {
		template, err = plainCA(au, subject, public, years, serial, root, now)
	} else {
		template, err = profiledCA(au, subject, public, serial, root, p, now)
	}
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	parent := au.certificate
	if root {
		template.AuthorityKeyId, template.PublicKey = template.SubjectKeyId, public
		parent = template
	} else if err := mayStandBelow(parent, template); err != nil {
		return nil, err
	}
	done, err := a.encode(au, parent, template, public, now, lint.Context{Use: profile.UseCA, CRL: first(template.CRLDistributionPoints)})
	if err != nil {
		return nil, err
	}
	done.row.Profile, done.row.RequesterKind = "ca", requesterAuthority
	if p != nil {
		done.row.Profile, done.row.ProfileHash = p.Name(), p.Hash()
	}
	return done, nil
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// mayStandBelow holds the path length of a new CA against that of its issuer (RFC 5280 section 4.2.1.9).
func mayStandBelow(parent, child *x509.Certificate) error {
	if parent.MaxPathLenZero && parent.MaxPathLen == 0 {
		return refuse(Conflict, "path_length", "path length exceeded at %s: pathlen 0 allows no CA below it", parent.Subject)
	}
	if parent.MaxPathLen > 0 && (child.MaxPathLen < 0 || child.MaxPathLen >= parent.MaxPathLen) {
		return refuse(ProfileViolation, "path_length", "path length exceeded at %s: its pathlen %d allows less than %d below it", parent.Subject, parent.MaxPathLen, child.MaxPathLen)
	}
	return nil
}

func plainCA(au *authority, subject pkix.Name, public crypto.PublicKey, years int, serial *big.Int, root bool, now time.Time) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: serial, Subject: subject, NotBefore: now.Add(-5 * time.Minute).Truncate(time.Second),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	template.NotAfter = template.NotBefore.AddDate(years, 0, 0).Add(-time.Second)
	var err error
	if template.SubjectKeyId, err = profile.KeyID(public); err != nil {
		return nil, refuse(Invalid, "ca_key", "%v", err)
	}
	if root {
		return template, nil
	}
	template.MaxPathLenZero = true
	if template.NotAfter.After(au.certificate.NotAfter) {
		template.NotAfter = au.certificate.NotAfter
	}
	au.addAddresses(template)
	return template, nil
}

func profiledCA(au *authority, subject pkix.Name, public crypto.PublicKey, serial *big.Int, root bool, p *profile.Profile, now time.Time) (*x509.Certificate, error) {
	in := profile.CAInput{
		Subject: subject, PublicKey: public, Issuer: au.certificate, PublicURL: au.row.PublicURL, IssuerName: au.row.Name, CRLPath: au.crlPath(SerialHex(serial)), Now: now,
	}
	signer := public
	if !root {
		signer = au.certificate.PublicKey
	}
	var err error
	if in.Signature, _, err = signatureAlgorithm(signer); err != nil {
		return nil, &Error{Kind: Invalid, Rule: "signature", Detail: err.Error()}
	}
	template, err := p.BuildCA(in)
	if err != nil {
		return nil, violation(err)
	}
	return template, nil
}
