// Stating a restore: one transaction after which every number goes on where none can have been used since the backup was made (INV-21).

package instance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
)

const (
	// restoreJump is more than any sequence can have advanced since a backup was made.
	restoreJump = 1 << 40
	// numbersPerSecond sets the jumps of two restores of one backup apart: the later one begins beyond all that was used after the earlier. Below
	// 2^53 until the year 2106, so that JSON readers that know only doubles read the numbers exactly.
	numbersPerSecond = 1 << 21

	maxClockLag = 5 * time.Minute
)

// Statement is what an operator says about a restore.
type Statement struct {
	Actor     string
	Backup    string   // when the backup was made, if that is known
	Text      string   // the operator's own words
	KeepCodes bool     // no code was used since the backup
	CRLs      [][]byte // published after the backup was made, DER or PEM
}

// Stated is what became of it.
type Stated struct {
	Epoch     int64
	Base      int64 // where the numbers go on
	CodesLeft int64 // codes that could be used before; ended unless they were to be kept
	ca.Reapplied
}

// Restate opens an instance whose database is an older copy, states the restore in one transaction and issues new CRLs. The caller holds the
// directory's lock, and no other server is at work on the database.
func Restate(ctx context.Context, o Options, say Statement) (Stated, error) {
	i, err := openUnchecked(ctx, o)
	if err != nil {
		return Stated{}, err
	}
	stated, err := i.restate(ctx, say)
	return stated, errors.Join(err, i.DB.Close())
}

func (i *Instance) restate(ctx context.Context, say Statement) (Stated, error) {
	m, err := i.Dir.recall()
	if err != nil {
		return Stated{}, err
	}
	now := i.Clock.Now()
	newest, err := audit.Newest(ctx, i.DB)
	if err != nil {
		return Stated{}, err
	}
	if now.Before(newest.Add(-maxClockLag)) {
		return Stated{}, fmt.Errorf("the clock says %s, and the backup holds a record of %s: put the clock right first", now.Format(time.RFC3339), newest.Format(time.RFC3339))
	}
	var published []ca.Published
	for _, content := range say.CRLs {
		p, err := i.CA.ReadPublished(ctx, content)
		if err != nil {
			return Stated{}, fmt.Errorf("--crl: %w", err)
		}
		published = append(published, p)
	}
	var stated Stated
	err = i.DB.Write(ctx, "instance.restate", func(tx *database.Tx) (err error) {
		stated, err = i.restateInTx(tx, now, m, say, published)
		return err
	})
	if err != nil {
		return Stated{}, err
	}
	head, err := audit.Current(ctx, i.DB)
	if err != nil {
		return stated, err
	}
	if err := i.Dir.remember(memory{Epoch: head.Epoch, Seq: head.Seq, Hash: head.Hash}); err != nil {
		return stated, err
	}
	if err := i.CA.RenewRestoredCRLs(ctx, say.Actor); err != nil {
		i.Log.Warn("CRLs of the new epoch not issued: the next start tries again", "error", err)
	}
	return stated, nil
}

func (i *Instance) restateInTx(tx *database.Tx, now time.Time, m memory, say Statement, published []ca.Published) (Stated, error) {
	head, err := audit.CurrentInTx(tx)
	if err != nil {
		return Stated{}, err
	}
	stated := Stated{Epoch: max(head.Epoch, m.Epoch) + 1}
	var highest int64
	err = tx.Get(&highest, `SELECT MAX(n) FROM (SELECT MAX(crl_number) AS n FROM authorities UNION ALL
		SELECT MAX(value) FROM counters WHERE name IN ('changes', 'revocations', 'configuration')) AS used`)
	if err != nil {
		return Stated{}, err
	}
	stated.Base = max(max(highest, head.Seq, m.Seq)+restoreJump, now.Unix()*numbersPerSecond)
	if stated.CodesLeft, err = registration.CountOpenCodes(tx); err != nil {
		return Stated{}, err
	}
	if !say.KeepCodes {
		if err := registration.EndOpenCodes(tx); err != nil {
			return Stated{}, err
		}
	}
	if err := jump(tx, stated); err != nil {
		return Stated{}, err
	}
	if err := audit.Append(tx, now, say.entry(head, stated, published)); err != nil { // the first one: its number is the base
		return Stated{}, err
	}
	if stated.Reapplied, err = i.CA.RestateInTx(tx, now, say.Actor, stated.Base, published); err != nil {
		return Stated{}, err
	}
	return stated, i.Book.RevokeAfterRestoreInTx(tx, say.Actor, stated.Devices)
}

// jump sets what is counted so that the next number of each is the base.
func jump(tx *database.Tx, to Stated) error {
	for _, statement := range []string{
		"UPDATE counters SET value = ? WHERE name IN ('changes', 'revocations', 'configuration')", "UPDATE audit_head SET seq = ? WHERE id = 1",
	} {
		if _, err := tx.Exec(statement, to.Base-1); err != nil {
			return err
		}
	}
	if _, err := tx.Exec("UPDATE counters SET value = ? WHERE name = 'epoch'", to.Epoch); err != nil {
		return err
	}
	return tx.TouchConfiguration()
}

func (s Statement) entry(head audit.Head, stated Stated, published []ca.Published) audit.Entry {
	detail := map[string]string{
		"from_epoch": fmt.Sprint(head.Epoch), "epoch": fmt.Sprint(stated.Epoch), "from_seq": fmt.Sprint(head.Seq), "statement": s.Text, "backup": s.Backup,
		"codes_ended": fmt.Sprint(stated.CodesLeft),
	}
	if s.KeepCodes {
		detail["codes_ended"] = "0"
	}
	var crls []string
	for _, p := range published {
		crls = append(crls, p.Authority+" "+p.Number)
	}
	if crls != nil {
		detail["crls"] = strings.Join(crls, ", ")
	}
	return audit.Entry{Actor: s.Actor, Action: audit.Restored, Object: "installation", Detail: detail}
}

// Ended are the devices that were revoked because of a CRL, in order.
func (s Stated) Ended() []string { return slices.Sorted(maps.Keys(s.Devices)) }
