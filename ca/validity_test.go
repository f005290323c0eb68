// From when to when certificates are valid, to the second and to the octet, by the profile's rules and the end of the issuer.

package ca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

const (
	utcTime         = 0x17 // "years through 2049 MUST be encoded as UTCTime" (RFC 5280 section 4.1.2.5),
	generalizedTime = 0x18 // "in 2050 or later as GeneralizedTime"
)

func TestValidityOfCertificates(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for _, req := range []ca.CreateRequest{ // one that outlives 2050
		{Name: "long-root", Subject: "CN=Long Root", Years: 40},
		{Name: "births", Subject: "CN=Births", Parent: "long-root", PublicURL: "http://pki.example.com:8080", Use: "birth", Years: 35},
	} {
		if _, err := i.CA.Create(ctx, "test", req); err != nil {
			t.Fatal(err)
		}
	}
	ends := map[string]time.Time{}
	for _, name := range []string{"devices", "births"} {
		info, err := i.CA.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		ends[name] = info.Certificate.NotAfter
	}
	from := i.Clock.Clock().Now()
	lasting := func(d time.Duration) time.Time { return from.Add(d - time.Second) }
	ceiling := lasting(30 * 366 * day) // of use birth
	for n, tc := range []struct {
		ca, lines string
		end       time.Time // zero: refused
		form      byte
		text      string // as it has to stand in the certificate; "": not looked at
	}{
		{"devices", "validity: 1m", lasting(time.Minute), utcTime, "270301120059Z"}, // no profile may say less
		{"devices", "validity: 1m\nbackdate: 5m", time.Time{}, 0, ""},               // over before it is issued
		{"devices", "validity: 10m\nbackdate: 5m", lasting(5 * time.Minute), utcTime, "270301120459Z"},
		{"devices", "validity: 47d", lasting(47 * day), utcTime, "270417115959Z"},
		{"births", "validity: 7305d", lasting(7305 * day), utcTime, "470301115959Z"}, // twenty years
		{"devices", "not_after: 2035-06-01T00:00:00Z", lasting(5 * 366 * day), utcTime, ""},
		{"births", "not_after: 2049-12-31T23:59:59Z", time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), utcTime, "491231235959Z"},
		{"births", "not_after: 2050-01-01T00:00:00Z", time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC), generalizedTime, "20500101000000Z"},
		{"births", "not_after: 9999-12-31T23:59:59Z", ceiling, generalizedTime, ceiling.Format("20060102150405Z")},
		{"births", "not_after: 9999-12-31T23:59:59Z\nbeyond_issuer: refuse", ceiling, generalizedTime, ""}, // the ceiling is before the issuer's end
		{"devices ending", "validity: 1000d", ends["devices"], utcTime, ""},
		{"devices ending", "validity: 1000d\nbeyond_issuer: refuse", time.Time{}, 0, ""},
		{"devices ending", "not_after: 9999-12-31T23:59:59Z", ends["devices"], utcTime, ""},
		{"devices ending", "not_after: 9999-12-31T23:59:59Z\nbeyond_issuer: refuse", time.Time{}, 0, ""},
	} {
		name, ending := strings.CutSuffix(tc.ca, " ending")
		if ending && i.Clock.Clock().Now().Before(ends[name].Add(-day)) {
			i.Clock.Advance(ends[name].Add(-100 * day).Sub(i.Clock.Clock().Now()))
		}
		use := map[string]string{"devices": "broker", "births": "birth"}[name]
		made := fmt.Sprint("validity-", n)
		_, err := i.CA.AddProfile(ctx, "test", []byte("name: "+made+"\nuse: "+use+"\nkeys: [ec:P-256]\nextended_key_usage: [clientAuth]\nsubject: {common_name: device}\n"+tc.lines+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := i.CA.Issue(ctx, request(name, made, "dev-1", installation.Key(t).Public()))
		if tc.end.IsZero() {
			var refused *ca.Error
			if !errors.As(err, &refused) || refused.Rule != "validity" {
				t.Errorf("%s, %q: %v, want it refused for its validity", tc.ca, tc.lines, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s, %q: %v", tc.ca, tc.lines, err)
			continue
		}
		leaf := parse(t, c.DER)
		if !leaf.NotAfter.Equal(tc.end) || leaf.NotAfter.After(ends[name]) || !c.NotAfter.Equal(tc.end) {
			t.Errorf("%s, %q: until %v, want %v", tc.ca, tc.lines, leaf.NotAfter, tc.end)
		}
		text := tc.text
		if text == "" {
			text = tc.end.Format(map[byte]string{utcTime: "060102150405Z", generalizedTime: "20060102150405Z"}[tc.form])
		}
		mustSay(t, leaf, tc.form, text)
	}
}

// mustSay looks at the octets of the end, and asks openssl.
func mustSay(t *testing.T, leaf *x509.Certificate, form byte, text string) {
	t.Helper()
	if octets := append([]byte{form, byte(len(text))}, text...); !bytes.Contains(leaf.RawTBSCertificate, octets) {
		t.Errorf("no %q in tag %#x in the certificate until %v", text, form, leaf.NotAfter)
	}
	file := filepath.Join(t.TempDir(), "leaf.pem")
	testpki.WriteFile(t, file, testpki.CertPEM(leaf))
	out := harness.MustRun(t, harness.Program(t, "openssl"), "x509", "-in", file, "-noout", "-enddate").Stdout
	if want := "notAfter=" + leaf.NotAfter.Format("Jan _2 15:04:05 2006") + " GMT"; strings.TrimSpace(out) != want {
		t.Errorf("openssl says %q, want %q", strings.TrimSpace(out), want)
	}
}

// A CA's own end: the 2050 boundary falls between the certificates of one and the same CA as well.
func TestValidityOfCAs(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	from := i.Clock.Clock().Now().Add(-5 * time.Minute)
	for _, tc := range []struct {
		name  string
		years int
		form  byte
	}{{"twenty", 20, utcTime}, {"to-2049", 22, utcTime}, {"to-2050", 23, generalizedTime}} {
		info, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: tc.name, Subject: "CN=" + tc.name, Years: tc.years})
		if err != nil {
			t.Fatal(err)
		}
		if want := from.AddDate(tc.years, 0, 0).Add(-time.Second); !info.Certificate.NotAfter.Equal(want) {
			t.Errorf("%s: until %v, want %v", tc.name, info.Certificate.NotAfter, want)
		}
		layout := map[byte]string{utcTime: "060102150405Z", generalizedTime: "20060102150405Z"}[tc.form]
		mustSay(t, info.Certificate, tc.form, info.Certificate.NotAfter.Format(layout))
	}
}
