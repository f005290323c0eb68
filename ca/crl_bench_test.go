// What a CRL of a million costs: time, memory, and what enrollments notice of it. "make bench" runs it.

package ca_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

// BenchmarkMillionRevoked makes CRLs of NATAL_BENCH_REVOKED certificates, a million by default, each after one more revocation.
func BenchmarkMillionRevoked(b *testing.B) {
	many := 1_000_000
	if n, err := strconv.Atoi(os.Getenv("NATAL_BENCH_REVOKED")); err == nil {
		many = n
	}
	ctx := context.Background()
	i := installation.New(b, storage.OpenURL(b, "sqlite:"+filepath.Join(b.TempDir(), "est.db")))
	enroll := func(n int) time.Duration {
		device := fmt.Sprint("dev-", n)
		code, err := i.Book.CreateCode(ctx, "test", device, "default", 0, nil)
		if err != nil {
			b.Fatal(err)
		}
		csr := installation.CSR(b, installation.Key(b), device, nil)
		begun := time.Now()
		if _, err := i.EnrollWith(device, code.Code, csr); err != nil {
			b.Fatal(err)
		}
		return time.Since(begun)
	}
	fillRevoked(b, i, many)
	i = installation.Open(b, i.DB, i.Dir, i.Clock) // a new process: it knows nothing of them yet
	next := 0
	latencies := func(stop *atomic.Bool, n int) time.Duration {
		var all []time.Duration
		for ; len(all) < n && (stop == nil || !stop.Load()); next++ {
			all = append(all, enroll(next))
		}
		slices.Sort(all)
		return all[len(all)*99/100]
	}
	quiet := latencies(nil, 300)
	debug.FreeOSMemory()
	os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // the peak counts from here
	before := resident(b)
	begun := time.Now()
	if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
		b.Fatal(err)
	}
	first := time.Since(begun)
	serial := issue(b, i, "devices", "victim").Serial
	begun = time.Now()
	if _, err := i.CA.Revoke(ctx, "test", serial, "keyCompromise"); err != nil {
		b.Fatal(err)
	}
	revoke := time.Since(begun)
	var stop atomic.Bool
	var slowest time.Duration
	made, ended := 0, make(chan struct{})
	go func() {
		defer close(ended)
		for ; !stop.Load(); made++ {
			begun := time.Now()
			if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
				b.Error(err)
				return
			}
			slowest = max(slowest, time.Since(begun))
			time.Sleep(100 * time.Millisecond)
		}
	}()
	busy := latencies(nil, 300)
	stop.Store(true)
	<-ended
	var alone time.Duration
	b.ResetTimer()
	for b.Loop() {
		begun := time.Now()
		if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
			b.Fatal(err)
		}
		alone = max(alone, time.Since(begun))
	}
	if crl, _ := i.CA.CRLs(ctx, "devices"); len(crl) != 1 || crl[0].Entries != many+1 {
		b.Fatalf("not a CRL of %d: %+v", many+1, crl)
	}
	b.ReportMetric(first.Seconds(), "s-first-fill")
	b.ReportMetric(revoke.Seconds(), "s-revoke-to-CRL")
	b.ReportMetric(slowest.Seconds(), "s-slowest-beside-enrollments")
	b.ReportMetric(float64(peakResident(b)-before)/1024, "MB-more-RSS-at-peak")
	b.ReportMetric(float64(quiet)/1e6, "ms-p99-enrollment-quiet")
	b.ReportMetric(float64(busy)/1e6, "ms-p99-enrollment-meanwhile")
	b.Logf("%d revoked, %d CRLs beside 300 enrollments", many, made)
}

// fillRevoked writes certificates that were revoked long ago, and no log: as from a database that was filled otherwise.
func fillRevoked(b *testing.B, i *installation.Installation, n int) {
	b.Helper()
	now := i.Clock.Clock().Now().UnixMilli()
	err := i.DB.Write(context.Background(), "test.fill", func(tx *database.Tx) error {
		_, err := tx.Exec(`WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
			INSERT INTO certificates (serial, issuer, state, device, label, profile, profile_hash, spki_sha256, requester_kind, requester, claim, generation, renews, tbs_sha256,
				not_before, not_after, created_at, issued_at, renewed_at, first_used_at, superseded_at, revoked_at, reason)
			SELECT printf('01%016x', i) || lower(hex(randomblob(8))), 'devices', 'revoked', 'many-' || i, 'default', 'iot-device', '', '', 'code', '', 'many/' || i, 1, '', '',
				0, ?, 0, 0, 0, 0, 0, ?, 'keyCompromise' FROM n`, n, now+(300*day).Milliseconds(), now)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}

func resident(b *testing.B) int { return processKB(b, "VmRSS:") }

func peakResident(b *testing.B) int { return processKB(b, "VmHWM:") }

func processKB(b *testing.B, field string) int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip(err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, field); ok {
			n, err := strconv.Atoi(strings.Fields(text)[0])
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatal("no " + field)
	return 0
}
