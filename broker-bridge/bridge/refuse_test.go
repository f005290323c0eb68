// A source that lies or is broken: every such set is refused with its code, the broker keeps the last good one, and the next good
// set is taken.

package bridge

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/test/testpki"
)

func refusedFor(r *rig, code string) bool {
	return slices.ContainsFunc(r.bridge.Status().Refusals, func(s string) bool { return strings.HasPrefix(s, code+":") })
}

// lie replaces the CRL of "devices" in what the feed announces.
func lie(f *fakeFeed, set *feedapi.TrustSet, ders map[string][]byte, der []byte) {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		f.t.Error(err)
		return
	}
	set.CRLs[0] = announce("devices", set.CRLs[0].KeyID, crl)
	ders[fingerprint(der)] = der
}

func TestBadSetsAreRefusedAndTheLastGoodOneStays(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-good", "dev-bad")
	r.startBridge()
	r.ready()
	good, bad := r.device("dev-good"), r.device("dev-bad")
	live := r.connect(good)
	r.feed.Revoke(bad, "keyCompromise", false)
	r.ready()
	devices := r.feed.CA("devices")
	serial := bad.Certificate.SerialNumber
	foreign := testpki.Root(t, "foreign")
	foreignCA := foreign.Intermediate(t, "foreign devices")
	old := r.feed.issuer("devices").der
	o := &offer{t: t}

	cases := []struct {
		name, code string
		tamper     func(*feedapi.TrustSet, map[string][]byte)
	}{
		{"signature of another key", CodeCRLSignature, func(set *feedapi.TrustSet, ders map[string][]byte) {
			lie(r.feed, set, ders, r.feed.root.Intermediate(t, "devices").CRL(t, 1000, time.Hour))
		}},
		{"un-revocation by replay", CodeCRLReplayed, func(set *feedapi.TrustSet, ders map[string][]byte) {
			lie(r.feed, set, ders, devices.CRL(t, 1, time.Hour))
		}},
		{"missing CRL", CodeCRLMissing, func(set *feedapi.TrustSet, _ map[string][]byte) { set.CRLs = nil }},
		{"expired", CodeCRLExpired, func(set *feedapi.TrustSet, ders map[string][]byte) {
			lie(r.feed, set, ders, o.signCRL(devices, func(l *x509.RevocationList) {
				l.Number, l.NextUpdate = big.NewInt(1001), time.Now().Add(-time.Second)
			}))
		}},
		{"delta", CodeCRLDelta, func(set *feedapi.TrustSet, ders map[string][]byte) {
			lie(r.feed, set, ders, o.signCRL(devices, func(l *x509.RevocationList) {
				l.Number = big.NewInt(1002)
				l.ExtraExtensions = []pkix.Extension{{Id: oidDeltaCRL, Critical: true, Value: []byte{2, 1, 5}}}
			}))
		}},
		{"no revoked canary in it", CodeCanaryUnlisted, func(set *feedapi.TrustSet, ders map[string][]byte) {
			lie(r.feed, set, ders, devices.CRL(t, 1003, time.Hour, serial))
		}},
		{"foreign CA", CodeAnchorAdded, func(set *feedapi.TrustSet, ders map[string][]byte) {
			der := foreignCA.CRL(t, 1, time.Hour)
			ders[fingerprint(der)] = der
			crl, _ := x509.ParseRevocationList(der)
			set.Anchors = append(set.Anchors, string(foreign.PEM()))
			set.Issuers = append(set.Issuers, feedapi.Issuer{Name: "foreign", KeyID: keyIDOf(foreignCA), Certificate: string(foreignCA.PEM())})
			set.CRLs = append(set.CRLs, announce("foreign", keyIDOf(foreignCA), crl))
		}},
		{"foreign CA under our root's name", CodeUntrusted, func(set *feedapi.TrustSet, _ map[string][]byte) {
			fake := testpki.Root(t, "root").Intermediate(t, "fake")
			set.Issuers = append(set.Issuers, feedapi.Issuer{Name: "fake", KeyID: keyIDOf(fake), Certificate: string(fake.PEM())})
		}},
		{"nothing", CodeEmpty, func(set *feedapi.TrustSet, _ map[string][]byte) { *set = feedapi.TrustSet{Seq: set.Seq} }},
	}
	before := r.read("bundle.pem")
	if !bytes.Contains(before, crlPEM(old)) {
		t.Fatal("the set before is not in place")
	}
	for _, c := range cases {
		r.feed.Change(func() { r.feed.tamper = c.tamper })
		eventually(t, patience, c.name+" is refused as "+c.code, func() bool {
			return refusedFor(r, c.code) && r.counter("bridge_validation_failures_total", c.code) > 0
		})
		if !bytes.Equal(r.read("bundle.pem"), before) {
			t.Fatalf("%s: the broker's file was changed", c.name)
		}
		if _, err := r.dial(bad); err == nil {
			t.Errorf("%s: the revoked device is in", c.name)
		}
		if s, err := r.dial(good); err != nil {
			t.Errorf("%s: the good device is out: %v", c.name, err)
		} else {
			s.conn.Close()
		}
		eventually(t, patience, "the server is told", func() bool { return has(r.feed.lastAck().Error, c.code) })
	}
	r.feed.Change(func() { r.feed.tamper = nil })
	third := r.device("dev-third")
	r.feed.Revoke(third, "keyCompromise", false)
	r.ready()
	if _, err := r.dial(third); err == nil {
		t.Error("the good set after the bad ones was not taken")
	}
	if !live.alive() {
		t.Error("a session was lost")
	}
}

func TestShrunkTrustWaitsForApproval(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.feed.Change(func() { r.feed.addIssuer("second", r.feed.root.Intermediate(t, "second")) })
	r.startBridge()
	r.ready()
	second := r.feed.CA("second").Leaf(t, "dev-1")
	r.connect(second)
	r.feed.Change(func() { r.feed.issuers = r.feed.issuers[:1] })
	eventually(t, patience, "the smaller set waits", func() bool { return r.bridge.Status().Approval != "" })
	if r.counter("bridge_pending_approval", "") != 1 {
		t.Error("bridge_pending_approval is not 1")
	}
	r.connect(second)
	if err := Approve(r.conf.State, r.bridge.Status().Approval); err != nil {
		t.Fatal(err)
	}
	r.feed.Change(func() {})
	r.ready()
	if _, err := r.dial(second); err == nil {
		t.Error("the CA that was agreed to go is still trusted")
	}
	r.connect(r.device("dev-1"))
}

func TestNewIssuerNeedsNoRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.startBridge()
	r.ready()
	live := r.connect(r.device("dev-1"))
	next := r.feed.root.Intermediate(t, "next")
	leaf := next.Leaf(t, "dev-1")
	if _, err := r.dial(leaf); err == nil {
		t.Fatal("a CA that nobody announced is trusted: its CRL is what lets it in")
	}
	r.feed.Change(func() { r.feed.addIssuer("next", next) })
	r.ready()
	r.connect(leaf)
	if !live.alive() {
		t.Error("a session was lost")
	}
}
