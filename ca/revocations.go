// The log of revocations: what was revoked, held or taken back, in the order in which it was committed. CRLs and OCSP answers follow it, so
// that none of them has to look at all certificates again.

package ca

import (
	"context"
	"fmt"

	"github.com/natal-pki/natal/internal/database"
)

// revocation is an entry of the log: how a certificate stands from then on.
type revocation struct {
	Seq       int64  `db:"seq"`
	Issuer    string `db:"issuer"`
	Serial    string `db:"serial"`
	Reason    string `db:"reason"`     // "" = taken back
	RevokedAt int64  `db:"revoked_at"` // 0 = taken back
	NotAfter  int64  `db:"not_after"`
}

type revocationsKey struct{}

// logRevocation adds an entry as one of the last acts of tx; its Seq is given there, under a lock, so that no reader ever sees a later entry
// before an earlier one. All entries of a transaction are written at once.
func logRevocation(tx *database.Tx, r revocation) {
	pending := tx.Local(revocationsKey{}, func() any {
		p := &[]revocation{}
		tx.AtEnd(func() error { return writeRevocations(tx, *p) })
		return p
	}).(*[]revocation)
	*pending = append(*pending, r)
}

func writeRevocations(tx *database.Tx, entries []revocation) error {
	var last int64
	if err := tx.Get(&last, "UPDATE counters SET value = value + ? WHERE name = 'revocations' RETURNING value", len(entries)); err != nil {
		return fmt.Errorf("log of revocations: %w", err)
	}
	for i, r := range entries {
		r.Seq = last - int64(len(entries)-1-i)
		if _, err := tx.Exec("INSERT INTO revocations (seq, issuer, serial, reason, revoked_at, not_after) VALUES (?, ?, ?, ?, ?, ?)", r.Seq, r.Issuer, r.Serial, r.Reason, r.RevokedAt, r.NotAfter); err != nil {
			return fmt.Errorf("log of revocations: %w", err)
		}
	}
	return nil
}

// revocationsSince returns up to limit entries of a CA after seq, ascending.
func (a *Authorities) revocationsSince(ctx context.Context, issuer string, seq int64, limit int) ([]revocation, error) {
	var rows []revocation
	err := a.db.Select(ctx, &rows, "SELECT seq, issuer, serial, reason, revoked_at, not_after FROM revocations WHERE issuer = ? AND seq > ? ORDER BY seq LIMIT ?", issuer, seq, limit)
	if err != nil {
		return nil, unavailable("read the log of revocations", err)
	}
	return rows, nil
}
