// Package audit is the hash-chained audit log: every state change and its entry are one transaction, and each
// entry carries the hash of the one before, so that a change, removal, insertion or reordering shows, and a
// truncation shows against an exported head.
//
// The numbers of the entries have no gap, with one exception: an installation that was restored from a backup says so in an entry
// "restored", whose number is far beyond any that may have been used since the backup was made. Its hash continues the entry before it
// all the same.
//
// Files: audit.go (Append, Head), verify.go, export.go, checkpoint.go (signed heads).
package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/database"
)

// Entry says who did what to which object. Secrets never stand in it.
type Entry struct {
	Actor  string            // "cli:uid=0", "admin:NAME", "device:ID", "bridge:ID", "server"
	Action string            // "certificate_issued", "code_used", ...
	Object string            // a device id, a serial number, a name
	Detail map[string]string // snake_case keys
}

// Restored is the action of the entry that states a restore; only before it may numbers be missing.
const Restored = "restored"

// Head is the newest entry of a log. Keep one elsewhere to notice a truncation.
type Head struct {
	Epoch int64  `db:"epoch" json:"epoch"` // how often the installation was made or restored: 1 until the first restore
	Seq   int64  `db:"seq" json:"seq"`
	Hash  string `db:"hash" json:"hash"` // SHA-256, hex
	At    int64  `db:"at" json:"at"`     // the newest time of an entry, Unix milliseconds
}

const headQuery = "SELECT a.seq, a.hash, a.at, c.value AS epoch FROM audit_head a JOIN counters c ON c.name = 'epoch' WHERE a.id = 1"

// Current returns the newest entry's head.
func Current(ctx context.Context, db *database.DB) (head Head, err error) {
	if err := db.Get(ctx, &head, headQuery); err != nil {
		return head, fmt.Errorf("audit head: %w", err)
	}
	return head, nil
}

// CurrentInTx is Current inside a transaction.
func CurrentInTx(tx *database.Tx) (head Head, err error) {
	if err := tx.Get(&head, headQuery); err != nil {
		return head, fmt.Errorf("audit head: %w", err)
	}
	return head, nil
}

// Contains tells whether the log has the entry of a head that was kept elsewhere.
func Contains(ctx context.Context, db *database.DB, head Head) (bool, error) {
	var n int
	if err := db.Get(ctx, &n, "SELECT COUNT(*) FROM audit WHERE seq = ? AND hash = ?", head.Seq, head.Hash); err != nil {
		return false, fmt.Errorf("read audit: %w", err)
	}
	return n == 1 || head.Seq == 0, nil
}

type record struct {
	Seq      int64  `db:"seq" json:"seq"`
	At       int64  `db:"at" json:"at"` // Unix milliseconds
	Actor    string `db:"actor" json:"actor"`
	Action   string `db:"action" json:"action"`
	Object   string `db:"object" json:"object"`
	Detail   string `db:"detail" json:"detail"` // a JSON object
	Previous string `db:"previous" json:"previous"`
	Hash     string `db:"hash" json:"hash"`
}

// sum hashes every field, each preceded by its length, so that no two records share an encoding.
func (r *record) sum() string {
	h := sha256.New()
	for _, field := range []string{strconv.FormatInt(r.Seq, 10), strconv.FormatInt(r.At, 10), r.Actor, r.Action, r.Object, r.Detail, r.Previous} {
		fmt.Fprintf(h, "%d:%s", len(field), field)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Append adds an entry as the last act of tx. If it cannot be written, tx does not happen.
func Append(tx *database.Tx, at time.Time, e Entry) error {
	detail, err := json.Marshal(e.Detail)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if e.Detail == nil {
		detail = []byte("{}")
	}
	pending := tx.Local(pendingKey{}, func() any {
		p := &[]record{}
		tx.AtEnd(func() error { return write(tx, *p) })
		return p
	}).(*[]record)
	*pending = append(*pending, record{At: at.UnixMilli(), Actor: e.Actor, Action: e.Action, Object: e.Object, Detail: string(detail)})
	return nil
}

type pendingKey struct{}

// atOnce is how many entries one statement stores.
const atOnce = 200

// write continues the chain by all entries of a transaction.
func write(tx *database.Tx, records []record) error {
	query := "SELECT seq, hash FROM audit_head WHERE id = 1"
	if tx.Dialect() == database.Postgres {
		query += " FOR UPDATE"
	}
	var head Head
	if err := tx.Get(&head, query); err != nil {
		return fmt.Errorf("audit head: %w", err)
	}
	var at int64
	for i := range records {
		r := &records[i]
		r.Seq, r.Previous = head.Seq+1, head.Hash
		r.Hash = r.sum()
		head, at = Head{Seq: r.Seq, Hash: r.Hash}, max(at, r.At)
	}
	for part := range slices.Chunk(records, atOnce) {
		args := make([]any, 0, 8*len(part))
		for _, r := range part {
			args = append(args, r.Seq, r.At, r.Actor, r.Action, r.Object, r.Detail, r.Previous, r.Hash)
		}
		_, err := tx.Exec("INSERT INTO audit (seq, at, actor, action, object, detail, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"+
			strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?)", len(part)-1), args...)
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	// The time of the head never goes back: a clock that was set back must not become credible again by what is logged meanwhile.
	if _, err := tx.Exec("UPDATE audit_head SET seq = ?, at = CASE WHEN at > ? THEN at ELSE ? END, hash = ? WHERE id = 1", head.Seq, at, at, head.Hash); err != nil {
		return fmt.Errorf("audit head: %w", err)
	}
	return nil
}

// AcceptTime sets back the time of the head to at, which an operator took for right; the entry that tells of it follows in the same transaction.
func AcceptTime(tx *database.Tx, at time.Time) error {
	if _, err := tx.Exec("UPDATE audit_head SET at = ? WHERE id = 1", at.UnixMilli()); err != nil {
		return fmt.Errorf("audit head: %w", err)
	}
	return nil
}

// Newest returns the latest time that any entry has; the zero time when there is none.
func Newest(ctx context.Context, db *database.DB) (time.Time, error) {
	var at int64
	if err := db.Get(ctx, &at, "SELECT at FROM audit_head WHERE id = 1"); err != nil {
		return time.Time{}, fmt.Errorf("audit head: %w", err)
	}
	if at == 0 {
		return time.Time{}, nil
	}
	return time.UnixMilli(at).UTC(), nil
}
