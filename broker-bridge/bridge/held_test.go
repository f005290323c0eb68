// On a real broker: while one part of the trust set is refused or waits, revocations of the other CAs go through, with the kick; when
// it is approved or repaired, the rest follows.

package bridge

import (
	"bytes"
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/test/testpki"
)

// lieAbout replaces the CRL of an issuing CA in what the feed announces.
func lieAbout(f *fakeFeed, name string, set *feedapi.TrustSet, ders map[string][]byte, edit func(*x509.RevocationList)) {
	n := slices.IndexFunc(set.CRLs, func(c feedapi.CRL) bool { return c.Issuer == name })
	ca := f.issuers[slices.IndexFunc(f.issuers, func(i *fakeIssuer) bool { return i.name == name })].ca
	der := (&offer{t: f.t}).signCRL(ca, func(l *x509.RevocationList) {
		l.Number = big.NewInt(5000)
		edit(l)
	})
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		f.t.Error(err)
		return
	}
	set.CRLs[n] = announce(name, set.CRLs[n].KeyID, crl)
	ders[fingerprint(der)] = der
}

// offerRoot adds, to what the feed offers, an external root with an issuing CA.
func offerRoot(r *rig) (withdraw func(), ca *testpki.Authority) {
	root := testpki.Root(r.t, "external root")
	ca = root.Intermediate(r.t, "external")
	r.feed.Change(func() {
		r.feed.addIssuer("external", ca)
		r.feed.tamper = func(set *feedapi.TrustSet, _ map[string][]byte) {
			set.Anchors = append(set.Anchors, string(root.PEM()))
		}
	})
	return func() { r.feed.Change(func() { r.feed.tamper = nil }) }, ca
}

func TestRevocationsGoOnWhileAPartIsRefused(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name, code string
		spoil      func(r *rig)
		repair     func(r *rig)
	}{
		{"a new root waits for approval", CodeAnchorAdded, func(r *rig) { offerRoot(r) }, approve},
		{"a CA that goes waits for approval", CodeShrunk, func(r *rig) {
			r.feed.Change(func() { r.feed.issuers = r.feed.issuers[:1] })
		}, approve},
		{"a CRL is expired", CodeCRLExpired, tampered(func(f *fakeFeed, set *feedapi.TrustSet, ders map[string][]byte) {
			lieAbout(f, "second", set, ders, func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Second) })
		}), repair},
		{"a CRL is too large", CodeCRLSize, tampered(func(f *fakeFeed, set *feedapi.TrustSet, ders map[string][]byte) {
			lieAbout(f, "second", set, ders, func(l *x509.RevocationList) {
				for n := range 101 {
					l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
						x509.RevocationListEntry{SerialNumber: big.NewInt(int64(n + 1)), RevocationTime: time.Now()})
				}
			})
		}), repair},
		{"a CRL cannot be proven", CodeCanaryUnlisted, tampered(func(f *fakeFeed, set *feedapi.TrustSet, ders map[string][]byte) {
			lieAbout(f, "second", set, ders, func(*x509.RevocationList) {})
		}), repair},
		{"a CRL does not come", CodeCRLMissing, tampered(func(_ *fakeFeed, set *feedapi.TrustSet, _ map[string][]byte) {
			set.CRLs[1].SHA256 = fingerprint(nil)
		}), repair},
		{"a CA certificate is text", CodeEncoding, tampered(func(_ *fakeFeed, set *feedapi.TrustSet, _ map[string][]byte) {
			set.Issuers[1].Certificate = "hello"
		}), repair},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "dev-good")
			r.conf.MaxCRLEntries = 100
			r.feed.Change(func() { r.feed.addIssuer("second", r.feed.root.Intermediate(t, "second")) })
			r.startBridge()
			r.ready()
			good, second := r.device("dev-good"), r.feed.CA("second").Leaf(t, "dev-second")
			witness, whole := r.connect(good), r.feed.trustSeq()
			c.spoil(r)
			eventually(t, patience, "it is refused as "+c.code, func() bool { return refusedFor(r, c.code) })

			bad := r.device("dev-bad")
			live := r.connect(bad)
			r.feed.Revoke(bad, "keyCompromise", false)
			eventually(t, patience, "the live session is ended", func() bool { return !live.alive() })
			if _, err := r.dial(bad); err == nil {
				t.Error("the revoked device came back")
			}
			r.connect(second)
			eventually(t, patience, "all others are done", func() bool {
				s := r.bridge.Status()
				return s.Verified == r.feed.trustSeq() && s.Pending == 0
			})
			if s := r.bridge.Status(); s.Ready || !refusedFor(r, c.code) || (s.Approval != "") != (c.code == CodeAnchorAdded || c.code == CodeShrunk) {
				t.Errorf("status %+v", s)
			}
			if r.counter("bridge_parts_refused", c.code) == 0 || r.counter("bridge_validation_failures_total", c.code) == 0 {
				t.Error("no metric tells of it")
			}
			eventually(t, patience, "the server is told that the whole set is not in place", func() bool {
				a := r.feed.lastAck()
				return has(a.Error, c.code) && a.Seq == whole
			})

			c.repair(r)
			r.ready()
			if s := r.bridge.Status(); len(s.Refusals) != 0 || r.counter("bridge_parts_refused", c.code) != 0 || r.counter("bridge_pending_approval", "") != 0 {
				t.Errorf("repaired, and still: %v", s.Refusals)
			}
			eventually(t, patience, "the server is told that all is well", func() bool {
				a := r.feed.lastAck()
				return a.Error == "" && a.Seq == r.feed.trustSeq()
			})
			if !witness.alive() {
				t.Error("a session was lost")
			}
		})
	}
}

func tampered(do func(*fakeFeed, *feedapi.TrustSet, map[string][]byte)) func(*rig) {
	return func(r *rig) {
		r.feed.Change(func() {
			r.feed.tamper = func(set *feedapi.TrustSet, ders map[string][]byte) { do(r.feed, set, ders) }
		})
	}
}

func repair(r *rig) { r.feed.Change(func() { r.feed.tamper = nil }) }

func approve(r *rig) {
	if err := Approve(r.conf.State, r.bridge.Status().Approval); err != nil {
		r.t.Error(err)
	}
	r.feed.Change(func() {})
}

// Whose CRL cannot be applied is not put out: he would come straight back. He is when it can be.
func TestAKickWaitsForItsOwnCRLOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-good")
	r.feed.Change(func() { r.feed.addIssuer("second", r.feed.root.Intermediate(t, "second")) })
	r.startBridge()
	r.ready()
	tampered(func(f *fakeFeed, set *feedapi.TrustSet, ders map[string][]byte) {
		lieAbout(f, "second", set, ders, func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Second) })
	})(r)
	eventually(t, patience, "it is refused", func() bool { return refusedFor(r, CodeCRLExpired) })
	first, other := r.feed.CA("second").Leaf(t, "dev-first"), r.device("dev-other")
	waits, goes := r.connect(first), r.connect(other)
	r.feed.Revoke(first, "keyCompromise", false)
	r.feed.Revoke(other, "keyCompromise", false)
	eventually(t, patience, "the other CA's device is put out", func() bool { return !goes.alive() })
	eventually(t, patience, "one session is still to end", func() bool { return r.bridge.Status().Pending == 1 })
	r.stopBridge()
	r.startBridge()
	eventually(t, patience, "the bridge is back", func() bool {
		return r.bridge.Status().Verified == r.feed.trustSeq() && refusedFor(r, CodeCRLExpired)
	})
	if !waits.alive() || r.bridge.Status().Pending != 1 {
		t.Error("put out although it can come back, or forgotten")
	}
	repair(r)
	eventually(t, patience, "it is put out", func() bool { return !waits.alive() })
	r.ready()
	if _, err := r.dial(first); err == nil {
		t.Error("the revoked device came back")
	}
}

// A new root waits; a new issuing CA below the known one does not, and nothing of the new root is on the broker.
func TestANewCABelowAKnownRootDoesNotWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.startBridge()
	r.ready()
	_, external := offerRoot(r)
	eventually(t, patience, "the root waits", func() bool { return r.bridge.Status().Approval != "" })
	next := r.feed.root.Intermediate(t, "next")
	r.feed.Change(func() { r.feed.addIssuer("next", next) })
	eventually(t, patience, "the new CA is trusted", func() bool { _, err := r.dial(next.Leaf(t, "dev-1")); return err == nil })
	if _, err := r.dial(external.Leaf(t, "dev-1")); err == nil || bytes.Contains(r.read("bundle.pem"), external.PEM()) {
		t.Error("the CA of the root that waits is trusted")
	}
	if r.bridge.Status().Approval == "" {
		t.Error("the approval is not asked for any more")
	}
	approve(r)
	r.ready()
	r.connect(external.Leaf(t, "dev-1"))
}

// A new CA that the server cannot make canaries for is left out, and in when it can.
func TestANewCAWithoutCanaryHoldsUpNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.startBridge()
	r.ready()
	next := r.feed.root.Intermediate(t, "next")
	r.feed.Change(func() {
		r.feed.addIssuer("next", next)
		r.feed.noCanary = "next"
	})
	eventually(t, patience, "it is refused", func() bool { return refusedFor(r, CodeCanaryMissing) })
	bad := r.device("dev-bad")
	live := r.connect(bad)
	r.feed.Revoke(bad, "keyCompromise", false)
	eventually(t, patience, "the live session is ended", func() bool { return !live.alive() })
	r.feed.Change(func() { r.feed.noCanary = "" })
	r.ready()
	r.connect(next.Leaf(t, "dev-1"))
}

// Once the CRL of one CA has run out, the broker refuses its devices and no others; that is no reason to take anything back.
func TestACRLThatRanOutConcernsItsOwnCAOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.feed.Change(func() { r.feed.addIssuer("second", r.feed.root.Intermediate(t, "second")) })
	r.startBridge()
	r.ready()
	set := *r.bridge.current
	canaries := r.bridge.canaries
	r.stopBridge()
	set.Issuers = slices.Clone(set.Issuers)
	second := set.Issuer("second")
	der := (&offer{t: t}).signCRL(r.feed.CA("second"), func(l *x509.RevocationList) {
		l.Number, l.NextUpdate = big.NewInt(7), time.Now().Add(-time.Second)
		l.RevokedCertificateEntries = second.CRLs[0].RevokedCertificateEntries
	})
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	second.CRLs = []CRL{{list, fingerprint(der)}}
	probes, err := canaries.probes(&set)
	if err != nil {
		t.Fatal(err)
	}
	broker, err := NewMosquitto(r.conf.Broker, []*x509.Certificate{r.feed.root.Certificate}, nil, r.bridge.clock)
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Publish(Material{Bundle: set.Bundle()}); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, o := range broker.Prove(t.Context(), probes) {
		if !o.Right() {
			t.Errorf("%s was %s (alert %d)", o.Probe.Name, o.Verdict, o.Alert)
		}
	}
	r.connect(r.device("dev-1"))
	if _, err := r.dial(r.feed.CA("second").Leaf(t, "dev-1")); err == nil {
		t.Error("a CA with an expired CRL is trusted")
	}
}
