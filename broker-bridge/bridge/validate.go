// What the certificates of a trust set must be before a byte of it is written. Each rule is here because a broker that is
// given the contrary accepts revoked certificates or refuses everybody.

package bridge

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
)

// Rules is what a set is judged by besides itself.
type Rules struct {
	Now           time.Time
	Last          *Mark             // the last good set; nil accepts any first set
	Good          []*Set            // the last good set again and a newer one, newest first: what an offer may not replace is kept from here
	Approved      func(string) bool // whether the operator approved the change of trust with that digest
	MaxCRLEntries int
	Poll          time.Duration
}

// good is the newest that is known of an issuing CA.
func (r Rules) good(keyID string) *Issuer {
	for _, s := range r.Good {
		if i := s.byKey(keyID); i != nil {
			return i
		}
	}
	return nil
}

// Validate turns what the server announced, and the CRLs by SHA-256 of their DER, into the Set to put in place, and says what of
// the offer is not in it. A CA or CRL that is wrong or waits for approval holds up nothing but itself: of it, the set
// has what was good before, and nothing if there was nothing. The set is nil if none is left.
func Validate(ts feedapi.TrustSet, crls map[string][]byte, rules Rules) (*Set, []*Refusal) {
	offered, refusals := parseCertificates(ts, rules.Now)
	set, waiting := admit(offered, len(refusals) > 0, rules)
	refusals = slices.Concat(refusals, waiting, attachCRLs(set, ts, crls, rules))
	if len(set.Anchors) == 0 || len(set.Issuers) == 0 {
		return nil, refusals
	}
	for _, in := range ts.Issuers {
		if set.Issuer(in.Name) == nil {
			set.LeftOut = append(set.LeftOut, in.Name)
		}
	}
	set.Partial = len(refusals) > 0
	sortSet(set)
	return set, refusals
}

// parseCertificates returns the roots and issuing CAs of the offer that are what they should be, without CRLs.
func parseCertificates(ts feedapi.TrustSet, now time.Time) (*Set, []*Refusal) {
	offered, refusals := &Set{Seq: ts.Seq}, []*Refusal(nil)
	if len(ts.Anchors) == 0 || len(ts.Issuers) == 0 {
		refusals = append(refusals, refuse(CodeEmpty, "%d anchors, %d issuing CAs", len(ts.Anchors), len(ts.Issuers)))
	}
	for _, text := range ts.Anchors {
		if a, r := parseAnchor(text); r != nil {
			refusals = append(refusals, r)
		} else {
			offered.Anchors = append(offered.Anchors, a)
		}
	}
	for _, text := range ts.Crosses {
		if c, r := parseCertificate(text); r != nil {
			refusals = append(refusals, r)
		} else {
			offered.Crosses = append(offered.Crosses, c)
		}
	}
	for _, in := range ts.Issuers {
		if issuer, r := parseIssuer(in, offered.Anchors, now); r != nil {
			refusals = append(refusals, r)
		} else {
			offered.Issuers = append(offered.Issuers, *issuer)
		}
	}
	return offered, refusals
}

func parseAnchor(text string) (*x509.Certificate, *Refusal) {
	c, r := parseCertificate(text)
	if r != nil {
		return nil, r
	}
	if !c.IsCA || !c.BasicConstraintsValid || !bytes.Equal(c.RawSubject, c.RawIssuer) {
		return nil, refuse(CodeAnchor, "%s is not a self-signed CA", c.Subject)
	}
	if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return nil, refuseErr(CodeAnchor, err, "%s", c.Subject)
	}
	return c, nil
}

func parseIssuer(in feedapi.Issuer, anchors []*x509.Certificate, now time.Time) (*Issuer, *Refusal) {
	c, r := parseCertificate(in.Certificate)
	if r != nil {
		return nil, r
	}
	out := &Issuer{Name: in.Name, Certificate: c, KeyID: hex.EncodeToString(c.SubjectKeyId)}
	if in.Name == "" || out.KeyID == "" || out.KeyID != strings.ToLower(in.KeyID) {
		return nil, refuse(CodeIssuer, "%q: key identifier %q, announced %q", in.Name, out.KeyID, in.KeyID)
	}
	const need = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	if !c.IsCA || !c.BasicConstraintsValid || c.KeyUsage&need != need {
		return nil, refuse(CodeIssuer, "%s may not sign certificates and CRLs", in.Name)
	}
	for _, text := range in.Chain {
		mid, r := parseCertificate(text)
		if r != nil {
			return nil, r
		}
		out.Chain = append(out.Chain, mid)
	}
	if err := verifyChain(out, anchors, now); err != nil {
		return nil, refuseErr(CodeUntrusted, err, "%s", in.Name)
	}
	return out, nil
}

// verifyChain builds the path with the time moved into the validity of the CA certificates: an expired CA that is
// still listed harms nobody, and must not hold up the revocations of the others.
func verifyChain(i *Issuer, anchors []*x509.Certificate, now time.Time) error {
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, a := range anchors {
		opts.Roots.AddCert(a)
	}
	for _, c := range i.Chain {
		opts.Intermediates.AddCert(c)
	}
	for _, c := range append([]*x509.Certificate{i.Certificate}, i.Chain...) {
		if c.NotAfter.Before(opts.CurrentTime) {
			opts.CurrentTime = c.NotAfter
		}
	}
	_, err := i.Certificate.Verify(opts)
	return err
}

func sortSet(s *Set) {
	slices.SortFunc(s.Anchors, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	slices.SortFunc(s.Issuers, func(a, b Issuer) int { return strings.Compare(a.KeyID, b.KeyID) })
}

func parseCertificate(text string) (*x509.Certificate, *Refusal) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, refuse(CodeEncoding, "not one PEM certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, refuseErr(CodeEncoding, err, "certificate")
	}
	return c, nil
}
