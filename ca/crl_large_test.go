// Large CRLs: made from entries encoded before, the same as the standard library would make, in a fraction of its time and memory.

package ca_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"path/filepath"
	"runtime"
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

// revokeMany records n certificates of CA devices that were issued and revoked long ago, as rows and log; first numbers them.
func revokeMany(t testing.TB, i *installation.Installation, first, n int) {
	t.Helper()
	reasons := []string{"unspecified", "keyCompromise", "superseded", "cessationOfOperation"}
	now := i.Clock.Clock().Now()
	for at := 0; at < n; at += 1000 {
		err := i.DB.Write(context.Background(), "test.many", func(tx *database.Tx) error {
			var seq int64
			if err := tx.Get(&seq, "UPDATE counters SET value = value + ? WHERE name = 'revocations' RETURNING value", min(1000, n-at)); err != nil {
				return err
			}
			var certificates, log []string
			for k := first + at; k < first+min(at+1000, n); k++ {
				// The end differs, so that some leave before others.
				serial, reason, end := manySerial(k), reasons[k%len(reasons)], now.Add(time.Duration(100+k%50)*day).UnixMilli()
				certificates = append(certificates, fmt.Sprintf("('%s', 'devices', 'revoked', 'many-%d', 'default', 'iot-device', '', '', 'code', '', 'serial/%s', 1, '', '', 0, %d, 0, 0, 0, 0, 0, %d, '%s')",
					serial, k, serial, end, now.UnixMilli(), reason))
				log = append(log, fmt.Sprintf("(%d, 'devices', '%s', '%s', %d, %d)", seq-int64(first+min(at+1000, n)-1-k), serial, reason, now.UnixMilli(), end))
			}
			_, err := tx.Exec(`INSERT INTO certificates (serial, issuer, state, device, label, profile, profile_hash, spki_sha256, requester_kind, requester, claim, generation, renews, tbs_sha256,
				not_before, not_after, created_at, issued_at, renewed_at, first_used_at, superseded_at, revoked_at, reason) VALUES ` + strings.Join(certificates, ","))
			if err != nil {
				return err
			}
			_, err = tx.Exec("INSERT INTO revocations (seq, issuer, serial, reason, revoked_at, not_after) VALUES " + strings.Join(log, ","))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// manySerial is spread over shards and buckets as random ones are.
func manySerial(k int) string {
	x := uint64(k+1) * 0x9E3779B97F4A7C15
	return fmt.Sprintf("01%016x%016x", x, (x^x>>29)*0xBF58476D1CE4E5B9)
}

func published(t testing.TB, i *installation.Installation, shard int) (*ca.PublishedCRL, []byte) {
	t.Helper()
	p, err := i.CA.Published(context.Background(), "devices", shard)
	if err != nil {
		t.Fatal(err)
	}
	der, err := io.ReadAll(p.Reader())
	if err != nil || int64(len(der)) != p.Size {
		t.Fatalf("%d bytes, %d announced: %v", len(der), p.Size, err)
	}
	return p, der
}

// The standard library reads and verifies what was made, openssl too; everything is in it once; what expired leaves; another server reads the
// same bytes; and the database keeps what changed, not every CRL whole.
func TestLargeCRL(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		const many = 16000 // some 800 kB: in parts
		revokeMany(t, i, 0, many)
		info, err := i.CA.Get(ctx, "devices")
		if err != nil {
			t.Fatal(err)
		}
		check := func(want int) (*ca.PublishedCRL, *x509.RevocationList) {
			t.Helper()
			p, der := published(t, i, 0)
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := list.CheckSignatureFrom(info.Certificate); err != nil {
				t.Fatal(err)
			}
			serials := map[string]bool{}
			for _, e := range list.RevokedCertificateEntries {
				serials[ca.SerialHex(e.SerialNumber)] = true
			}
			if len(serials) != want || len(list.RevokedCertificateEntries) != want || p.Entries != want {
				t.Fatalf("CRL %d has %d entries, %d of them different, %d announced, want %d", p.Number, len(list.RevokedCertificateEntries), len(serials), p.Entries, want)
			}
			return p, list
		}
		if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
			t.Fatal(err)
		}
		check(many)
		before := storedParts(t, db)
		c := issue(t, i, "devices", "dev-1")
		if _, err := i.CA.Revoke(ctx, "test", c.Serial, "keyCompromise"); err != nil {
			t.Fatal(err)
		}
		p, list := check(many + 1)
		if grown := storedParts(t, db) - before; grown > 1 {
			t.Errorf("one revocation wrote %d parts", grown)
		}
		found := false
		for _, e := range list.RevokedCertificateEntries {
			found = found || e.SerialNumber.Cmp(parse(t, c.DER).SerialNumber) == 0 && e.ReasonCode == 1
		}
		if !found {
			t.Error("the new one is not on it")
		}
		dir := t.TempDir()
		crl := testpki.WriteFile(t, filepath.Join(dir, "crl"), list.Raw)
		anchor := testpki.WriteFile(t, filepath.Join(dir, "ca.pem"), testpki.CertPEM(info.Certificate))
		if r := harness.MustRun(t, harness.Program(t, "openssl"), "crl", "-inform", "DER", "-in", crl, "-CAfile", anchor, "-noout"); !strings.Contains(r.Output(), "verify OK") {
			t.Errorf("openssl: %s", r.Output())
		}

		other := installation.Open(t, db, i.Dir, i.Clock)
		if q, _ := published(t, other, 0); q.SHA256 != p.SHA256 {
			t.Error("another server gives out something else")
		}
		if _, err := other.CA.IssueCRL(ctx, "test", "devices"); err != nil { // made from the records alone
			t.Fatal(err)
		}
		check(many + 1)
		if grown := storedParts(t, db) - before; grown > 1 {
			t.Errorf("the same entries, made by another server, wrote parts anew: %d more", grown)
		}

		i.Clock.Advance(125*day + time.Hour) // half of the many ended; one more CRL lists them
		for range 2 {
			if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
				t.Fatal(err)
			}
		}
		check(many/50*24 + 1)
		for range 19 {
			if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
				t.Fatal(err)
			}
		}
		if n := storedParts(t, db); n != 0 { // it has become small
			t.Errorf("%d parts are left of CRLs that are gone", n)
		}
	})
}

func storedParts(t testing.TB, db *database.DB) (n int) {
	t.Helper()
	if err := db.Get(context.Background(), &n, "SELECT COUNT(*) FROM crl_parts"); err != nil {
		t.Fatal(err)
	}
	return n
}

// A CRL of 100,000 costs a fraction of what the standard library takes for the same, in time and in memory.
func TestCostOfALargeCRL(t *testing.T) {
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	const many = 100_000
	revokeMany(t, i, 0, many)
	if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil { // reads all records
		t.Fatal(err)
	}
	var ours, std cost
	for range 5 {
		ours.least(func() {
			if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
				t.Fatal(err)
			}
		})
	}
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	_, der := published(t, i, 0)
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.RevokedCertificateEntries {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: e.SerialNumber, RevocationTime: e.RevocationTime, ReasonCode: e.ReasonCode})
	}
	root := testpki.Root(t, "Root")
	for range 3 {
		std.least(func() {
			if _, err := x509.CreateRevocationList(nil, template, root.Certificate, root.Key); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Logf("%d entries: %v and %d kB allocated, the standard library %v and %d kB", many, ours.time, ours.bytes>>10, std.time, std.bytes>>10)
	if ours.time > std.time/2 || ours.bytes > std.bytes/4 {
		t.Errorf("%v and %d kB, the standard library %v and %d kB", ours.time, ours.bytes>>10, std.time, std.bytes>>10)
	}
}

type cost struct {
	time  time.Duration
	bytes uint64
}

func (c *cost) least(do func()) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begun := time.Now()
	do()
	took := time.Since(begun)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; c.time == 0 || took < c.time {
		c.time, c.bytes = took, used
	}
}
