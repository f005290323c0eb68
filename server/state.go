// What the gauges show, read from the database when Prometheus asks.

package main

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/feed"
	"github.com/natal-pki/natal/server/telemetry"
)

// Certificates and codes are counted anew after countsFor times what counting took: the more there are the longer it takes, and scrapes must
// not keep the database busy. A scrape waits for a count no longer than countsWait, and then shows the one before.
const (
	countsFor  = 20
	countsWait = 2 * time.Second
)

// settled is how long ago a revocation must be for its transaction to be visible for sure.
const settled = 2 * time.Second

type stateReader struct {
	server *server

	mu       sync.Mutex
	recount  time.Time    // when to count again
	counting chan counted // gives the result of the count under way; nil: none is
	counts   counts
	revoked  time.Time // revocations until then are in the counter
}

type counted struct {
	counts
	err  error
	next time.Time
}

type counts struct {
	certificates, expiring, codes map[string]int
}

func newStateReader(s *server) *stateReader {
	return &stateReader{server: s, revoked: s.Clock.Now()}
}

// begin makes the series of every label and CA. It counts nothing: a server with many certificates must not be longer in starting for that.
func (r *stateReader) begin(ctx context.Context) error {
	infos, err := r.server.CA.List(ctx)
	if err != nil {
		return err
	}
	for _, info := range infos {
		r.server.ocsp.CA(info.Name)
	}
	return r.labels(ctx, &telemetry.State{Use: map[string]time.Time{}})
}

// read is telemetry's view of the database. It also counts the revocations since the last reading, on whichever way they came.
func (r *stateReader) read(ctx context.Context) (telemetry.State, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, now := r.server, r.server.Clock.Now()
	state := telemetry.State{
		Use:       map[string]time.Time{"est-server": s.cert.Leaf().NotAfter},
		Keys:      map[string]bool{},
		BridgeLag: map[string]time.Duration{},
	}
	var err error
	if state.ClockBehind, err = s.CA.ClockBehind(ctx); err != nil {
		return state, err
	}
	infos, err := s.CA.List(ctx)
	if err != nil {
		return state, err
	}
	keys, err := s.CA.Keys(ctx)
	if err != nil {
		return state, err
	}
	for _, k := range keys {
		state.Keys[k.Authority] = k.Failure == nil
	}
	var issuers []string
	for _, info := range infos {
		c := telemetry.CAState{Name: info.Name, CRLNumber: info.CRLNumber, ThisUpdate: info.ThisUpdate, NextUpdate: info.NextUpdate, CRLEntries: info.CRLEntries}
		c.State = info.State
		if info.State == ca.Retired { // its end and that of its last CRL are nobody's concern any more
			c.ThisUpdate = time.Time{}
		} else if info.Certificate != nil {
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
	if err := r.recounted(ctx, issuers, now); err != nil {
		return state, err
	}
	state.Certificates, state.CertificatesExpiring, state.Codes = r.counts.certificates, r.counts.expiring, r.counts.codes
	return state, nil
}

// recounted starts a count when it is time for one, and waits for it: with an earlier one at hand for countsWait, else as long as ctx lets it.
func (r *stateReader) recounted(ctx context.Context, issuers []string, now time.Time) error {
	if r.counting == nil {
		if time.Now().Before(r.recount) {
			return nil
		}
		result := make(chan counted, 1)
		r.counting = result
		go func() {
			begun := time.Now()
			c, err := count(context.WithoutCancel(ctx), r.server.DB, issuers, now)
			result <- counted{c, err, time.Now().Add(countsFor * time.Since(begun))}
		}()
	}
	var enough <-chan time.Time
	if r.counts.certificates != nil {
		enough = time.After(countsWait)
	}
	select {
	case c := <-r.counting:
		r.counting, r.recount = nil, c.next
		if c.err == nil {
			r.counts = c.counts
		}
		return c.err
	case <-enough:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *stateReader) countRevoked(ctx context.Context, issuer string, until time.Time) error {
	var rows []struct {
		Reason string `db:"reason"`
		Count  int    `db:"n"`
	}
	err := r.server.DB.Select(ctx, &rows, "SELECT reason, COUNT(*) AS n FROM certificates WHERE issuer = ? AND revoked_at > 0 AND revoked_at > ? AND revoked_at <= ? GROUP BY reason",
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
	add := func(to map[string]int, name, query string, args ...any) error {
		var rows []named
		err := db.Select(ctx, &rows, query, args...)
		for _, row := range rows {
			if slices.Contains(issuers, row.Issuer) {
				to[cmp.Or(row.Name, name)] += row.Count
			}
		}
		return err
	}
	// By issuer in the answer, not in the question: so the indexes certificates_state and certificates_expiry hold all that is read.
	err := add(c.certificates, "", "SELECT state AS name, issuer, COUNT(*) AS n FROM certificates WHERE state <> 'issued' AND profile NOT IN (?, ?) GROUP BY state, issuer", feed.CanaryProfile, ca.OCSPProfile)
	if err != nil {
		return c, err
	}
	err = add(c.certificates, ca.Issued, "SELECT '' AS name, issuer, COUNT(*) AS n FROM certificates WHERE state = 'issued' AND profile NOT IN (?, ?) GROUP BY issuer", feed.CanaryProfile, ca.OCSPProfile)
	if err != nil {
		return c, err
	}
	for _, within := range telemetry.ExpiringWithin {
		d, err := config.ParseDuration(within)
		if err != nil {
			return c, err
		}
		// A certificate that was renewed may end: its successor counts.
		c.expiring[within] = 0
		err = add(c.expiring, within, "SELECT '' AS name, issuer, COUNT(*) AS n FROM certificates WHERE state = 'issued' AND renewed_at = 0 AND profile NOT IN (?, ?) AND not_after > ? AND not_after <= ? GROUP BY issuer",
			feed.CanaryProfile, ca.OCSPProfile, now.UnixMilli(), now.Add(d).UnixMilli())
		if err != nil {
			return c, err
		}
	}
	var codes []named
	err = db.Select(ctx, &codes, "SELECT CASE WHEN state = 'active' AND expires_at <= ? THEN 'expired' ELSE state END AS name, '' AS issuer, COUNT(*) AS n FROM enrollment_codes GROUP BY 1", now.UnixMilli())
	for _, s := range codes {
		c.codes[s.Name] += s.Count
	}
	return c, err
}

type named struct {
	Name   string `db:"name"`
	Issuer string `db:"issuer"`
	Count  int    `db:"n"`
}
