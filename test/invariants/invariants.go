// Package invariants checks from outside that what docs/invariants.md promises holds in a database and in what clients received:
// INV-1 to INV-5, INV-7, of INV-8 what a suspension promises, and INV-11. It reads with its own SQL and crypto/x509 and uses nothing of the code that it judges.
//
// What it cannot see: the order of recording and signing in time (ca/precommit_test.go does), and what was in the database before.
//
// Files: invariants.go (Check), certificates.go (INV-1 to INV-4), rights.go (INV-5), suspensions.go (INV-8), crls.go (INV-7), audit.go (INV-11).
package invariants

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	"github.com/jmoiron/sqlx"
	_ "modernc.org/sqlite" // driver "sqlite"
)

// Received is a certificate that a client got.
type Received struct {
	Device      string
	Credential  string // what it was got with, as the test calls it: at most one certificate for each
	Certificate []byte // DER
}

// State says what the database may be like at the moment.
type State struct {
	Now     time.Time // by the server's clock; zero: now
	Settled bool      // the server has started and is idle: nothing may be intended, and every revocation is published
}

// Require fails the test for every broken invariant.
func Require(t testing.TB, url string, state State, received ...Received) {
	t.Helper()
	for _, err := range Check(context.Background(), url, state, received...) {
		t.Error(err)
	}
}

// Check returns what is broken in the database at url ("sqlite:PATH" or "postgres://...").
func Check(ctx context.Context, url string, state State, received ...Received) []error {
	if state.Now.IsZero() {
		state.Now = time.Now()
	}
	c := &checker{state: state, received: received}
	if err := c.read(ctx, url); err != nil {
		return []error{fmt.Errorf("read %s: %w", strings.SplitN(url, ":", 2)[0], err)}
	}
	c.checkAudit()
	c.checkCertificates()
	c.checkRights()
	c.checkSuspensions()
	c.checkCRLs()
	return c.broken
}

type checker struct {
	state    State
	received []Received
	broken   []error

	certificates []certificateRow
	authorities  []authorityRow
	codes        []codeRow
	entities     []entityRow
	suspended    []suspendedRow
	crls         []crlRow
	audit        []auditRow
	head         auditRow
	changes      []int64
	changeCount  int64

	cas     map[string]*authority
	entries map[string][]auditRow // audit entries by action and object
}

func (c *checker) fail(invariant, format string, args ...any) {
	c.broken = append(c.broken, fmt.Errorf("%s: %s", invariant, fmt.Sprintf(format, args...)))
}

// read takes everything from one snapshot, so that a server may be at work meanwhile.
func (c *checker) read(ctx context.Context, url string) error {
	driver, dsn := "pgx", url
	options := &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		driver, dsn, options = "sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_pragma=query_only(1)", nil
	}
	db, err := sqlx.Open(driver, dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	tx, err := db.BeginTxx(ctx, options)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, q := range []struct {
		rows  any
		query string
	}{
		{&c.audit, "SELECT seq, at, actor, action, object, detail, previous, hash FROM audit ORDER BY seq"},
		{&c.certificates, "SELECT serial, issuer, state, device, profile, profile_hash, spki_sha256, requester_kind, requester, claim, generation, tbs_sha256, tbs, der, not_before, not_after, created_at, issued_at, revoked_at, reason FROM certificates ORDER BY created_at, serial"},
		{&c.authorities, "SELECT name, state, replaces, certificate, crosses, crl_number, shards FROM authorities"},
		{&c.codes, "SELECT id, device, state, issuer, serial, used_at FROM enrollment_codes"},
		{&c.entities, "SELECT id, state, bound_kind, bound_to, generation, suspended_at FROM end_entities"},
		{&c.suspended, "SELECT serial, issuer, device FROM suspended_certificates"},
		{&c.crls, "SELECT authority, shard, number, this_update, next_update, issued_at, entries, sha256, parts, tail, der FROM crls ORDER BY authority, number"},
		{&c.changes, "SELECT seq FROM changes ORDER BY seq"},
	} {
		if err := tx.SelectContext(ctx, q.rows, q.query); err != nil {
			return fmt.Errorf("%s: %w", q.query, err)
		}
	}
	if err := c.joinCRLs(ctx, tx); err != nil {
		return err
	}
	if err := tx.GetContext(ctx, &c.head, "SELECT seq, at, hash FROM audit_head"); err != nil {
		return err
	}
	return tx.GetContext(ctx, &c.changeCount, "SELECT value FROM counters WHERE name = 'changes'")
}
