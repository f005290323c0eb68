// What is wrong with one CA, or waits for approval, holds up nothing else.

package bridge

import (
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/test/testpki"
)

// addRoot offers a root that nobody knows, with an issuing CA below it.
func (o *offer) addRoot() *testpki.Authority {
	root := testpki.Root(o.t, "external")
	ca := root.Intermediate(o.t, "external devices")
	o.set.Anchors = append(o.set.Anchors, string(root.PEM()))
	o.issuer("external", ca)
	o.crl("external", ca, ca.CRL(o.t, 1, 24*time.Hour))
	return root
}

func (o *offer) removeOther() {
	o.dropCRL("other")
	o.set.Issuers = slices.DeleteFunc(o.set.Issuers, func(i feedapi.Issuer) bool { return i.Name == "other" })
}

// spoiled are offers that are wrong, or wait, in one part; "devices" is never that part.
var spoiled = []struct {
	name    string
	code    string
	leftOut []string
	spoil   func(*offer)
}{
	{"a new root", CodeAnchorAdded, []string{"external"}, func(o *offer) { o.addRoot() }},
	{"a CA that goes", CodeShrunk, nil, (*offer).removeOther},
	{"a root that goes", CodeShrunk, []string{"external"}, func(o *offer) {
		root := o.addRoot()
		o.removeOther()
		o.set.Anchors = []string{string(o.root.PEM()), string(root.PEM())}
	}},
	{"a root that is text", CodeEncoding, nil, func(o *offer) { o.set.Anchors = append(o.set.Anchors, "hello") }},
	{"a CA that is text", CodeEncoding, nil, func(o *offer) { o.set.Issuers[1].Certificate = "hello" }},
	{"a new CA of an unknown root", CodeUntrusted, []string{"stray"}, func(o *offer) {
		o.issuer("stray", testpki.Root(o.t, "stray root").Intermediate(o.t, "stray"))
	}},
	{"a CA twice", CodeIssuer, nil, func(o *offer) { o.issuer("other", o.other) }},
	{"no CRL", CodeCRLMissing, nil, func(o *offer) { o.dropCRL("other") }},
	{"a CRL that does not come", CodeCRLMissing, nil, func(o *offer) {
		der := o.other.CRL(o.t, 10, time.Hour)
		o.crl("other", o.other, der)
		delete(o.ders, fingerprint(der))
	}},
	{"an expired CRL", CodeCRLExpired, nil, func(o *offer) { o.crl("other", o.other, o.other.CRL(o.t, 10, time.Minute)) }},
	{"a CRL that is too large", CodeCRLSize, nil, func(o *offer) {
		o.crl("other", o.other, o.signCRL(o.other, func(l *x509.RevocationList) {
			l.Number = big.NewInt(10)
			for i := range 1001 {
				l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
					x509.RevocationListEntry{SerialNumber: big.NewInt(int64(i + 1)), RevocationTime: time.Now()})
			}
		}))
	}},
	{"a CRL of another key", CodeCRLSignature, nil, func(o *offer) { o.crl("other", o.other, o.devices.CRL(o.t, 10, time.Hour)) }},
	{"a replayed CRL", CodeCRLReplayed, nil, func(o *offer) { o.crl("other", o.other, o.other.CRL(o.t, 8, time.Hour)) }},
	{"a new CA without CRL", CodeCRLMissing, []string{"late"}, func(o *offer) { o.issuer("late", o.root.Intermediate(o.t, "late")) }},
	{"a CRL of nobody", CodeCRLExtra, nil, func(o *offer) { o.crl("root", o.root, o.root.CRL(o.t, 1, time.Hour)) }},
}

func TestOneBadPartHoldsUpNothingElse(t *testing.T) {
	t.Parallel()
	for _, c := range spoiled {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := newOffer(t)
			first := o.whole(nil)
			o.set.Seq = 8
			c.spoil(o)
			o.crl("devices", o.devices, o.devices.CRL(t, 6, time.Hour, big.NewInt(99), big.NewInt(100)))
			fresh := o.root.Intermediate(t, "fresh")
			o.issuer("fresh", fresh)
			o.crl("fresh", fresh, fresh.CRL(t, 1, time.Hour))
			set, refusals := o.validate(first)
			if !slices.Equal(codesOf(refusals), []string{c.code}) {
				t.Fatalf("refused: %v, want %s", refusals, c.code)
			}
			if !set.lists("devices", big.NewInt(100)) || set.upTo("devices") != 8 {
				t.Error("a new revocation is not in the set")
			}
			if set.Issuer("fresh") == nil {
				t.Error("a new issuing CA below a known root is not in the set")
			}
			if other := set.byKey(keyIDOf(o.other)); other == nil || other.number() != 9 {
				t.Errorf("a CA of the last good set, or its CRL, did not stay: %+v", other)
			}
			if len(set.Anchors) != 1 || !set.Partial || !slices.Equal(set.LeftOut, c.leftOut) {
				t.Errorf("%d anchors, partial %v, left out %v, want %v", len(set.Anchors), set.Partial, set.LeftOut, c.leftOut)
			}
			for _, name := range c.leftOut {
				if set.upTo(name) != 0 {
					t.Errorf("%s is left out, and the set claims to know its revocations", name)
				}
			}
		})
	}
}

// With each of the spoiled offers as the second, and the same for ever: the set does not change any more.
func TestAPartialSetIsStable(t *testing.T) {
	t.Parallel()
	for _, c := range spoiled {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := newOffer(t)
			first := o.whole(nil)
			c.spoil(o)
			second, refusals := o.validate(first)
			read, err := parseBundle(second.Bundle(), second.Mark())
			if err != nil {
				t.Fatal(err)
			}
			read.Seq = second.Seq
			for name, before := range map[string]*Set{"the same": second, "read after a restart": read} {
				third, again := o.validate(before)
				if string(third.Bundle()) != string(second.Bundle()) || !slices.Equal(codesOf(again), codesOf(refusals)) ||
					digestOf(again) != digestOf(refusals) || third.upTo("other") != second.upTo("other") {
					t.Errorf("%s: %v after %v", name, again, refusals)
				}
			}
		})
	}
}

// The CRLs that stay know nothing of later revocations.
func TestUpTo(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	first := o.whole(nil)
	o.set.Seq = 8
	o.crl("other", o.other, o.other.CRL(t, 10, time.Minute))
	set, _ := o.validate(first)
	if set.upTo("devices") != 8 || set.upTo("other") != 7 || set.upTo("gone") != 8 {
		t.Errorf("devices %d, other %d, gone %d", set.upTo("devices"), set.upTo("other"), set.upTo("gone"))
	}
	o.crl("other", o.other, o.other.CRL(t, 11, time.Hour))
	if set := o.whole(set); set.upTo("other") != 8 {
		t.Errorf("repaired: %d", set.upTo("other"))
	}
}

// Two CRLs of one key: the newest that is right counts.
func TestTheNewestOfTwoCRLsCounts(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	first := o.whole(nil)
	good, bad := o.devices.CRL(t, 6, time.Hour, big.NewInt(100)), o.devices.CRL(t, 7, time.Minute)
	for _, der := range [][]byte{good, bad} {
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		o.set.CRLs = append(o.set.CRLs, announce("devices", keyIDOf(o.devices), crl))
		o.ders[fingerprint(der)] = der
	}
	set, refusals := o.validate(first)
	if !slices.Equal(codesOf(refusals), []string{CodeCRLExtra, CodeCRLExpired}) || set.Issuer("devices").number() != 6 {
		t.Errorf("refused: %v, number %v", refusals, set.Issuer("devices").number())
	}
}

// While the offer cannot be read as a whole, nobody can approve that something goes.
func TestAFlawedOfferIsNotApproved(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	first := o.whole(nil)
	o.removeOther()
	_, refusals := o.validate(first)
	digest := digestOf(refusals)
	o.set.Anchors = append(o.set.Anchors, "hello")
	set, refusals := o.validate(first, digest)
	if digestOf(refusals) != "" || set.Issuer("other") == nil {
		t.Errorf("refused: %v", refusals)
	}
}

// A first set is what can be had; what is wrong comes when it is right.
func TestAFirstSetMayBePartial(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	o.crl("other", o.other, o.other.CRL(t, 10, time.Minute))
	set, refusals := o.validate(nil)
	if !slices.Equal(codesOf(refusals), []string{CodeCRLExpired}) || set.Issuer("devices") == nil || set.Issuer("other") != nil {
		t.Fatalf("refused: %v, set %+v", refusals, set)
	}
	o.crl("other", o.other, o.other.CRL(t, 11, time.Hour))
	o.whole(set)
}

func TestApprovedWithNothingLeftIsNotTaken(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	first := o.whole(nil)
	o.set.Anchors, o.set.Issuers, o.set.CRLs = nil, nil, nil
	o.addRoot()
	_, refusals := o.validate(first)
	digest := digestOf(refusals)
	o.set.CRLs = nil
	if set, refusals := o.validate(first, digest); set != nil || digest == "" {
		t.Errorf("set %+v, refused: %v", set, refusals)
	}
}

// An intermediate is read back from the file of the last good set: a broker needs it for the path.
func TestTheChainOfAKeptCASurvivesARestart(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	mid := o.root.Intermediate(t, "mid")
	low := mid.Intermediate(t, "low")
	o.issuer("low", low, mid)
	o.crl("low", low, low.CRL(t, 1, time.Hour))
	first := o.whole(nil)
	read, err := parseBundle(first.Bundle(), first.Mark())
	if err != nil {
		t.Fatal(err)
	}
	o.set.Issuers = o.set.Issuers[:2]
	o.dropCRL("low")
	set, _ := o.validate(read)
	if i := set.Issuer("low"); i == nil || len(i.Chain) != 1 || !i.Chain[0].Equal(mid.Certificate) {
		t.Errorf("%+v", i)
	}
	if string(set.Bundle()) != string(first.Bundle()) {
		t.Error("the bundle is another")
	}
}
