// CRLs go forward (INV-7): numbers, dates and entries, with one server and with two.

package ca_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

const day = 24 * time.Hour

func current(t *testing.T, i *installation.Installation, name string) (ca.CRL, *x509.RevocationList) {
	t.Helper()
	crl, err := i.CA.CurrentCRL(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(crl.DER)
	if err != nil {
		t.Fatal(err)
	}
	if list.Number.Int64() != crl.Number || !list.ThisUpdate.Equal(crl.ThisUpdate) || !list.NextUpdate.Equal(crl.NextUpdate) || len(list.RevokedCertificateEntries) != crl.Entries {
		t.Fatalf("the record does not tell what the CRL says: %+v", crl)
	}
	info, err := i.CA.Get(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(info.Certificate); err != nil {
		t.Fatal(err)
	}
	return crl, list
}

func listed(list *x509.RevocationList) []string {
	serials := []string{}
	for _, e := range list.RevokedCertificateEntries {
		serials = append(serials, ca.SerialHex(e.SerialNumber))
	}
	return serials
}

func TestCRLFromTheFirstMoment(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	for name, valid := range map[string]time.Duration{"root": 365 * day, "devices": 7 * day, "management": 7 * day} {
		crl, list := current(t, i, name)
		if crl.Number != 1 || crl.Entries != 0 || !crl.IssuedAt.Equal(installation.Start) {
			t.Errorf("%s: %+v", name, crl)
		}
		if !list.ThisUpdate.Equal(installation.Start.Add(-5*time.Minute)) || !list.NextUpdate.Equal(installation.Start.Add(valid)) {
			t.Errorf("%s: from %v to %v", name, list.ThisUpdate, list.NextUpdate)
		}
	}
}

func TestRevocation(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		good := issue(t, i, "devices", "good")
		codes := map[string]int{"unspecified": 0, "keyCompromise": 1, "cACompromise": 2, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5, "certificateHold": 6, "privilegeWithdrawn": 9}
		want := map[string]int{}
		for reason, code := range codes {
			i.Clock.Advance(time.Minute)
			c := issue(t, i, "devices", "dev-"+reason)
			want[c.Serial] = code
			before, _ := current(t, i, "devices")
			revoked, err := i.CA.Revoke(ctx, "test", strings.ToUpper(c.Serial), reason)
			state := ca.Revoked
			if reason == "certificateHold" {
				state = ca.Held
			}
			if err != nil || revoked.State != state || revoked.Reason != reason || revoked.RevokedAt.IsZero() {
				t.Fatalf("%s: %v, %+v", reason, err, revoked)
			}
			after, list := current(t, i, "devices")
			if after.Number <= before.Number || !slices.Contains(listed(list), c.Serial) {
				t.Errorf("%s: CRL %d after %d: %v", reason, after.Number, before.Number, listed(list))
			}
		}
		_, list := current(t, i, "devices")
		if len(list.RevokedCertificateEntries) != len(want) {
			t.Errorf("%d entries, want %d", len(list.RevokedCertificateEntries), len(want))
		}
		for _, e := range list.RevokedCertificateEntries {
			serial := ca.SerialHex(e.SerialNumber)
			c, err := i.CA.Certificate(ctx, serial)
			if err != nil || e.ReasonCode != want[serial] || !e.RevocationTime.Equal(c.RevokedAt.Truncate(time.Second)) {
				t.Errorf("%s: reason %d at %v, want %d at %v; %v", serial, e.ReasonCode, e.RevocationTime, want[serial], c.RevokedAt, err)
			}
			if e.ReasonCode == 0 && len(e.Extensions) > 0 { // RFC 5280 section 5.3.1: unspecified is said by saying nothing
				t.Errorf("%s: extensions %v for an unspecified reason", serial, e.Extensions)
			}
		}
		opensslAgrees(t, i, good, list)
		if _, err := audit.Verify(ctx, db, nil); err != nil {
			t.Error(err)
		}
	})
}

// opensslAgrees: the good certificate passes with the CRLs of its chain, the listed ones are refused as revoked.
func opensslAgrees(t *testing.T, i *installation.Installation, good ca.Certificate, list *x509.RevocationList) {
	t.Helper()
	harness.RequirePrograms(t, "openssl")
	ctx := context.Background()
	devices, err := i.CA.Get(ctx, "devices")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	openssl := harness.Program(t, "openssl")
	root, own := filepath.Join(dir, "root.pem"), filepath.Join(dir, "devices.pem")
	testpki.WriteFile(t, root, testpki.CertPEM(devices.Chain[0]))
	testpki.WriteFile(t, own, testpki.CertPEM(devices.Certificate))
	arguments := []string{"verify", "-attime", fmt.Sprint(i.Clock.Clock().Now().Unix()), "-crl_check_all", "-CAfile", root, "-untrusted", own}
	for _, name := range []string{"root", "devices"} {
		crl, _ := current(t, i, name)
		der := testpki.WriteFile(t, filepath.Join(dir, name+".crl"), crl.DER)
		r := harness.MustRun(t, openssl, "crl", "-inform", "DER", "-in", der, "-CAfile", filepath.Join(dir, name+".pem"), "-out", der+".pem")
		if !strings.Contains(r.Output(), "verify OK") {
			t.Errorf("openssl crl of %s: %s", name, r.Output())
		}
		arguments = append(arguments, "-CRLfile", der+".pem")
	}
	verify := func(c ca.Certificate) harness.Result {
		leaf := testpki.WriteFile(t, filepath.Join(dir, c.Serial+".pem"), testpki.CertPEM(parse(t, c.DER)))
		return harness.Run(t, openssl, append(arguments, leaf)...)
	}
	if r := verify(good); r.Code != 0 {
		t.Errorf("the good one: %s", r.Output())
	}
	for _, serial := range listed(list)[:2] {
		c, err := i.CA.Certificate(ctx, serial)
		if err != nil {
			t.Fatal(err)
		}
		if r := verify(c); r.Code == 0 || !strings.Contains(r.Output(), "certificate revoked") {
			t.Errorf("a revoked one: %s", r.Output())
		}
	}
}

func TestRevocationIsFinal(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		c := issue(t, i, "devices", "dev-1")
		revoke := func(reason, wantState, wantReason string) ca.Certificate {
			t.Helper()
			i.Clock.Advance(time.Minute)
			got, err := i.CA.Revoke(ctx, "test", c.Serial, reason)
			if err != nil || got.State != wantState || got.Reason != wantReason {
				t.Errorf("revoked for %s: %v, %s, %s", reason, err, got.State, got.Reason)
			}
			return got
		}
		on := func(want bool) {
			t.Helper()
			if _, list := current(t, i, "devices"); slices.Contains(listed(list), c.Serial) != want {
				t.Errorf("on the CRL: %v", !want)
			}
		}
		_, err := i.CA.Unhold(ctx, "test", c.Serial)
		wantError(t, err, ca.Conflict, "certificate_state")
		held := revoke("certificateHold", ca.Held, "certificateHold")
		on(true)
		if again := revoke("certificateHold", ca.Held, "certificateHold"); !again.RevokedAt.Equal(held.RevokedAt) {
			t.Error("held once more, later")
		}
		if back, err := i.CA.Unhold(ctx, "test", c.Serial); err != nil || back.State != ca.Issued || back.Reason != "" || !back.RevokedAt.IsZero() {
			t.Errorf("unheld: %v, %+v", err, back)
		}
		on(false)
		revoke("certificateHold", ca.Held, "certificateHold")
		final := revoke("keyCompromise", ca.Revoked, "keyCompromise")
		on(true)
		for _, reason := range []string{"certificateHold", "superseded", "keyCompromise"} {
			if again := revoke(reason, ca.Revoked, "keyCompromise"); !again.RevokedAt.Equal(final.RevokedAt) {
				t.Errorf("the time of revocation moved with %s", reason)
			}
		}
		_, err = i.CA.Unhold(ctx, "test", c.Serial)
		wantError(t, err, ca.Conflict, "certificate_state")
		on(true)

		_, err = i.CA.Revoke(ctx, "test", c.Serial, "removeFromCRL")
		wantError(t, err, ca.Invalid, "reason")
		_, err = i.CA.Revoke(ctx, "test", "xyz", "superseded")
		wantError(t, err, ca.Invalid, "serial")
		_, err = i.CA.Revoke(ctx, "test", "01", "superseded")
		wantError(t, err, ca.NotFound, "unknown_certificate")
		_, err = i.CA.Unhold(ctx, "test", "01")
		wantError(t, err, ca.NotFound, "unknown_certificate")
	})
}

// A revoked certificate stays listed until one CRL that begins after its end, and leaves then.
func TestExpiredEntriesLeave(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	c := issue(t, i, "devices", "dev-1")
	if _, err := i.CA.Revoke(ctx, "test", c.Serial, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	i.Clock.Advance(c.NotAfter.Sub(i.Clock.Clock().Now()) - 20*time.Minute)
	beyond := 0 // CRLs that list it and begin after its end
	for range 20 {
		i.Clock.Advance(3 * time.Minute)
		if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
			t.Fatal(err)
		}
		crl, list := current(t, i, "devices")
		switch on := slices.Contains(listed(list), c.Serial); {
		case !on && beyond == 0:
			t.Fatalf("gone from the CRL of %v, valid until %v", crl.ThisUpdate, c.NotAfter)
		case on && crl.ThisUpdate.After(c.NotAfter):
			beyond++
		}
	}
	if beyond != 1 {
		t.Errorf("%d CRLs after its end list it", beyond)
	}
}

// keepCRLs has the database itself keep every CRL that is published, in order; the table of CRLs drops old ones.
func keepCRLs(t *testing.T, db *database.DB) {
	t.Helper()
	statements := []string{
		"CREATE TABLE published (n INTEGER PRIMARY KEY, authority TEXT, der BLOB)",
		"CREATE TRIGGER keep AFTER INSERT ON crls BEGIN INSERT INTO published (authority, der) VALUES (NEW.authority, NEW.der); END",
	}
	if db.Dialect() == database.Postgres {
		statements = []string{
			"CREATE TABLE published (n BIGSERIAL PRIMARY KEY, authority TEXT, der BYTEA)",
			"CREATE RULE keep AS ON INSERT TO crls DO ALSO INSERT INTO published (authority, der) VALUES (NEW.authority, NEW.der)",
		}
	}
	err := db.Write(context.Background(), "test.keep", func(tx *database.Tx) error {
		for _, s := range statements {
			if _, err := tx.Exec(s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkPublished looks at all CRLs of a CA in the order of their publication and returns how many there are.
func checkPublished(t *testing.T, db *database.DB, name string) int {
	t.Helper()
	var published [][]byte
	if err := db.Select(context.Background(), &published, "SELECT der FROM published WHERE authority = ? ORDER BY n", name); err != nil {
		t.Fatal(err)
	}
	var last *x509.RevocationList
	for _, der := range published {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil {
			if list.Number.Cmp(last.Number) <= 0 {
				t.Errorf("CRL %v was published after %v", list.Number, last.Number)
			}
			if list.ThisUpdate.Before(last.ThisUpdate) {
				t.Errorf("CRL %v begins at %v, %v began at %v", list.Number, list.ThisUpdate, last.Number, last.ThisUpdate)
			}
			now := listed(list)
			for _, serial := range listed(last) {
				if !slices.Contains(now, serial) {
					t.Errorf("%s is on CRL %v and not on %v", serial, last.Number, list.Number)
				}
			}
		}
		last = list
	}
	return len(published)
}

// Sixteen revoke at once, at two servers with clocks of their own: every CRL that is ever published is complete, and the next one goes on from it.
func TestConcurrentRevokers(t *testing.T) {
	t.Parallel()
	for _, dialect := range []string{database.SQLite, database.Postgres} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			const revokers, each = 16, 6
			ctx := context.Background()
			url := storage.URL(t, dialect)
			db := storage.OpenURL(t, url)
			one := installation.New(t, db)
			otherDB := db // SQLite is for one process
			if dialect == database.Postgres {
				otherDB = storage.OpenURL(t, url)
			}
			two := installation.Open(t, otherDB, one.Dir, clock.NewManual(installation.Start.Add(40*time.Second)))
			keepCRLs(t, db)
			var serials [revokers][each]string
			for r := range serials {
				for n := range serials[r] {
					serials[r][n] = issue(t, one, "devices", fmt.Sprintf("dev-%d-%d", r, n)).Serial
				}
			}
			var wg sync.WaitGroup
			for r := range serials {
				server := []*installation.Installation{one, two}[r%2]
				wg.Go(func() {
					for _, serial := range serials[r] {
						if _, err := server.CA.Revoke(ctx, "test", serial, "superseded"); err != nil {
							t.Error(err)
							return
						}
						crl, err := server.CA.CurrentCRL(ctx, "devices")
						if err != nil {
							t.Error(err)
							return
						}
						if list, err := x509.ParseRevocationList(crl.DER); err != nil || !slices.Contains(listed(list), serial) {
							t.Errorf("%s is revoked and not on CRL %d, %v", serial, crl.Number, err)
						}
					}
				})
			}
			wg.Wait()
			made := checkPublished(t, db, "devices")
			if made < 2 {
				t.Errorf("%d CRLs", made)
			}
			if crl, _ := current(t, one, "devices"); crl.Entries != revokers*each {
				t.Errorf("%d entries at the end", crl.Entries)
			}
			if _, err := audit.Verify(ctx, db, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// Old CRLs stay fetchable by their hash for a while: a bridge may be in the middle of it.
func TestCRLByHash(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	var sums []string
	for range 25 {
		crl, err := i.CA.IssueCRL(ctx, "test", "devices")
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, crl.SHA256)
	}
	for n, sum := range sums {
		crl, err := i.CA.CRLBySHA256(ctx, sum)
		if n < len(sums)-20 {
			wantError(t, err, ca.NotFound, "unknown_crl")
		} else if err != nil || crl.SHA256 != sum {
			t.Errorf("CRL %d of %d: %v", n, len(sums), err)
		}
	}
	_, err := i.CA.CRLBySHA256(ctx, "")
	wantError(t, err, ca.NotFound, "unknown_crl")
	_, err = i.CA.CurrentCRL(ctx, "nowhere")
	wantError(t, err, ca.NotFound, "unknown_ca")
}
