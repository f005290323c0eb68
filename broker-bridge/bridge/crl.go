// What a CRL must be before it takes the place of another. A CA whose newest CRL is refused keeps the one it has; the others
// do not wait for it.

package bridge

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
)

const minFreshness = 10 * time.Minute // of a CRL when it is loaded, at least

// attachCRLs gives each issuing CA the newest CRL that it may have: of those announced, else of the good sets. A CA without any is
// left out, since a broker would refuse its devices for the lack of it.
func attachCRLs(set *Set, ts feedapi.TrustSet, ders map[string][]byte, rules Rules) []*Refusal {
	var refusals []*Refusal
	announced := map[string][]feedapi.CRL{}
	for _, a := range ts.CRLs {
		id := strings.ToLower(a.KeyID)
		announced[id] = append(announced[id], a)
		if !slices.ContainsFunc(ts.Issuers, func(i feedapi.Issuer) bool { return strings.ToLower(i.KeyID) == id }) && set.byKey(id) == nil {
			refusals = append(refusals, refuse(CodeCRLExtra, "number %d is for key %s, which is no issuing CA of the set", a.Number, a.KeyID))
		}
	}
	for n := range set.Issuers {
		refusals = append(refusals, attachCRL(&set.Issuers[n], ts, announced[set.Issuers[n].KeyID], ders, rules)...)
	}
	set.Issuers = slices.DeleteFunc(set.Issuers, func(i Issuer) bool { return i.CRL == nil })
	return refusals
}

func attachCRL(issuer *Issuer, ts feedapi.TrustSet, announced []feedapi.CRL, ders map[string][]byte, rules Rules) []*Refusal {
	var refusals []*Refusal
	switch {
	case len(announced) == 0 && issuer.CRL == nil:
		refusals = append(refusals, refuse(CodeCRLMissing, "%s", issuer.Name))
	case len(announced) > 1:
		refusals = append(refusals, refuse(CodeCRLExtra, "%s has %d", issuer.Name, len(announced)))
		slices.SortFunc(announced, func(a, b feedapi.CRL) int { return cmp.Compare(b.Number, a.Number) })
	}
	for _, a := range announced {
		crl, r := checkCRL(issuer, a, ders[a.SHA256], rules)
		if r == nil {
			issuer.CRL, issuer.CRLSHA256, issuer.Seq = crl, a.SHA256, ts.Seq
			return refusals
		}
		refusals = append(refusals, r)
	}
	if good := rules.good(issuer.KeyID); good != nil {
		issuer.keepCRL(good)
	}
	return refusals
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
