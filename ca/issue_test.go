// Certificates of every shipped profile, judged by openssl and zlint, and the requests that issue nothing.

package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

func wantError(t *testing.T, err error, kind ca.Kind, rule string) {
	t.Helper()
	var typed *ca.Error
	if !errors.As(err, &typed) || typed.Kind != kind || typed.Rule != rule {
		t.Errorf("got %v, want %s %s", err, kind, rule)
	}
}

// request asks for a certificate as registration does.
func request(authority, profile, device string, key crypto.PublicKey) ca.Request {
	return ca.Request{CA: authority, Profile: profile, Device: device, PublicKey: key, Label: "default", RequesterKind: "code", Requester: "x", Actor: "device:" + device}
}

func issue(t testing.TB, i *installation.Installation, authority, device string) ca.Certificate {
	t.Helper()
	c, err := i.CA.Issue(context.Background(), request(authority, "iot-device", device, installation.Key(t).Public()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func count(t *testing.T, db *database.DB, query string, args ...any) (n int64) {
	t.Helper()
	if err := db.Get(context.Background(), &n, query, args...); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestEveryProfileVerifies(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for _, r := range []ca.CreateRequest{
		{Name: "birth", Parent: "root", Use: "birth", PublicURL: "http://pki.example.com"},
		{Name: "p384", Parent: "root", Use: "broker", Key: "ec:P-384", PublicURL: "http://pki.example.com"},
		{Name: "rsa", Parent: "root", Use: "broker", Key: "rsa:3072", Subject: "CN=Devices\\, RSA,O=Example,C=DE"},
	} {
		if _, err := i.CA.Create(ctx, "test", r); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		authority, profile, key, purpose string
		registered                       []string
		want                             []string
	}{
		{"devices", "iot-device", "ec:P-256", "sslclient", nil, []string{"ecdsa-with-SHA256", "Subject: CN = id.example", "Digital Signature\n", "TLS Web Client Authentication", "CA:FALSE",
			"URI:http://pki.example.com:8080/crl/devices.crl", "CA Issuers - URI:http://pki.example.com:8080/ca/devices.der", "OCSP - URI:http://pki.example.com:8080/ocsp/devices"}},
		{"devices", "iot-device", "rsa:2048", "sslclient", nil, []string{"Digital Signature, Key Encipherment"}},
		{"devices", "iot-device-rsa2048", "rsa:2048", "sslclient", nil, []string{"Digital Signature, Key Encipherment", "TLS Web Client Authentication"}},
		{"devices", "canary", "ec:P-256", "sslclient", nil, nil},
		{"p384", "iot-device", "ec:P-384", "sslclient", nil, []string{"ecdsa-with-SHA384"}},
		{"rsa", "iot-device", "ec:P-256", "sslclient", nil, []string{"sha256WithRSAEncryption", `CN = "Devices, RSA"`}},
		{"birth", "birth", "ec:P-256", "sslclient", nil, []string{"serialNumber = id.example"}},
		{"management", "bridge", "ec:P-256", "sslclient", nil, nil},
		{"management", "admin", "ec:P-384", "sslclient", nil, nil},
		{"management", "mqtt-server", "rsa:2048", "sslserver", []string{"dns:b.example", "ip:192.0.2.7"}, []string{"DNS:id.example, DNS:b.example, IP Address:192.0.2.7", "TLS Web Server Authentication"}},
		{"management", "est-server", "ec:P-256", "sslserver", []string{"dns:est.example"}, []string{"Subject: CN = est.example", "DNS:est.example"}},
		{"devices", "ocsp-signer", "ec:P-256", "ocsphelper", nil, []string{"OCSP Signing", "OCSP No Check"}},
		{"management", "ocsp-signer", "rsa:2048", "ocsphelper", nil, []string{"Digital Signature\n"}},
	} {
		t.Run(tc.authority+" "+tc.profile+" "+tc.key, func(t *testing.T) {
			t.Parallel()
			r := request(tc.authority, tc.profile, "id.example", testpki.Key(t, tc.key).Public())
			r.Registered = tc.registered
			if tc.profile == "ocsp-signer" {
				r.RequesterKind = ca.RequesterServer
			}
			record, err := i.CA.Issue(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			c := parse(t, record.DER)
			p, err := i.CA.Profile(ctx, tc.profile)
			if err != nil {
				t.Fatal(err)
			}
			want := c.NotBefore.Add(p.Validity() - time.Second)
			if info, err := i.CA.Get(ctx, tc.authority); err == nil && want.After(info.Certificate.NotAfter) { // a birth certificate's 25 years
				want = info.Certificate.NotAfter
			}
			if !c.NotAfter.Equal(want) || c.NotBefore.After(installation.Start) || c.NotBefore.Before(installation.Start.Add(-5*time.Minute)) {
				t.Errorf("from %v to %v, want %v", c.NotBefore, c.NotAfter, want)
			}
			if record.State != ca.Issued || record.Serial != ca.SerialHex(c.SerialNumber) || record.ProfileHash != p.Hash() || !record.NotAfter.Equal(c.NotAfter) {
				t.Errorf("record %+v", record)
			}
			text := judge(t, i, tc.authority, c, tc.purpose)
			for _, want := range tc.want {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in:\n%s", want, text)
				}
			}
		})
	}
}

// judge has openssl verify a certificate strictly, CRLs of the whole chain included, and zlint look at it. It returns openssl's text.
func judge(t *testing.T, i *installation.Installation, authority string, c *x509.Certificate, purpose string) string {
	t.Helper()
	info, err := i.CA.Get(context.Background(), authority)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		return testpki.WriteFile(t, filepath.Join(dir, name), content)
	}
	untrusted := append([]*x509.Certificate{info.Certificate}, info.Chain[:len(info.Chain)-1]...)
	leaf := write("leaf.pem", testpki.CertPEM(c))
	openssl := harness.Program(t, "openssl")
	at := fmt.Sprint(i.Clock.Clock().Now().Unix())
	r := harness.Run(t, openssl, "verify", "-x509_strict", "-attime", at, "-purpose", purpose, "-CAfile", write("root.pem", testpki.CertPEM(info.Chain[len(info.Chain)-1])),
		"-untrusted", write("issuers.pem", testpki.CertPEM(untrusted...)), leaf)
	if r.Code != 0 {
		t.Errorf("openssl verify: %s", r.Output())
	}
	z, err := zx509.ParseCertificate(c.Raw)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813}})
	if err != nil {
		t.Fatal(err)
	}
	for name, result := range zlint.LintCertificateEx(z, rules).Results {
		if result.Status >= lint.Error && name != "e_key_usage_and_extended_key_usage_inconsistent" {
			t.Errorf("zlint: %s: %s", name, result.Details)
		}
	}
	return harness.MustRun(t, openssl, "x509", "-in", leaf, "-noout", "-text").Stdout
}

// CA certificates are judged as well: below the root they may sign leaves only.
func TestCACertificates(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	i := installation.New(t, storage.Open(t, database.SQLite))
	list, err := i.CA.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		c := info.Certificate
		years := 10
		if info.Name == "root" {
			years = 20
		}
		if want := c.NotBefore.AddDate(years, 0, 0).Add(-time.Second); !c.NotAfter.Equal(want) || info.State != ca.Active {
			t.Errorf("%s: %s, until %v, want %v", info.Name, info.State, c.NotAfter, want)
		}
		if len(ca.SerialHex(c.SerialNumber)) != 34 || !c.IsCA || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
			t.Errorf("%s: %+v", info.Name, c)
		}
		if info.Name == "root" {
			if c.MaxPathLen != -1 || len(info.Chain) != 0 || c.CheckSignatureFrom(c) != nil {
				t.Errorf("root: path length %d, chain of %d", c.MaxPathLen, len(info.Chain))
			}
			continue
		}
		if c.MaxPathLen != 0 || !c.MaxPathLenZero || len(info.Chain) != 1 {
			t.Errorf("%s: path length %d, chain of %d", info.Name, c.MaxPathLen, len(info.Chain))
		}
		record, err := i.CA.Certificate(context.Background(), ca.SerialHex(c.SerialNumber))
		if err != nil || !bytes.Equal(record.DER, c.Raw) || record.Issuer != "root" {
			t.Errorf("%s: on record %v, %v", info.Name, record, err)
		}
	}
}

// A certificate never outlives its CA, and a CA that has ended issues nothing.
func TestNotPastTheIssuer(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	devices, err := i.CA.Get(context.Background(), "devices")
	if err != nil {
		t.Fatal(err)
	}
	end := devices.Certificate.NotAfter
	i.Clock.Advance(end.Sub(installation.Start) - 24*time.Hour)
	if c := parse(t, issue(t, i, "devices", "dev-1").DER); !c.NotAfter.Equal(end) {
		t.Errorf("until %v, the CA until %v", c.NotAfter, end)
	}
	i.Clock.Advance(25 * time.Hour)
	_, err = i.CA.Issue(context.Background(), request("devices", "iot-device", "dev-2", installation.Key(t).Public()))
	wantError(t, err, ca.ProfileViolation, "validity")
}

func TestRefusedRequestsLeaveNothing(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		if _, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "elsewhere", External: true, Use: "broker"}); err != nil {
			t.Fatal(err)
		}
		key := installation.Key(t)
		before, err := audit.Verify(ctx, db, nil)
		if err != nil {
			t.Fatal(err)
		}
		rows := count(t, db, "SELECT COUNT(*) FROM certificates")
		errClaim := errors.New("not yours")
		for name, tc := range map[string]struct {
			edit func(*ca.Request)
			kind ca.Kind
			rule string
		}{
			"a CA that waits":         {func(r *ca.Request) { r.CA = "elsewhere" }, ca.Unavailable, "ca_waiting"},
			"an unknown CA":           {func(r *ca.Request) { r.CA = "nowhere" }, ca.NotFound, "unknown_ca"},
			"an unknown profile":      {func(r *ca.Request) { r.Profile = "nothing" }, ca.NotFound, "unknown_profile"},
			"a CA for another use":    {func(r *ca.Request) { r.CA = "management" }, ca.ProfileViolation, "issuer"},
			"a root":                  {func(r *ca.Request) { r.CA = "root" }, ca.ProfileViolation, "issuer"},
			"a key of another kind":   {func(r *ca.Request) { r.PublicKey = testpki.Key(t, "ec:P-521").Public() }, ca.ProfileViolation, "key_type"},
			"nobody's":                {func(r *ca.Request) { r.Device = "" }, ca.ProfileViolation, "subject_common_name"},
			"a name that is too long": {func(r *ca.Request) { r.Device = strings.Repeat("x", 65) }, ca.ProfileViolation, "lint"},
			"another's name":          {func(r *ca.Request) { r.CSR = installation.CSR(t, key, "dev-2", nil) }, ca.ProfileViolation, "subject_common_name"},
			"a refused claim": {func(r *ca.Request) {
				r.Claim = func(*database.Tx, time.Time, ca.ID) (*ca.ID, error) { return nil, errClaim }
			}, ca.Unavailable, "storage"},
		} {
			r := request("devices", "iot-device", "dev-1", key.Public())
			tc.edit(&r)
			c, err := i.CA.Issue(ctx, r)
			wantError(t, err, tc.kind, tc.rule)
			if t.Failed() {
				t.Fatalf("%s: %v, %v", name, c.Serial, err)
			}
		}
		if now := count(t, db, "SELECT COUNT(*) FROM certificates"); now != rows {
			t.Errorf("%d rows, were %d", now, rows)
		}
		if after, err := audit.Verify(ctx, db, &before); err != nil || after != before {
			t.Errorf("the audit log went from %v to %v, %v", before, after, err)
		}
	})
}

// A claim that finds the certificate which was made before gets that one, and none is recorded for this request.
func TestClaimThatFindsAnExistingOne(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		first := issue(t, i, "devices", "dev-1")
		rows := count(t, db, "SELECT COUNT(*) FROM certificates")
		r := request("devices", "iot-device", "dev-1", installation.Key(t).Public())
		r.Claim = func(*database.Tx, time.Time, ca.ID) (*ca.ID, error) {
			return &ca.ID{Issuer: "devices", Serial: first.Serial}, nil
		}
		again, err := i.CA.Issue(context.Background(), r)
		if err != nil || !bytes.Equal(again.DER, first.DER) || count(t, db, "SELECT COUNT(*) FROM certificates") != rows {
			t.Errorf("%v, %s", err, again.Serial)
		}
		// What is used up is unique, whoever forgets to look.
		r.Claim, r.ClaimKey = nil, "code/once"
		if _, err := i.CA.Issue(context.Background(), r); err != nil {
			t.Fatal(err)
		}
		_, err = i.CA.Issue(context.Background(), r)
		wantError(t, err, ca.Unavailable, "storage")
	})
}

// A certificate with our names and numbers that is not the recorded one is nobody's (INV-10).
func TestByDER(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	ours := parse(t, issue(t, i, "devices", "dev-1").DER)
	if found, err := i.CA.ByDER(ctx, ours); err != nil || found.Device != "dev-1" {
		t.Fatalf("our own: %v", err)
	}
	devices, err := i.CA.Get(ctx, "devices")
	if err != nil {
		t.Fatal(err)
	}
	twin := testpki.Root(t, "devices", testpki.Subject(devices.Certificate.Subject))
	forged := twin.Leaf(t, "dev-1", testpki.Edit(func(c *x509.Certificate) { *c = *ours }))
	malleable := *ours
	malleable.Raw = append(bytes.Clone(ours.Raw[:len(ours.Raw)-1]), ours.Raw[len(ours.Raw)-1]^1)
	for name, c := range map[string]*x509.Certificate{
		"a forged one":                   forged.Certificate,
		"with another signature":         &malleable,
		"of a foreign CA":                testpki.Root(t, "somebody").Leaf(t, "dev-1").Certificate,
		"of our CA, never issued":        parse(t, forge(t, twin, ours)),
		"the CA's, as if it were a leaf": testpki.SelfSigned(t, "devices").Certificate,
	} {
		_, err := i.CA.ByDER(ctx, c)
		if wantError(t, err, ca.NotFound, "unknown_certificate"); t.Failed() {
			t.Fatal(name)
		}
	}
}

// forge has a CA of the same name sign a copy with the same serial number.
func forge(t *testing.T, twin *testpki.Authority, original *x509.Certificate) []byte {
	t.Helper()
	copied := *original
	der, err := x509.CreateCertificate(nil, &copied, twin.Certificate, original.PublicKey, twin.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestListing(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for n := range 5 {
		issue(t, i, "devices", fmt.Sprintf("dev-%d", n%2))
	}
	list, err := i.CA.Certificates(ctx, ca.Filter{Profile: "iot-device", Limit: 3})
	if err != nil || len(list) != 3 {
		t.Fatalf("%d, %v", len(list), err)
	}
	rest, err := i.CA.Certificates(ctx, ca.Filter{Profile: "iot-device", After: list[2].Serial})
	if err != nil || len(rest) != 2 || rest[0].Serial <= list[2].Serial {
		t.Errorf("%d, %v", len(rest), err)
	}
	for _, tc := range []struct {
		filter ca.Filter
		want   int
	}{
		{ca.Filter{Device: "dev-0"}, 3}, {ca.Filter{Device: "dev-1", State: ca.Issued}, 2}, {ca.Filter{State: ca.Revoked}, 0}, {ca.Filter{Profile: "ca"}, 3},
		{ca.Filter{ExpireBefore: installation.Start.AddDate(0, 11, 0)}, 0}, {ca.Filter{ExpireBefore: installation.Start.AddDate(2, 0, 0)}, 5},
	} {
		if list, err := i.CA.Certificates(ctx, tc.filter); err != nil || len(list) != tc.want {
			t.Errorf("%+v: %d, want %d; %v", tc.filter, len(list), tc.want, err)
		}
	}
}

// An OCSP signer speaks for a CA, so no requester and no label gets at its profile.
func TestOnlyTheServerGetsAnOCSPSigner(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	r := request("root", "ocsp-signer", "ocsp-root", installation.Key(t).Public())
	_, err := i.CA.Issue(ctx, r)
	wantError(t, err, ca.ProfileViolation, "issuer")
	if _, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "unbound", Parent: "root"}); err != nil {
		t.Fatal(err)
	}
	_, err = i.Book.AddLabel(ctx, "test", registration.Label{Name: "ocsp", CA: "unbound", Profile: "ocsp-signer"})
	wantError(t, err, ca.Invalid, "ca_use")
	r.RequesterKind = ca.RequesterServer
	if _, err := i.CA.Issue(ctx, r); err != nil {
		t.Errorf("from a root: %v", err)
	}
}
