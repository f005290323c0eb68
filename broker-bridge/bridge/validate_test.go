// Each rule of validation, broken alone.

package bridge

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/test/testpki"
)

// offer is a set as a server announces it, with the CRLs that it would deliver.
type offer struct {
	t       *testing.T
	root    *testpki.Authority
	devices *testpki.Authority
	other   *testpki.Authority
	set     feedapi.TrustSet
	ders    map[string][]byte
}

func newOffer(t *testing.T) *offer {
	o := &offer{t: t, root: testpki.Root(t, "root"), ders: map[string][]byte{}}
	o.devices, o.other = o.root.Intermediate(t, "devices"), o.root.Intermediate(t, "other")
	o.set = feedapi.TrustSet{Seq: 7, Anchors: []string{string(o.root.PEM())}}
	o.issuer("devices", o.devices)
	o.issuer("other", o.other)
	o.crl("devices", o.devices, o.devices.CRL(t, 5, time.Hour*24, big.NewInt(99)))
	o.crl("other", o.other, o.other.CRL(t, 9, time.Hour*24))
	return o
}

func keyIDOf(a *testpki.Authority) string { return hex.EncodeToString(a.Certificate.SubjectKeyId) }

func (o *offer) issuer(name string, a *testpki.Authority, chain ...*testpki.Authority) {
	i := feedapi.Issuer{Name: name, KeyID: keyIDOf(a), Certificate: string(a.PEM())}
	for _, c := range chain {
		i.Chain = append(i.Chain, string(c.PEM()))
	}
	o.set.Issuers = append(o.set.Issuers, i)
}

// crl announces der for a's key, in place of what was announced for it.
func (o *offer) crl(name string, a *testpki.Authority, der []byte) {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		o.t.Fatal(err)
	}
	o.dropCRL(name)
	o.set.CRLs = append(o.set.CRLs, announce(name, keyIDOf(a), crl))
	o.ders[fingerprint(der)] = der
}

func (o *offer) dropCRL(name string) {
	o.set.CRLs = slices.DeleteFunc(o.set.CRLs, func(c feedapi.CRL) bool { return c.Issuer == name })
}

// signCRL signs any CRL by a.
func (o *offer) signCRL(a *testpki.Authority, edit func(*x509.RevocationList)) []byte {
	now := time.Now()
	l := &x509.RevocationList{Number: big.NewInt(6), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(24 * time.Hour)}
	edit(l)
	der, err := x509.CreateRevocationList(rand.Reader, l, a.Certificate, a.Key)
	if err != nil {
		o.t.Fatal(err)
	}
	return der
}

// validate has last as the good set before; nil for none.
func (o *offer) validate(last *Set, approved ...string) (*Set, []*Refusal) {
	rules := Rules{Now: time.Now(), MaxCRLEntries: 1000, Poll: 30 * time.Second,
		Approved: func(d string) bool { return slices.Contains(approved, d) }}
	if last != nil {
		rules.Last, rules.Good = last.Mark(), []*Set{last}
	}
	return Validate(o.set, o.ders, rules)
}

// whole is the set of an offer of which nothing must be refused.
func (o *offer) whole(last *Set, approved ...string) *Set {
	o.t.Helper()
	set, refusals := o.validate(last, approved...)
	if len(refusals) > 0 || set == nil || set.Partial || len(set.LeftOut) > 0 {
		o.t.Fatalf("set %+v, refused: %v", set, refusals)
	}
	return set
}

func codeOf(err error) string {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

func codesOf(refusals []*Refusal) []string {
	var codes []string
	for _, r := range refusals {
		codes = append(codes, r.Code)
	}
	return codes
}

func digestOf(refusals []*Refusal) string { return (&Bridge{refusals: refusals}).approval() }

func TestValidateTakesAGoodSet(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	set := o.whole(nil)
	if set.Seq != 7 || len(set.Issuers) != 2 || !set.Issuer("devices").Revoked(big.NewInt(99)) || set.Issuer("other").Revoked(big.NewInt(99)) {
		t.Errorf("set is not what was offered: %+v", set)
	}
	again, err := parseBundle(set.Bundle(), set.Mark())
	if err != nil {
		t.Fatal(err)
	}
	if again.Issuer("devices") == nil || string(again.Bundle()) != string(set.Bundle()) {
		t.Error("the bundle does not read back as the set")
	}
	o.whole(set)
	if strings.Count(string(set.Bundle()), "BEGIN CERTIFICATE") != 3 || strings.Count(string(set.Bundle()), "BEGIN X509 CRL") != 2 {
		t.Errorf("bundle holds something else than 3 certificates and 2 CRLs")
	}
}

func TestValidateRefuses(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		code  string
		spoil func(*offer)
	}{
		{"no anchor", CodeEmpty, func(o *offer) { o.set.Anchors = nil }},
		{"no issuer", CodeEmpty, func(o *offer) { o.set.Issuers = nil }},
		{"anchor is text", CodeEncoding, func(o *offer) { o.set.Anchors[0] = "hello" }},
		{"anchor with something after it", CodeEncoding, func(o *offer) { o.set.Anchors[0] += "listener 1883\n" }},
		{"anchor not self-signed", CodeAnchor, func(o *offer) { o.set.Anchors[0] = string(o.devices.PEM()) }},
		{"anchor is no CA", CodeAnchor, func(o *offer) { o.set.Anchors[0] = string(testpki.SelfSigned(o.t, "x").PEM()) }},
		{"issuer is no CA", CodeIssuer, func(o *offer) {
			o.set.Issuers, o.set.CRLs = nil, nil
			o.issuer("devices", o.root.Intermediate(o.t, "devices", testpki.NotCA()))
		}},
		{"issuer may not sign CRLs", CodeIssuer, func(o *offer) {
			o.issuer("third", o.root.Intermediate(o.t, "third", testpki.KeyUsage(x509.KeyUsageCertSign)))
		}},
		{"issuer of a foreign root", CodeUntrusted, func(o *offer) {
			foreign := testpki.Root(o.t, "foreign").Intermediate(o.t, "third")
			o.issuer("third", foreign)
			o.crl("third", foreign, foreign.CRL(o.t, 1, time.Hour))
		}},
		{"issuer of a root with the anchor's name", CodeUntrusted, func(o *offer) {
			o.issuer("third", testpki.Root(o.t, "root").Intermediate(o.t, "third"))
		}},
		{"issuer below a missing intermediate", CodeUntrusted, func(o *offer) {
			o.issuer("third", o.root.Intermediate(o.t, "mid").Intermediate(o.t, "third"))
		}},
		{"announced key is another's", CodeIssuer, func(o *offer) { o.set.Issuers[0].KeyID = keyIDOf(o.other) }},
		{"CRL missing", CodeCRLMissing, func(o *offer) { o.dropCRL("other") }},
		{"CRL announced and not delivered", CodeCRLMissing, func(o *offer) { clear(o.ders) }},
		{"CRL of no issuer", CodeCRLExtra, func(o *offer) { o.crl("root", o.root, o.root.CRL(o.t, 1, time.Hour)) }},
		{"two CRLs of one issuer", CodeCRLExtra, func(o *offer) { o.set.CRLs = append(o.set.CRLs, o.set.CRLs[0]) }},
		{"delivered CRL is another one", CodeCRLMismatch, func(o *offer) {
			for sum := range o.ders {
				o.ders[sum] = o.devices.CRL(o.t, 5, time.Hour)
			}
		}},
		{"announced number is another", CodeCRLMismatch, func(o *offer) { o.set.CRLs[0].Number++ }},
		{"wrong signature", CodeCRLSignature, func(o *offer) {
			der := o.devices.CRL(o.t, 6, time.Hour)
			der[len(der)-1] ^= 1
			o.crl("devices", o.devices, der)
		}},
		{"signed by another CA", CodeCRLSignature, func(o *offer) { o.crl("devices", o.devices, o.other.CRL(o.t, 6, time.Hour)) }},
		{"signed by a CA of the same name", CodeCRLSignature, func(o *offer) {
			o.crl("devices", o.devices, o.root.Intermediate(o.t, "devices").CRL(o.t, 6, time.Hour))
		}},
		{"truncated", CodeEncoding, func(o *offer) {
			der := o.devices.CRL(o.t, 6, time.Hour)
			o.crl("devices", o.devices, der)
			cut := der[:len(der)-9]
			o.set.CRLs[len(o.set.CRLs)-1].SHA256 = fingerprint(cut)
			o.ders[fingerprint(cut)] = cut
		}},
		{"delta", CodeCRLDelta, func(o *offer) {
			o.crl("devices", o.devices, o.signCRL(o.devices, func(l *x509.RevocationList) {
				l.ExtraExtensions = []pkix.Extension{{Id: oidDeltaCRL, Critical: true, Value: []byte{2, 1, 5}}}
			}))
		}},
		{"partitioned", CodeCRLCritical, func(o *offer) {
			o.crl("devices", o.devices, o.signCRL(o.devices, func(l *x509.RevocationList) {
				l.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}
			}))
		}},
		{"indirect", CodeCRLCritical, func(o *offer) {
			o.crl("devices", o.devices, o.signCRL(o.devices, func(l *x509.RevocationList) {
				l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(1), RevocationTime: time.Now(),
					ExtraExtensions: []pkix.Extension{{Id: oidCertificateIssuer, Critical: true, Value: []byte{0x30, 0}}}}}
			}))
		}},
		{"replayed", CodeCRLReplayed, func(o *offer) { o.crl("devices", o.devices, o.devices.CRL(o.t, 4, time.Hour)) }},
		{"number used twice", CodeCRLReused, func(o *offer) { o.crl("devices", o.devices, o.devices.CRL(o.t, 5, time.Hour)) }},
		{"thisUpdate goes back", CodeCRLBackwards, func(o *offer) {
			o.crl("devices", o.devices, o.signCRL(o.devices, func(l *x509.RevocationList) { l.ThisUpdate = time.Now().Add(-time.Hour) }))
		}},
		{"not yet valid", CodeCRLFuture, func(o *offer) {
			o.crl("devices", o.devices, o.signCRL(o.devices, func(l *x509.RevocationList) { l.ThisUpdate = time.Now().Add(time.Minute) }))
		}},
		{"expired", CodeCRLExpired, func(o *offer) {
			o.crl("devices", o.devices, o.signCRL(o.devices, func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Second) }))
		}},
		{"about to expire", CodeCRLExpired, func(o *offer) { o.crl("devices", o.devices, o.devices.CRL(o.t, 6, 9*time.Minute)) }},
		{"too large", CodeCRLSize, func(o *offer) {
			o.crl("devices", o.devices, o.signCRL(o.devices, func(l *x509.RevocationList) {
				for i := range 1001 {
					l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
						x509.RevocationListEntry{SerialNumber: big.NewInt(int64(i + 1)), RevocationTime: time.Now()})
				}
			}))
		}},
		{"issuer went away", CodeShrunk, func(o *offer) {
			o.dropCRL("other")
			o.set.Issuers = o.set.Issuers[:1]
		}},
		{"anchor replaced", CodeShrunk, func(o *offer) {
			root := testpki.Root(o.t, "new root")
			ca := root.Intermediate(o.t, "new")
			o.set = feedapi.TrustSet{Seq: 8, Anchors: []string{string(root.PEM())}}
			o.issuer("new", ca)
			o.crl("new", ca, ca.CRL(o.t, 1, time.Hour))
		}},
		{"foreign root added", CodeAnchorAdded, func(o *offer) {
			root := testpki.Root(o.t, "foreign")
			ca := root.Intermediate(o.t, "third")
			o.set.Anchors = append(o.set.Anchors, string(root.PEM()))
			o.issuer("third", ca)
			o.crl("third", ca, ca.CRL(o.t, 1, time.Hour))
		}},
	}
	seen := map[string]bool{CodeCanaryMissing: true, CodeCanaryUnlisted: true, CodeDeviceID: true, CodeProof: true} // not found by Validate
	for _, c := range cases {
		seen[c.code] = true
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := newOffer(t)
			first := o.whole(nil)
			c.spoil(o)
			set, refusals := o.validate(first)
			if len(refusals) == 0 || refusals[0].Code != c.code {
				t.Errorf("refused: %v, want %s", refusals, c.code)
			}
			if set == nil || !set.Partial || string(set.Bundle()) != string(first.Bundle()) {
				t.Error("the last good set did not stay")
			}
		})
	}
	for _, code := range codes {
		if !seen[code] {
			t.Errorf("no case for %s", code)
		}
	}
}

func TestValidateTakesChangesThatNeedNoApproval(t *testing.T) {
	t.Parallel()
	cases := map[string]func(*offer){
		"newer CRL":      func(o *offer) { o.crl("devices", o.devices, o.devices.CRL(o.t, 6, time.Hour)) },
		"issuer renamed": func(o *offer) { o.set.Issuers[0].Name = "renamed" },
		"new issuer": func(o *offer) {
			c := o.root.Intermediate(o.t, "c")
			o.issuer("c", c)
			o.crl("c", c, c.CRL(o.t, 1, time.Hour))
		},
		"same name, other key": func(o *offer) {
			c := o.root.Intermediate(o.t, "devices")
			o.issuer("devices-2", c)
			o.crl("devices-2", c, c.CRL(o.t, 1, time.Hour))
		},
		"issuer two below": func(o *offer) {
			mid := o.root.Intermediate(o.t, "mid")
			c := mid.Intermediate(o.t, "c")
			o.issuer("c", c, mid)
			o.crl("c", c, c.CRL(o.t, 1, time.Hour))
		},
		"issuer expired": func(o *offer) {
			c := o.root.Intermediate(o.t, "c", testpki.Valid(time.Now().Add(-3*time.Minute), time.Now().Add(-time.Minute)))
			o.issuer("c", c)
			o.crl("c", c, c.CRL(o.t, 1, time.Hour))
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOffer(t)
			first := o.whole(nil)
			change(o)
			o.whole(first)
		})
	}
}

func TestApprovalIsForOneChange(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	first := o.whole(nil)
	o.dropCRL("other")
	o.set.Issuers = o.set.Issuers[:1]
	_, refusals := o.validate(first)
	digest := digestOf(refusals)
	if digest == "" {
		t.Fatalf("%v names no approval", refusals)
	}
	if set := o.whole(first, digest); set.Issuer("other") != nil {
		t.Error("approved, and the CA is still there")
	}
	root := testpki.Root(t, "foreign")
	o.set.Anchors = append(o.set.Anchors, string(root.PEM()))
	set, refusals := o.validate(first, digest)
	if digestOf(refusals) == "" || len(set.Anchors) != 1 || set.Issuer("other") == nil {
		t.Error("the approval of one change let another one pass")
	}
}

func TestReplayOfACAThatWentAwayIsNoticed(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	first := o.whole(nil)
	without := *first
	without.Issuers = slices.DeleteFunc(slices.Clone(first.Issuers), func(i Issuer) bool { return i.Name == "other" })
	mark := without.Mark().after(first.Mark())
	o.crl("other", o.other, o.other.CRL(t, 8, time.Hour))
	set, refusals := Validate(o.set, o.ders, Rules{Now: time.Now(), Last: mark, Good: []*Set{&without}})
	if !slices.Equal(codesOf(refusals), []string{CodeCRLReplayed}) || set.Issuer("other") != nil || !slices.Equal(set.LeftOut, []string{"other"}) {
		t.Errorf("refused: %v, set %+v", refusals, set)
	}
}
