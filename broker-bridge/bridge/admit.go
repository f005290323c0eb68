// Whom to trust: which of the offered roots and issuing CAs are in, and which of the last good set stay.

package bridge

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"maps"
	"slices"
	"strings"
	"time"
)

// admit decides about roots and issuing CAs; CRLs come later. What takes trust away or adds a root waits for approval. Until then
// everything of the last good set stays, and a new issuing CA below one of its roots is in. So it is with a flawed offer, of
// which something could not be read, but that does not wait for an approval: it wants to be repaired.
func admit(offered *Set, flawed bool, rules Rules) (*Set, []*Refusal) {
	var refusals []*Refusal
	whole := rules.Last == nil
	if !whole && !flawed {
		r := checkTrustChange(offered, rules)
		if r != nil {
			refusals = append(refusals, r)
		}
		whole = r == nil
	}
	set := &Set{Seq: offered.Seq, Anchors: offered.Anchors}
	if !whole {
		set.Anchors = keptAnchors(offered, rules)
	}
	for _, i := range offered.Issuers {
		if set.byKey(i.KeyID) != nil {
			refusals = append(refusals, refuse(CodeIssuer, "%s: its key is there twice", i.Name))
		} else if verifyChain(&i, set.Anchors, rules.Now) == nil {
			set.Issuers = append(set.Issuers, i)
		}
	}
	if !whole {
		set.Issuers = append(set.Issuers, keptIssuers(set, rules)...)
	}
	return set, refusals
}

// vouched reports whether a root of the last good set, or one that it vouches for, has certified the name and the key of a new root: the new root
// of a rollover needs no approval (RFC 4210 section 4.4, "new with old").
func vouched(root *x509.Certificate, offered *Set, rules Rules) bool {
	var trusted []*x509.Certificate
	for _, s := range append([]*Set{offered}, rules.Good...) {
		for _, a := range s.Anchors {
			if slices.Contains(rules.Last.Anchors, fingerprint(a.Raw)) {
				trusted = append(trusted, a)
			}
		}
	}
	for grown := true; grown; {
		grown = false
		for _, a := range offered.Anchors {
			if slices.ContainsFunc(trusted, a.Equal) || !slices.ContainsFunc(offered.Crosses, func(c *x509.Certificate) bool { return certifies(c, a, trusted, rules.Now) }) {
				continue
			}
			if trusted, grown = append(trusted, a), true; a.Equal(root) {
				return true
			}
		}
	}
	return false
}

// certifies reports whether cross is root's name and key, signed by one of trusted and valid now. A certificate with limits is that of a CA below a
// root: whoever has its key could sign himself a root of the same name and key.
func certifies(cross, root *x509.Certificate, trusted []*x509.Certificate, now time.Time) bool {
	return bytes.Equal(cross.RawSubject, root.RawSubject) && bytes.Equal(cross.RawSubjectPublicKeyInfo, root.RawSubjectPublicKeyInfo) &&
		cross.IsCA && !limited(cross) && !now.Before(cross.NotBefore) && !now.After(cross.NotAfter) &&
		slices.ContainsFunc(trusted, func(a *x509.Certificate) bool { return !now.After(a.NotAfter) && cross.CheckSignatureFrom(a) == nil })
}

func limited(c *x509.Certificate) bool {
	nameConstraints := asn1.ObjectIdentifier{2, 5, 29, 30}
	return c.MaxPathLen >= 0 || len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 ||
		slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(nameConstraints) })
}

// keptAnchors are the roots of the last good set, and those that these vouch for.
func keptAnchors(offered *Set, rules Rules) []*x509.Certificate {
	var kept []*x509.Certificate
	for _, s := range append([]*Set{offered}, rules.Good...) {
		for _, a := range s.Anchors {
			if !slices.ContainsFunc(kept, a.Equal) && (slices.Contains(rules.Last.Anchors, fingerprint(a.Raw)) || vouched(a, offered, rules)) {
				kept = append(kept, a)
			}
		}
	}
	return kept
}

// keptIssuers are the issuing CAs of the last good set that set lacks.
func keptIssuers(set *Set, rules Rules) []Issuer {
	var kept []Issuer
	for _, id := range slices.Sorted(maps.Keys(rules.Last.Issuers)) {
		if good := rules.good(id); good != nil && set.byKey(id) == nil {
			kept = append(kept, *good)
		}
	}
	return kept
}

// checkTrustChange holds back an offer that takes trust away or adds a root until the operator approved exactly
// this change. A new issuing CA under a root that is already trusted, and a root that such a one vouches for, need no approval.
func checkTrustChange(offered *Set, rules Rules) *Refusal {
	code, changes := "", []string(nil)
	anchors := make([]string, 0, len(offered.Anchors))
	for _, a := range offered.Anchors {
		anchors = append(anchors, fingerprint(a.Raw))
	}
	for n, a := range anchors {
		if !slices.Contains(rules.Last.Anchors, a) && !vouched(offered.Anchors[n], offered, rules) {
			code, changes = CodeAnchorAdded, append(changes, "+anchor "+a)
		}
	}
	for _, a := range rules.Last.Anchors {
		if !slices.Contains(anchors, a) {
			code, changes = CodeShrunk, append(changes, "-anchor "+a)
		}
	}
	for id, name := range rules.Last.Issuers {
		if offered.byKey(id) == nil {
			code, changes = CodeShrunk, append(changes, "-issuer "+name+" "+id)
		}
	}
	if code == "" {
		return nil
	}
	slices.Sort(changes)
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
