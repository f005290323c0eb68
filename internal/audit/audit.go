// Package audit is the hash-chained audit log: every state change and its entry are one transaction, and each
// entry carries the hash of the one before, so that a change, removal, insertion or reordering shows, and a
// truncation shows against an exported head.
package audit

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
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

// Head is the newest entry of a log. Keep one elsewhere to notice a truncation.
type Head struct {
	Seq  int64  `db:"seq" json:"seq"`
	Hash string `db:"hash" json:"hash"` // SHA-256, hex
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
	for _, r := range records {
		r.Seq, r.Previous = head.Seq+1, head.Hash
		r.Hash = r.sum()
		if _, err := tx.Exec("INSERT INTO audit (seq, at, actor, action, object, detail, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			r.Seq, r.At, r.Actor, r.Action, r.Object, r.Detail, r.Previous, r.Hash); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		head, at = Head{Seq: r.Seq, Hash: r.Hash}, max(at, r.At)
	}
	// The time of the head never goes back: a clock that was set back must not become credible again by what is logged meanwhile.
	if _, err := tx.Exec("UPDATE audit_head SET seq = ?, at = CASE WHEN at > ? THEN at ELSE ? END, hash = ? WHERE id = 1", head.Seq, at, at, head.Hash); err != nil {
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

// ErrBroken is the root of every finding of Verify.
var ErrBroken = errors.New("audit log is broken")

// Verify walks the whole log and returns its head. known, if not nil, is a head exported earlier, which must still be part of the log. Entries
// may be added meanwhile.
func Verify(ctx context.Context, db *database.DB, known *Head) (Head, error) {
	head := Head{}
	before, err := storedHead(ctx, db)
	if err != nil {
		return head, err
	}
	err = walk(ctx, db, func(r record) error {
		switch {
		case r.Seq != head.Seq+1:
			return fmt.Errorf("%w: entry %d is followed by %d", ErrBroken, head.Seq, r.Seq)
		case r.Previous != head.Hash:
			return fmt.Errorf("%w: entry %d does not continue entry %d", ErrBroken, r.Seq, head.Seq)
		case r.sum() != r.Hash:
			return fmt.Errorf("%w: entry %d was changed", ErrBroken, r.Seq)
		case r.Seq == before.Seq && r.Hash != before.Hash:
			return fmt.Errorf("%w: entry %d is not the one that the head tells of", ErrBroken, r.Seq)
		case known != nil && known.Seq == r.Seq && known.Hash != r.Hash:
			return fmt.Errorf("%w: entry %d is not the one of the exported head", ErrBroken, r.Seq)
		}
		head = Head{Seq: r.Seq, Hash: r.Hash}
		return nil
	})
	if err != nil {
		return head, err
	}
	if before.Seq > head.Seq {
		return head, fmt.Errorf("%w: its end is missing: head says %d, last entry is %d", ErrBroken, before.Seq, head.Seq)
	}
	after, err := storedHead(ctx, db)
	if err != nil {
		return head, err
	}
	if after.Seq < head.Seq {
		return head, fmt.Errorf("%w: entries stand after its end: head says %d, last entry is %d", ErrBroken, after.Seq, head.Seq)
	}
	if known != nil && known.Seq > head.Seq {
		return head, fmt.Errorf("%w: its end is missing: exported head says %d, last entry is %d", ErrBroken, known.Seq, head.Seq)
	}
	return head, nil
}

func storedHead(ctx context.Context, db *database.DB) (head Head, err error) {
	if err := db.Get(ctx, &head, "SELECT seq, hash FROM audit_head WHERE id = 1"); err != nil {
		return head, fmt.Errorf("audit head: %w", err)
	}
	return head, nil
}

// Export writes one JSON object a line, oldest first.
func Export(ctx context.Context, db *database.DB, w io.Writer) error {
	out := bufio.NewWriter(w)
	encoder := json.NewEncoder(out)
	if err := walk(ctx, db, func(r record) error { return encoder.Encode(r) }); err != nil {
		return err
	}
	return out.Flush()
}

func walk(ctx context.Context, db *database.DB, visit func(record) error) error {
	const page = 1000
	for next := int64(math.MinInt64); ; { // an entry before the first one is none of ours, and must show
		var records []record
		if err := db.Select(ctx, &records, "SELECT seq, at, actor, action, object, detail, previous, hash FROM audit WHERE seq >= ? ORDER BY seq LIMIT ?", next, page); err != nil {
			return fmt.Errorf("read audit: %w", err)
		}
		for _, r := range records {
			if err := visit(r); err != nil {
				return err
			}
			next = r.Seq + 1
		}
		if len(records) < page {
			return nil
		}
	}
}
