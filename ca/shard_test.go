// A CA with several CRLs: what stands in certificates and CRLs agrees, each goes forward by itself, and one revocation touches one.

package ca_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

func sharded(t *testing.T, i *installation.Installation, shards int) ca.Info {
	t.Helper()
	info, err := i.CA.Create(context.Background(), "test", ca.CreateRequest{Name: "fleet", Parent: "root", PublicURL: "http://pki.example.com:8080", Use: "broker", Shards: shards})
	if err != nil || info.Shards != shards {
		t.Fatalf("%d shards: %v", info.Shards, err)
	}
	return info
}

func lastOctet(t *testing.T, serial string) int {
	t.Helper()
	n, err := strconv.ParseInt(serial[len(serial)-2:], 16, 0)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

func TestShardsAgree(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	const shards = 3
	fleet := sharded(t, i, shards)
	root, err := i.CA.Get(ctx, "root")
	if err != nil {
		t.Fatal(err)
	}
	dir, openssl := t.TempDir(), harness.Program(t, "openssl")
	anchors := testpki.WriteFile(t, filepath.Join(dir, "root.pem"), testpki.CertPEM(root.Certificate))
	issuer := testpki.WriteFile(t, filepath.Join(dir, "fleet.pem"), testpki.CertPEM(fleet.Certificate))
	crlFiles := func() (args []string) {
		for shard := range shards {
			p, err := i.CA.Published(ctx, "fleet", shard)
			if err != nil {
				t.Fatal(err)
			}
			crl, err := i.CA.CRLBySHA256(ctx, p.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			der := testpki.WriteFile(t, filepath.Join(dir, fmt.Sprint(shard)), crl.DER)
			harness.MustRun(t, openssl, "crl", "-inform", "DER", "-in", der, "-out", der+".pem")
			args = append(args, "-CRLfile", der+".pem")
		}
		return args
	}
	verify := func(c ca.Certificate, crls []string) harness.Result {
		leaf := testpki.WriteFile(t, filepath.Join(dir, c.Serial), testpki.CertPEM(parse(t, c.DER)))
		args := append([]string{"verify", "-attime", fmt.Sprint(i.Clock.Clock().Now().Unix()), "-crl_check", "-CAfile", anchors, "-untrusted", issuer}, crls...)
		return harness.Run(t, openssl, append(args, leaf)...)
	}
	seen := map[int]bool{}
	for n := 0; len(seen) < shards && n < 60; n++ {
		c := issue(t, i, "fleet", fmt.Sprint("dev-", n))
		shard := lastOctet(t, c.Serial) % shards
		if want := fmt.Sprintf("http://pki.example.com:8080/crl/fleet/%d.crl", shard); !slices.Equal(parse(t, c.DER).CRLDistributionPoints, []string{want}) {
			t.Fatalf("%s: CRL addresses %v, want %s", c.Serial, parse(t, c.DER).CRLDistributionPoints, want)
		}
		if seen[shard] {
			continue
		}
		seen[shard] = true
		crls := crlFiles()
		if r := verify(c, crls); r.Code != 0 {
			t.Errorf("shard %d, good: %s", shard, r.Output())
		}
		if r := verify(c, slices.Delete(slices.Clone(crls), 2*shard, 2*shard+2)); r.Code == 0 { // its own is missing: the others do not speak for it
			t.Errorf("shard %d passes without its CRL", shard)
		}
		before, err := i.CA.CRLs(ctx, "fleet")
		if err != nil {
			t.Fatal(err)
		}
		i.Clock.Advance(time.Minute)
		if _, err := i.CA.Revoke(ctx, "test", c.Serial, "keyCompromise"); err != nil {
			t.Fatal(err)
		}
		after, err := i.CA.CRLs(ctx, "fleet")
		if err != nil {
			t.Fatal(err)
		}
		for k := range after {
			if touched := after[k].Number != before[k].Number; touched != (k == shard) {
				t.Errorf("a revocation in shard %d: CRL %d of shard %d after %d", shard, after[k].Number, k, before[k].Number)
			}
		}
		if r := verify(c, crlFiles()); r.Code == 0 || !strings.Contains(r.Output(), "certificate revoked") {
			t.Errorf("shard %d, revoked: %s", shard, r.Output())
		}
	}
	p, err := i.CA.Published(ctx, "fleet", 1)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := i.CA.CRLBySHA256(ctx, p.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(crl.DER)
	if err != nil {
		t.Fatal(err)
	}
	found := slices.ContainsFunc(list.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.28" && e.Critical })
	if !found {
		t.Error("no critical issuing distribution point")
	}
}

func TestShardsRefused(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for _, req := range []ca.CreateRequest{
		{Name: "x", Parent: "root", PublicURL: "http://x", Shards: 257}, {Name: "x", Parent: "root", PublicURL: "http://x", Shards: -1},
		{Name: "x", Parent: "root", Shards: 2}, {Name: "x", PublicURL: "http://x", Shards: 2},
	} {
		_, err := i.CA.Create(ctx, "test", req)
		wantError(t, err, ca.Invalid, "crl_shards")
	}
	sharded(t, i, 256)
	_, err := i.CA.Issue(ctx, request("fleet", "iot-device-rsa2048", "dev-1", testpki.Root(t, "x", testpki.KeySpec("rsa:2048")).Key.Public()))
	wantError(t, err, ca.ProfileViolation, "crl_address")
}

// The schedule reissues every shard within the interval, in a few waves.
func TestShardsOnSchedule(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	const shards = 8
	sharded(t, i, shards)
	moments := map[time.Time]bool{}
	for range 3 * 60 {
		i.Clock.Advance(time.Minute)
		if _, err := i.CA.IssueDueCRLs(ctx); err != nil {
			t.Fatal(err)
		}
		crls, err := i.CA.CRLs(ctx, "fleet")
		if err != nil || len(crls) != shards {
			t.Fatalf("%d CRLs, %v", len(crls), err)
		}
		for _, c := range crls {
			if age := i.Clock.Clock().Now().Sub(c.IssuedAt); age >= time.Hour {
				t.Fatalf("shard %d: %v old", c.Shard, age)
			}
			moments[c.IssuedAt] = true
		}
	}
	if len(moments) < 6 || len(moments) > 16 {
		t.Errorf("issued at %d different times in three hours", len(moments))
	}
}

// Sixteen revoke at two servers on one PostgreSQL, which are restarted all the while: no number twice, none that falls, nothing missing.
func TestShardedStorm(t *testing.T) {
	t.Parallel()
	const revokers, each, shards = 16, 5, 4
	ctx := context.Background()
	url := storage.URL(t, database.Postgres)
	db := storage.OpenURL(t, url)
	first := installation.New(t, db)
	sharded(t, first, shards)
	var serials [revokers][each]string
	for r := range serials {
		for n := range serials[r] {
			serials[r][n] = issue(t, first, "fleet", fmt.Sprintf("dev-%d-%d", r, n)).Serial
		}
	}
	dbs := []*database.DB{db, storage.OpenURL(t, url)}
	var wg sync.WaitGroup
	for r := range serials {
		wg.Go(func() {
			for n, serial := range serials[r] {
				server := installation.Open(t, dbs[(r+n)%2], first.Dir, clock.NewManual(installation.Start.Add(time.Duration(r%2)*40*time.Second))) // a process of its own: it knows nothing yet
				if _, err := server.CA.Revoke(ctx, "test", serial, "superseded"); err != nil {
					t.Error(err)
					return
				}
				p, err := server.CA.Published(ctx, "fleet", lastOctet(t, serial)%shards)
				if err != nil {
					t.Error(err)
					return
				}
				crl, err := server.CA.CRLBySHA256(ctx, p.SHA256)
				if err != nil { // so many newer ones that it is gone
					continue
				}
				if list, err := x509.ParseRevocationList(crl.DER); err != nil || !slices.Contains(listed(list), serial) {
					t.Errorf("%s is revoked and not on CRL %d, %v", serial, crl.Number, err)
				}
			}
		})
	}
	wg.Wait()
	var numbers []int64
	if err := db.Select(ctx, &numbers, "SELECT CAST(detail::json->>'number' AS BIGINT) FROM audit WHERE action = 'crl_issued' AND object = 'fleet' ORDER BY 1"); err != nil {
		t.Fatal(err)
	}
	if len(slices.Compact(slices.Clone(numbers))) != len(numbers) || len(numbers) < 2*shards {
		t.Errorf("CRL numbers %v", numbers)
	}
	total := 0
	crls, err := first.CA.CRLs(ctx, "fleet")
	for _, c := range crls {
		total += c.Entries
	}
	if err != nil || total != revokers*each {
		t.Errorf("%d entries at the end, %v", total, err)
	}
	var fell int
	err = db.Get(ctx, &fell, "SELECT COUNT(*) FROM (SELECT CAST(detail::json->>'number' AS BIGINT) AS number, LAG(CAST(detail::json->>'number' AS BIGINT)) OVER (PARTITION BY detail::json->>'shard' ORDER BY seq) AS before FROM audit WHERE action = 'crl_issued' AND object = 'fleet') AS n WHERE number <= before")
	if err != nil || fell > 0 {
		t.Errorf("%d times a number fell: %v", fell, err)
	}
}
