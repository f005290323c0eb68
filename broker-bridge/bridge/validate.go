// What a trust set must be before a byte of it is written. Each rule is here because a broker that is given
// the contrary accepts revoked certificates or refuses everybody.

package bridge

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
)

const (
	maxPathLength = 6
	minFreshness  = 10 * time.Minute // of a CRL when it is loaded, at least
)

// Rules is what a set is judged by besides itself.
type Rules struct {
	Now           time.Time
	Last          *Mark             // the last good set; nil accepts any first set
	Approved      func(string) bool // whether the operator approved the change of trust with that digest
	MaxCRLEntries int
	Poll          time.Duration
}

// Validate turns what the server announced, and the CRLs by SHA-256 of their DER, into a Set. The error is
// always a *Refusal.
func Validate(ts feedapi.TrustSet, crls map[string][]byte, rules Rules) (*Set, error) {
	set := &Set{Seq: ts.Seq}
	if len(ts.Anchors) == 0 || len(ts.Issuers) == 0 {
		return nil, refuse(CodeEmpty, "%d anchors, %d issuing CAs", len(ts.Anchors), len(ts.Issuers))
	}
	for _, text := range ts.Anchors {
		a, r := parseAnchor(text)
		if r != nil {
			return nil, r
		}
		set.Anchors = append(set.Anchors, a)
	}
	for _, in := range ts.Issuers {
		issuer, r := parseIssuer(in, set.Anchors, rules.Now)
		if r != nil {
			return nil, r
		}
		set.Issuers = append(set.Issuers, *issuer)
	}
	if r := attachCRLs(set, ts.CRLs, crls, rules); r != nil {
		return nil, r
	}
	sortSet(set)
	if r := checkTrustChange(set, rules); r != nil {
		return nil, r
	}
	return set, nil
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

func attachCRLs(set *Set, announced []feedapi.CRL, ders map[string][]byte, rules Rules) *Refusal {
	for _, a := range announced {
		i := slices.IndexFunc(set.Issuers, func(i Issuer) bool { return i.KeyID == strings.ToLower(a.KeyID) })
		if i < 0 {
			return refuse(CodeCRLExtra, "number %d is for key %s, which is no issuing CA of the set", a.Number, a.KeyID)
		}
		issuer := &set.Issuers[i]
		if issuer.CRL != nil {
			return refuse(CodeCRLExtra, "%s has two", issuer.Name)
		}
		crl, r := checkCRL(issuer, a, ders[a.SHA256], rules)
		if r != nil {
			return r
		}
		issuer.CRL, issuer.CRLSHA256 = crl, a.SHA256
	}
	for _, i := range set.Issuers {
		if i.CRL == nil {
			return refuse(CodeCRLMissing, "%s", i.Name)
		}
	}
	return nil
}

func checkCRL(issuer *Issuer, a feedapi.CRL, der []byte, rules Rules) (*x509.RevocationList, *Refusal) {
	if der == nil {
		return nil, refuse(CodeCRLMissing, "%s: number %d was announced and not delivered", issuer.Name, a.Number)
	}
	if sum := sha256.Sum256(der); hex.EncodeToString(sum[:]) != a.SHA256 {
		return nil, refuse(CodeCRLMismatch, "%s: SHA-256 differs", issuer.Name)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, refuseErr(CodeEncoding, err, "CRL of %s", issuer.Name)
	}
	if r := checkCRLShape(issuer, crl); r != nil {
		return nil, r
	}
	if !bytes.Equal(crl.RawIssuer, issuer.Certificate.RawSubject) || !bytes.Equal(crl.AuthorityKeyId, issuer.Certificate.SubjectKeyId) {
		return nil, refuse(CodeCRLSignature, "%s: issuer or authority key identifier is another's", issuer.Name)
	}
	if err := crl.CheckSignatureFrom(issuer.Certificate); err != nil {
		return nil, refuseErr(CodeCRLSignature, err, "%s", issuer.Name)
	}
	if crl.Number == nil || !crl.Number.IsInt64() || crl.Number.Int64() != a.Number {
		return nil, refuse(CodeCRLMismatch, "%s: CRL number is %v, announced %d", issuer.Name, crl.Number, a.Number)
	}
	if n := len(crl.RevokedCertificateEntries); rules.MaxCRLEntries > 0 && n > rules.MaxCRLEntries {
		return nil, refuse(CodeCRLSize, "%s: %d entries, limit %d", issuer.Name, n, rules.MaxCRLEntries)
	}
	if r := checkCRLTimes(issuer, crl, rules); r != nil {
		return nil, r
	}
	return crl, checkCRLAdvance(issuer, crl, a.SHA256, rules.Last)
}

var (
	oidDeltaCRL          = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidCertificateIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}
)

// checkCRLShape: "CRL issuers MUST mark this extension as critical" (RFC 5280 5.2.4, delta; 5.2.5,
// issuing distribution point), and a consumer that does not know a critical extension must not use the list.
func checkCRLShape(issuer *Issuer, crl *x509.RevocationList) *Refusal {
	for _, e := range crl.Extensions {
		if e.Id.Equal(oidDeltaCRL) {
			return refuse(CodeCRLDelta, "%s: number %v", issuer.Name, crl.Number)
		}
		if e.Critical {
			return refuse(CodeCRLCritical, "%s: %v", issuer.Name, e.Id)
		}
	}
	for _, entry := range crl.RevokedCertificateEntries {
		for _, e := range entry.Extensions {
			if e.Critical || e.Id.Equal(oidCertificateIssuer) {
				return refuse(CodeCRLCritical, "%s: entry %x: %v", issuer.Name, entry.SerialNumber, e.Id)
			}
		}
	}
	return nil
}

func checkCRLTimes(issuer *Issuer, crl *x509.RevocationList, rules Rules) *Refusal {
	if crl.ThisUpdate.After(rules.Now) {
		return refuse(CodeCRLFuture, "%s: thisUpdate %s is after this host's %s", issuer.Name,
			crl.ThisUpdate.Format(time.RFC3339), rules.Now.Format(time.RFC3339))
	}
	need := max(2*rules.Poll, minFreshness)
	if crl.NextUpdate.Before(rules.Now.Add(need)) {
		return refuse(CodeCRLExpired, "%s: nextUpdate %s is not %s away", issuer.Name, crl.NextUpdate.Format(time.RFC3339), need)
	}
	return nil
}

func checkCRLAdvance(issuer *Issuer, crl *x509.RevocationList, sum string, last *Mark) *Refusal {
	if last == nil {
		return nil
	}
	was, ok := last.CRLs[issuer.KeyID]
	n := crl.Number.Int64()
	switch {
	case !ok || sum == was.SHA256:
		return nil
	case n < was.Number:
		return refuse(CodeCRLReplayed, "%s: number %d after %d", issuer.Name, n, was.Number)
	case n == was.Number:
		return refuse(CodeCRLReused, "%s: number %d has another content", issuer.Name, n)
	case crl.ThisUpdate.Before(was.ThisUpdate):
		return refuse(CodeCRLBackwards, "%s: number %d", issuer.Name, n)
	}
	return nil
}

// checkTrustChange holds back a set that takes trust away or adds a root until the operator approved exactly
// this change. A new issuing CA under a root that is already trusted needs no approval.
func checkTrustChange(set *Set, rules Rules) *Refusal {
	if rules.Last == nil {
		return nil
	}
	code, changes := "", []string(nil)
	now := set.Mark()
	for _, a := range now.Anchors {
		if !slices.Contains(rules.Last.Anchors, a) {
			code, changes = CodeAnchorAdded, append(changes, "+anchor "+a)
		}
	}
	for _, a := range rules.Last.Anchors {
		if !slices.Contains(now.Anchors, a) {
			code, changes = CodeShrunk, append(changes, "-anchor "+a)
		}
	}
	for id, name := range rules.Last.Issuers {
		if _, ok := now.Issuers[id]; !ok {
			code, changes = CodeShrunk, append(changes, "-issuer "+name+" "+id)
		}
	}
	if code == "" {
		return nil
	}
	sort.Strings(changes)
	text := strings.Join(changes, "; ")
	digest := fingerprint([]byte(text))[:16]
	if rules.Approved != nil && rules.Approved(digest) {
		return nil
	}
	return &Refusal{Code: code, Detail: text, Err: &pendingApproval{digest: digest}}
}

// pendingApproval is the cause of a refusal that the operator can lift with `broker-bridge approve`.
type pendingApproval struct{ digest string }

func (p *pendingApproval) Error() string { return "waits for: broker-bridge approve " + p.digest }

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
