// A clock that is behind what was already recorded signs nothing (INV-16): its certificates and CRLs would begin before others that exist.

package ca

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// MaxClockLag is how far the clock may be behind the newest audit entry before nothing is signed.
const MaxClockLag = 5 * time.Minute

// clockCheckAge is how old the newest audit entry that is known here may be.
const clockCheckAge = time.Second

// clockWatch remembers the newest audit entry.
type clockWatch struct {
	mu     sync.Mutex
	read   time.Time
	newest time.Time
}

// newestEntry is the latest time that any audit entry has.
func (a *Authorities) newestEntry(ctx context.Context) (time.Time, error) {
	w := &a.clockWatch
	w.mu.Lock()
	newest, fresh := w.newest, time.Since(w.read) < clockCheckAge
	w.mu.Unlock()
	if fresh {
		return newest, nil
	}
	newest, err := audit.Newest(ctx, a.db)
	if err != nil {
		return newest, unavailable("database", err)
	}
	w.mu.Lock()
	w.newest, w.read = newest, time.Now()
	w.mu.Unlock()
	return newest, nil
}

// ClockBehind is how far the clock is behind the newest audit entry; 0 when it is not.
func (a *Authorities) ClockBehind(ctx context.Context) (time.Duration, error) {
	newest, err := a.newestEntry(ctx)
	return max(0, newest.Sub(a.clock.Now())), err
}

// checkClock refuses to go on with a clock that is behind.
func (a *Authorities) checkClock(ctx context.Context) error {
	newest, err := a.newestEntry(ctx)
	if err != nil {
		return err
	}
	if now := a.clock.Now(); now.Before(newest.Add(-MaxClockLag)) {
		return &Error{Kind: Unavailable, Rule: "clock_behind", Detail: "the server's clock is behind its own records",
			Err: fmt.Errorf("clock %s, newest audit entry %s", now.Format(time.RFC3339), newest.Format(time.RFC3339))}
	}
	return nil
}

// LaterRecords is what a clock that ran ahead has left.
type LaterRecords struct {
	Newest       time.Time // the newest audit entry
	CRLs         int64     // that began later than now: they are withdrawn
	Certificates int64     // that begin later than now
}

// AcceptClock takes the clock for right although there are records of a later time. CRLs from then are withdrawn, because no broker takes
// them and no other could be issued after them, and every CA concerned gets a new one, with a higher number.
func (a *Authorities) AcceptClock(ctx context.Context, actor, reason string) (LaterRecords, error) {
	now := a.clock.Now()
	var found LaterRecords
	var issuers []string
	err := a.db.Write(ctx, "clock.accept", func(tx *database.Tx) error {
		head, err := audit.CurrentInTx(tx)
		if err != nil {
			return err
		}
		found = LaterRecords{Newest: moment(head.At)}
		if !found.Newest.After(now.Add(MaxClockLag)) {
			return refuse(Conflict, "clock_not_behind", "the clock is not behind: the newest record is of %s", found.Newest.Format(time.RFC3339))
		}
		if issuers, found.CRLs, err = withdrawCRLs(tx, now); err != nil {
			return err
		}
		err = tx.Get(&found.Certificates, "SELECT COUNT(*) FROM certificates WHERE not_before > ? AND state IN ('issued', 'intended', 'held')", now.UnixMilli())
		if err != nil {
			return err
		}
		if err := audit.AcceptTime(tx, now); err != nil {
			return err
		}
		a.changes.Append(tx, feedapi.Change{At: now, Kind: feedapi.TrustSetChanged})
		return a.append(tx, audit.Entry{Actor: actor, Action: "clock_accepted", Object: "clock", Detail: map[string]string{
			"newest": found.Newest.Format(time.RFC3339), "clock": now.Format(time.RFC3339), "reason": reason, "crls": fmt.Sprint(found.CRLs), "certificates": fmt.Sprint(found.Certificates),
		}})
	})
	if err != nil {
		return LaterRecords{}, passThrough("accept clock", err)
	}
	a.clockWatch.mu.Lock()
	a.clockWatch.read = time.Time{}
	a.clockWatch.mu.Unlock()
	a.changes.Announce()
	for _, name := range issuers {
		a.publisher.mu.Lock()
		delete(a.publisher.sets, name) // what has ended by the other clock has not by this one
		a.publisher.mu.Unlock()
		if _, err := a.IssueCRL(ctx, actor, name); err != nil {
			a.log.Error("crl not issued after the clock was accepted", "ca", name, "error", err)
		}
	}
	return found, nil
}

// withdrawCRLs removes the CRLs that begin after now, and returns their CAs and how many they were. Of each shard they are the newest, so their
// parts belong to no other.
func withdrawCRLs(tx *database.Tx, now time.Time) (issuers []string, n int64, err error) {
	var from []struct {
		Authority string `db:"authority"`
		Shard     int64  `db:"shard"`
		Number    int64  `db:"number"`
	}
	err = tx.Select(&from, "SELECT authority, shard, MIN(number) AS number FROM crls WHERE this_update > ? GROUP BY authority, shard", now.UnixMilli())
	if err != nil {
		return nil, 0, err
	}
	for _, f := range from {
		if _, err := tx.Exec("DELETE FROM crl_parts WHERE authority = ? AND shard = ? AND number >= ?", f.Authority, f.Shard, f.Number); err != nil {
			return nil, 0, err
		}
		if !slices.Contains(issuers, f.Authority) {
			issuers = append(issuers, f.Authority)
		}
	}
	n, err = tx.Exec("DELETE FROM crls WHERE this_update > ?", now.UnixMilli())
	return issuers, n, err
}
