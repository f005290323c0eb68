// Package changes is the log that broker bridges follow: what was added, removed or revoked, in the order in which
// it was committed. Entries are written in the transaction of the change that they tell of.
package changes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// Log reads, writes and announces changes. It is safe for concurrent use.
type Log struct {
	db *database.DB

	mu   sync.Mutex
	wake chan struct{} // closed and replaced at each announcement
}

// New returns the log of db.
func New(db *database.DB) *Log {
	return &Log{db: db, wake: make(chan struct{})}
}

type row struct {
	Seq        int64  `db:"seq"`
	At         int64  `db:"at"`
	Kind       string `db:"kind"`
	Device     string `db:"device"`
	Label      string `db:"label"`
	Profile    string `db:"profile"`
	Service    string `db:"service"`
	Issuer     string `db:"issuer"`
	Serial     string `db:"serial"`
	Reason     string `db:"reason"`
	Superseded int64  `db:"superseded"`
}

// Append adds a change as one of the last acts of tx; its Seq is given there, under a lock, so that no reader ever sees
// a later change before an earlier one. Call Announce after the commit.
func (l *Log) Append(tx *database.Tx, c feedapi.Change) {
	r := row{At: c.At.UnixMilli(), Kind: c.Kind}
	if d := c.Device; d != nil {
		r.Device, r.Label, r.Profile, r.Service = d.ID, d.Label, d.Profile, d.Service
	}
	if v := c.Revoked; v != nil {
		r.Device, r.Issuer, r.Serial, r.Reason = v.Device, v.Issuer, v.Serial, v.Reason
		if v.Superseded {
			r.Superseded = 1
		}
	}
	pending := tx.Local(pendingKey{}, func() any {
		p := &[]row{}
		tx.AtEnd(func() error { return write(tx, *p) })
		return p
	}).(*[]row)
	*pending = append(*pending, r)
}

type pendingKey struct{}

// atOnce is how many entries one statement stores.
const atOnce = 200

// write numbers all entries of a transaction and stores them.
func write(tx *database.Tx, rows []row) error {
	var last int64
	if err := tx.Get(&last, "UPDATE counters SET value = value + ? WHERE name = 'changes' RETURNING value", len(rows)); err != nil {
		return fmt.Errorf("change log: %w", err)
	}
	for i := range rows {
		rows[i].Seq = last - int64(len(rows)-1-i)
	}
	for part := range slices.Chunk(rows, atOnce) {
		args := make([]any, 0, 11*len(part))
		for _, r := range part {
			args = append(args, r.Seq, r.At, r.Kind, r.Device, r.Label, r.Profile, r.Service, r.Issuer, r.Serial, r.Reason, r.Superseded)
		}
		_, err := tx.Exec("INSERT INTO changes (seq, at, kind, device, label, profile, service, issuer, serial, reason, superseded) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"+
			strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", len(part)-1), args...)
		if err != nil {
			return fmt.Errorf("change log: %w", err)
		}
	}
	return nil
}

// Announce wakes who waits in Wait. Spurious calls do no harm.
func (l *Log) Announce() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.wake)
	l.wake = make(chan struct{})
}

// Announced is closed at the next Announce. Take it before reading, so that nothing falls between.
func (l *Log) Announced() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wake
}

// Seq is the number of the newest change.
func (l *Log) Seq(ctx context.Context) (int64, error) {
	var seq int64
	if err := l.db.Get(ctx, &seq, "SELECT value FROM counters WHERE name = 'changes'"); err != nil {
		return 0, fmt.Errorf("change log: %w", err)
	}
	return seq, nil
}

// Has tells whether there is a change of this number.
func (l *Log) Has(ctx context.Context, seq int64) (bool, error) {
	var n int
	if err := l.db.Get(ctx, &n, "SELECT COUNT(*) FROM changes WHERE seq = ?", seq); err != nil {
		return false, fmt.Errorf("change log: %w", err)
	}
	return n == 1, nil
}

// TrustSetSeq is the number of the newest change of the trust set.
func (l *Log) TrustSetSeq(ctx context.Context) (int64, error) {
	var seq int64
	if err := l.db.Get(ctx, &seq, "SELECT COALESCE(MAX(seq), 0) FROM changes WHERE kind = 'trust_set'"); err != nil {
		return 0, fmt.Errorf("change log: %w", err)
	}
	return seq, nil
}

// Since returns up to limit changes after seq, ascending.
func (l *Log) Since(ctx context.Context, seq int64, limit int) ([]feedapi.Change, error) {
	var rows []row
	if err := l.db.Select(ctx, &rows, "SELECT seq, at, kind, device, label, profile, service, issuer, serial, reason, superseded FROM changes WHERE seq > ? ORDER BY seq LIMIT ?", seq, limit); err != nil {
		return nil, fmt.Errorf("change log: %w", err)
	}
	list := make([]feedapi.Change, 0, len(rows))
	for _, r := range rows {
		c := feedapi.Change{Seq: r.Seq, At: time.UnixMilli(r.At).UTC(), Kind: r.Kind}
		switch r.Kind {
		case feedapi.DeviceAdded, feedapi.DeviceRemoved:
			c.Device = &feedapi.Device{ID: r.Device, Label: r.Label, Profile: r.Profile, Service: r.Service}
		case feedapi.CertificateRevoked:
			c.Revoked = &feedapi.Revoked{Serial: r.Serial, Issuer: r.Issuer, Device: r.Device, Reason: r.Reason, RevokedAt: c.At, Superseded: r.Superseded == 1}
		}
		list = append(list, c)
	}
	return list, nil
}
