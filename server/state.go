// What the gauges show, read from the database when Prometheus asks.

package main

import (
	"context"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/feed"
	"github.com/natal-pki/natal/server/telemetry"
)

// Certificates and codes are counted anew after countsFor times what counting took: the more there are the longer it takes, and a scrape must
// not keep the database busy.
const countsFor = 20

// settled is how long ago a revocation must be for its transaction to be visible for sure.
const settled = 2 * time.Second

type stateReader struct {
	server *server

	mu      sync.Mutex
	recount time.Time // when to count again
	counts  counts
	revoked time.Time // revocations until then are in the counter
}

type counts struct {
	certificates, expiring, codes map[string]int
}

func newStateReader(s *server) *stateReader {
	return &stateReader{server: s, revoked: s.Clock.Now()}
}

// read is telemetry's view of the database. It also counts the revocations since the last reading, on whichever way they came.
func (r *stateReader) read(ctx context.Context) (telemetry.State, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, now := r.server, r.server.Clock.Now()
	state := telemetry.State{
		Use:       map[string]time.Time{"est-server": s.cert.Leaf().NotAfter},
		BridgeLag: map[string]time.Duration{},
	}
	infos, err := s.CA.List(ctx)
	if err != nil {
		return state, err
	}
	var issuers []string
	for _, info := range infos {
		c := telemetry.CAState{Name: info.Name, CRLNumber: info.CRLNumber, ThisUpdate: info.ThisUpdate, NextUpdate: info.NextUpdate, CRLEntries: info.CRLEntries}
		if info.Certificate != nil {
			c.NotAfter = info.Certificate.NotAfter
		}
		state.CAs = append(state.CAs, c)
		s.ocsp.CA(info.Name)
		if info.Use == profile.UseBroker {
			issuers = append(issuers, info.Name)
		}
		if err := r.countRevoked(ctx, info.Name, now.Add(-settled)); err != nil {
			return state, err
		}
	}
	for name, end := range s.CA.OCSPSigners() {
		state.Use["ocsp "+name] = end
	}
	r.revoked = now.Add(-settled)
	if err := r.labels(ctx, &state); err != nil {
		return state, err
	}
	if err := r.bridges(ctx, &state, now); err != nil {
		return state, err
	}
	if begun := time.Now(); !begun.Before(r.recount) {
		if r.counts, err = count(ctx, s.DB, issuers, now); err != nil {
			return state, err
		}
		r.recount = time.Now().Add(countsFor * time.Since(begun))
	}
	state.Certificates, state.CertificatesExpiring, state.Codes = r.counts.certificates, r.counts.expiring, r.counts.codes
	return state, nil
}

func (r *stateReader) countRevoked(ctx context.Context, issuer string, until time.Time) error {
	var rows []struct {
		Reason string `db:"reason"`
		Count  int    `db:"n"`
	}
	err := r.server.DB.Select(ctx, &rows, "SELECT reason, COUNT(*) AS n FROM certificates WHERE issuer = ? AND revoked_at > ? AND revoked_at <= ? GROUP BY reason",
		issuer, r.revoked.UnixMilli(), until.UnixMilli())
	for _, row := range rows {
		for range row.Count {
			r.server.metrics.Revoked(row.Reason)
		}
	}
	return err
}

// labels makes the series of new labels, and shows until when the birth CAs are valid.
func (r *stateReader) labels(ctx context.Context, state *telemetry.State) error {
	labels, err := r.server.Book.Labels(ctx)
	if err != nil {
		return err
	}
	for _, l := range labels {
		r.server.metrics.Label(l.Name, l.Profile)
	}
	births, err := r.server.Book.BirthCAs(ctx, "")
	if err != nil {
		return err
	}
	for _, b := range births {
		name := "birth-ca " + b.Certificate.Subject.CommonName
		if old, ok := state.Use[name]; !ok || b.Certificate.NotAfter.Before(old) {
			state.Use[name] = b.Certificate.NotAfter
		}
	}
	return nil
}

// bridges shows for each bridge the broker that is furthest behind.
func (r *stateReader) bridges(ctx context.Context, state *telemetry.State, now time.Time) error {
	progress, err := feed.Bridges(ctx, r.server.DB, now)
	for _, p := range progress {
		state.BridgeLag[p.Bridge] = max(state.BridgeLag[p.Bridge], p.Lag)
	}
	return err
}

// count counts device certificates of issuers, and codes. Canaries and OCSP signers are no devices.
func count(ctx context.Context, db *database.DB, issuers []string, now time.Time) (counts, error) {
	c := counts{certificates: map[string]int{}, expiring: map[string]int{}, codes: map[string]int{}}
	for _, issuer := range issuers {
		var states []named
		err := db.Select(ctx, &states, "SELECT state AS name, COUNT(*) AS n FROM certificates WHERE issuer = ? AND profile NOT IN (?, ?) GROUP BY state", issuer, feed.CanaryProfile, ca.OCSPProfile)
		if err != nil {
			return c, err
		}
		for _, s := range states {
			c.certificates[s.Name] += s.Count
		}
		for _, within := range telemetry.ExpiringWithin {
			n, err := countExpiring(ctx, db, issuer, within, now)
			if err != nil {
				return c, err
			}
			c.expiring[within] += n
		}
	}
	var codes []named
	err := db.Select(ctx, &codes, "SELECT CASE WHEN state = 'active' AND expires_at <= ? THEN 'expired' ELSE state END AS name, COUNT(*) AS n FROM enrollment_codes GROUP BY 1", now.UnixMilli())
	for _, s := range codes {
		c.codes[s.Name] += s.Count
	}
	return c, err
}

type named struct {
	Name  string `db:"name"`
	Count int    `db:"n"`
}

// countExpiring counts certificates in use that end within a time such as "7d". A certificate that was renewed may end: its successor counts.
func countExpiring(ctx context.Context, db *database.DB, issuer, within string, now time.Time) (int, error) {
	d, err := config.ParseDuration(within)
	if err != nil {
		return 0, err
	}
	var n int
	err = db.Get(ctx, &n, "SELECT COUNT(*) FROM certificates WHERE issuer = ? AND state = 'issued' AND renewed_at = 0 AND profile NOT IN (?, ?) AND not_after > ? AND not_after <= ?",
		issuer, feed.CanaryProfile, ca.OCSPProfile, now.UnixMilli(), now.Add(d).UnixMilli())
	return n, err
}
