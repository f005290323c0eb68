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

// attachCRLs gives each issuing CA the newest CRLs that it may have: of those announced, else of the good sets. A CA of which one is
// missing is left out, since a broker would refuse its devices for the lack of it.
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
		refusals = append(refusals, attachIssuerCRLs(&set.Issuers[n], ts, announced[set.Issuers[n].KeyID], ders, rules)...)
	}
	set.Issuers = slices.DeleteFunc(set.Issuers, func(i Issuer) bool { return len(i.CRLs) == 0 })
	return refusals
}

// attachIssuerCRLs: all shards or none. One that is refused is kept as it was; so is the whole if it is not split as before.
func attachIssuerCRLs(issuer *Issuer, ts feedapi.TrustSet, announced []feedapi.CRL, ders map[string][]byte, rules Rules) []*Refusal {
	good := rules.good(issuer.KeyID)
	if len(announced) == 0 {
		var refusals []*Refusal
		if len(issuer.CRLs) == 0 {
			refusals = append(refusals, refuse(CodeCRLMissing, "%s", issuer.Name))
		}
		if good != nil {
			issuer.keepCRLs(good)
		}
		return refusals
	}
	shards, r := shardsOf(issuer, announced, good)
	if r != nil {
		if issuer.CRLs = nil; good != nil {
			issuer.keepCRLs(good)
		}
		return []*Refusal{r}
	}
	var refusals []*Refusal
	made, complete, seq := make([]CRL, shards), true, ts.Seq
	for shard := range made {
		of := slices.DeleteFunc(slices.Clone(announced), func(a feedapi.CRL) bool { return a.Shard != shard })
		crl, refused := attachCRL(issuer, shard, of, ders, rules)
		refusals = append(refusals, refused...)
		switch {
		case crl != nil:
			made[shard] = *crl
		case good != nil:
			made[shard], seq = good.CRLs[shard], good.Seq
		default:
			complete = false
		}
	}
	if issuer.CRLs, issuer.Seq = nil, seq; complete {
		issuer.CRLs = made
	}
	return refusals
}

// shardsOf is how many CRLs the issuing CA has: as many as all of them say, and as it always had.
func shardsOf(issuer *Issuer, announced []feedapi.CRL, good *Issuer) (int, *Refusal) {
	shards := max(1, announced[0].Shards)
	addresses := map[string]int{}
	for _, a := range announced {
		at, known := addresses[a.Address]
		switch {
		case max(1, a.Shards) != shards || a.Shard < 0 || a.Shard >= shards:
			return 0, refuse(CodeCRLMismatch, "%s: number %d is announced as CRL %d of %d, another as one of %d", issuer.Name, a.Number, a.Shard, a.Shards, shards)
		case shards > 1 && (a.Address == "" || known && at != a.Shard):
			return 0, refuse(CodeCRLMismatch, "%s: CRL %d has no address of its own", issuer.Name, a.Shard)
		}
		addresses[a.Address] = a.Shard
	}
	if good != nil && len(good.CRLs) != shards {
		return 0, refuse(CodeCRLMismatch, "%s: %d CRLs are announced, it always had %d", issuer.Name, shards, len(good.CRLs))
	}
	return shards, nil
}

// attachCRL returns the newest of those announced for a shard that may take the place of the one before; nil if none may.
func attachCRL(issuer *Issuer, shard int, announced []feedapi.CRL, ders map[string][]byte, rules Rules) (*CRL, []*Refusal) {
	var refusals []*Refusal
	switch {
	case len(announced) == 0:
		refusals = append(refusals, refuse(CodeCRLMissing, "%s: CRL %d of several is not announced", issuer.Name, shard))
	case len(announced) > 1:
		refusals = append(refusals, refuse(CodeCRLExtra, "%s has %d", issuer.Name, len(announced)))
		slices.SortFunc(announced, func(a, b feedapi.CRL) int { return cmp.Compare(b.Number, a.Number) })
	}
	for _, a := range announced {
		list, r := checkCRL(issuer, a, ders[a.SHA256], rules)
		if r == nil {
			return &CRL{list, a.SHA256}, refusals
		}
		refusals = append(refusals, r)
	}
	return nil, refusals
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
	if r := checkCRLShape(issuer, crl, a); r != nil {
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
	return crl, checkCRLAdvance(issuer, crl, a, rules.Last)
}

var (
	oidDeltaCRL          = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidCertificateIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}
)

// checkCRLShape: "CRL issuers MUST mark this extension as critical" (RFC 5280 5.2.4, delta; 5.2.5,
// issuing distribution point), and a consumer that does not know a critical extension must not use the list. The only one here is the
// issuing distribution point of one CRL of several, which says the announced address and nothing else.
func checkCRLShape(issuer *Issuer, crl *x509.RevocationList, a feedapi.CRL) *Refusal {
	several, named := a.Shards > 1, false
	for _, e := range crl.Extensions {
		if several && e.Critical && e.Id.Equal(oidDistributionPoint) && bytes.Equal(e.Value, distributionPoint(a.Address)) {
			named = true
			continue
		}
		if e.Id.Equal(oidDeltaCRL) {
			return refuse(CodeCRLDelta, "%s: number %v", issuer.Name, crl.Number)
		}
		if e.Critical {
			return refuse(CodeCRLCritical, "%s: %v", issuer.Name, e.Id)
		}
	}
	if several && !named {
		return refuse(CodeCRLMismatch, "%s: CRL %d of %d does not say that it is the one at %s", issuer.Name, a.Shard, a.Shards, a.Address)
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

// distributionPoint is the value of an issuing distribution point that names one address and limits the CRL in no other way.
func distributionPoint(address string) []byte {
	name := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(address)}
	for range 2 { // fullName, distributionPoint
		inner, err := asn1.Marshal(name)
		if err != nil {
			return nil
		}
		name = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner}
	}
	value, err := asn1.Marshal([]asn1.RawValue{name})
	if err != nil {
		return nil
	}
	return value
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

func checkCRLAdvance(issuer *Issuer, crl *x509.RevocationList, a feedapi.CRL, last *Mark) *Refusal {
	if last == nil {
		return nil
	}
	was, ok := last.CRLs[markKey(issuer.KeyID, a.Shard, a.Shards)]
	n := crl.Number.Int64()
	switch {
	case !ok || a.SHA256 == was.SHA256:
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
