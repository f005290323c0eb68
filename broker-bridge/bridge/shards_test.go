// A CA with several CRLs is in with all of them or not at all, and each goes forward by itself.

package bridge

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"slices"
	"testing"

	"github.com/natal-pki/natal/internal/feedapi"
)

const testShards = 4

// shards announces several CRLs for the CA devices, numbered from number on.
func (o *offer) shards(number int64, edit func(shard int, a *feedapi.CRL, l *x509.RevocationList)) {
	o.dropCRL("devices")
	for shard := range testShards {
		a := feedapi.CRL{Shard: shard, Shards: testShards, Address: fmt.Sprintf("http://pki.example.com:8080/crl/devices/%d.crl", shard)}
		der := o.signCRL(o.devices, func(l *x509.RevocationList) {
			l.Number = big.NewInt(number + int64(shard))
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(int64(100 + shard)), RevocationTime: l.ThisUpdate}}
			l.ExtraExtensions = []pkix.Extension{{Id: oidDistributionPoint, Critical: true, Value: distributionPoint(a.Address)}}
			edit(shard, &a, l)
		})
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			o.t.Fatal(err)
		}
		full := announce("devices", keyIDOf(o.devices), crl)
		full.Shard, full.Shards, full.Address = a.Shard, a.Shards, a.Address
		o.set.CRLs, o.ders[fingerprint(der)] = append(o.set.CRLs, full), der
	}
}

func asTheyAre(int, *feedapi.CRL, *x509.RevocationList) {}

func (o *offer) numbers(set *Set) []int64 {
	var list []int64
	for _, c := range set.Issuer("devices").CRLs {
		list = append(list, c.Number.Int64())
	}
	return list
}

func TestShards(t *testing.T) {
	t.Parallel()
	o := newOffer(t)
	o.shards(10, asTheyAre)
	first, refusals := o.validate(nil)
	if len(refusals) > 0 || !slices.Equal(o.numbers(first), []int64{10, 11, 12, 13}) {
		t.Fatalf("%v, %v", refusals, first)
	}
	for shard := range testShards {
		if !first.lists("devices", big.NewInt(int64(100+shard))) {
			t.Errorf("the entry of shard %d is not in the set", shard)
		}
	}
	again, err := parseBundle(first.Bundle(), first.Mark())
	if err != nil || len(again.Issuer("devices").CRLs) != testShards || !slices.Equal(o.numbers(again), o.numbers(first)) {
		t.Errorf("read back from the bundle: %v, %+v", err, again)
	}
	for name, tc := range map[string]struct {
		edit func()
		code string
		want []int64
	}{
		"one that is missing": {func() {
			o.set.CRLs = slices.DeleteFunc(o.set.CRLs, func(c feedapi.CRL) bool { return c.Shard == 2 && c.Shards > 1 })
		}, CodeCRLMissing, []int64{20, 21, 12, 23}},
		"one that is not delivered": {func() { delete(o.ders, o.set.CRLs[len(o.set.CRLs)-1].SHA256) }, CodeCRLMissing, []int64{20, 21, 22, 13}},
		"one with another's address": {func() {
			o.shards(20, func(shard int, a *feedapi.CRL, l *x509.RevocationList) {
				if shard == 1 {
					l.ExtraExtensions[0].Value = distributionPoint("http://pki.example.com:8080/crl/devices/2.crl")
				}
			})
		}, CodeCRLCritical, []int64{20, 11, 22, 23}},
		"one of all certificates": {func() {
			o.shards(20, func(shard int, a *feedapi.CRL, l *x509.RevocationList) {
				if shard == 0 {
					l.ExtraExtensions = nil
				}
			})
		}, CodeCRLMismatch, []int64{10, 21, 22, 23}},
		"one with a number of before": {func() {
			o.shards(20, func(shard int, a *feedapi.CRL, l *x509.RevocationList) {
				if shard == 3 {
					l.Number = big.NewInt(9)
				}
			})
		}, CodeCRLReplayed, []int64{20, 21, 22, 13}},
		"two with one address": {func() {
			o.shards(20, func(shard int, a *feedapi.CRL, l *x509.RevocationList) {
				a.Address = "http://pki.example.com:8080/crl/devices/0.crl"
			})
		}, CodeCRLMismatch, []int64{10, 11, 12, 13}},
		"another count": {func() { o.crl("devices", o.devices, o.devices.CRL(t, 30, 24*3600e9)) }, CodeCRLMismatch, []int64{10, 11, 12, 13}},
	} {
		o.shards(20, asTheyAre)
		tc.edit()
		set, refusals := o.validate(first)
		if !slices.Contains(codesOf(refusals), tc.code) || !slices.Equal(o.numbers(set), tc.want) {
			t.Errorf("%s: refused %v, CRLs %v, want %s and %v", name, refusals, o.numbers(set), tc.code, tc.want)
		}
	}
	o.shards(20, asTheyAre)
	o.set.CRLs = slices.DeleteFunc(o.set.CRLs, func(c feedapi.CRL) bool { return c.Shard == 2 && c.Shards > 1 })
	if set, refusals := o.validate(nil); set.Issuer("devices") != nil || !slices.Contains(codesOf(refusals), CodeCRLMissing) {
		t.Errorf("a CA without one of its CRLs is in the set; refused: %v", refusals)
	}
}
