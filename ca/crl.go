// CRLs: the records of what is published (INV-7). How they come about: crl_publish.go (numbers, order), crl_entries.go (what they list),
// crl_assemble.go (bytes and signature), crl_content.go (bytes in database and memory), shard.go, schedule.go.

package ca

import (
	"context"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// crlBackdate makes a new CRL acceptable to a broker whose clock runs behind.
const crlBackdate = 5 * time.Minute

// CRL is a published CRL. DER is set only where it says so.
type CRL struct {
	Authority  string
	Shard      int
	Number     int64
	ThisUpdate time.Time
	NextUpdate time.Time
	IssuedAt   time.Time
	Entries    int
	Size       int64  // of DER, bytes
	SHA256     string // of DER, hex
	DER        []byte
}

type crlRow struct {
	Authority  string `db:"authority"`
	Shard      int64  `db:"shard"`
	Number     int64  `db:"number"`
	ThisUpdate int64  `db:"this_update"`
	NextUpdate int64  `db:"next_update"`
	IssuedAt   int64  `db:"issued_at"`
	Entries    int64  `db:"entries"`
	Seq        int64  `db:"seq"` // of the log of revocations: what is in it up to there is in the CRL
	Size       int64  `db:"size"`
	SHA256     string `db:"sha256"`
	Parts      string `db:"parts"` // numbers of the parts; empty if the CRL is one piece
}

const crlSummary = "authority, shard, number, this_update, next_update, issued_at, entries, seq, size, sha256, parts"

func (r *crlRow) crl() CRL {
	return CRL{
		Authority: r.Authority, Shard: int(r.Shard), Number: r.Number, ThisUpdate: moment(r.ThisUpdate), NextUpdate: moment(r.NextUpdate), IssuedAt: moment(r.IssuedAt),
		Entries: int(r.Entries), Size: r.Size, SHA256: r.SHA256,
	}
}

// CurrentCRL returns the newest published CRL of a CA with one CRL, or of the first shard, with a copy of its DER. What may be large is better
// read from Published.
func (a *Authorities) CurrentCRL(ctx context.Context, name string) (CRL, error) {
	return whole(a.Published(ctx, name, 0))
}

// CRLBySHA256 returns a CRL by the hash of its bytes, with a copy of them; the newest ones are kept.
func (a *Authorities) CRLBySHA256(ctx context.Context, sum string) (CRL, error) {
	return whole(a.PublishedBySHA256(ctx, sum))
}

func whole(p *PublishedCRL, err error) (CRL, error) {
	if err != nil {
		return CRL{}, err
	}
	p.CRL.DER = p.content.der()
	return p.CRL, nil
}

// CRLs returns the newest CRL of each shard of a CA, by shard, without their bytes. None for a CA that has none yet.
func (a *Authorities) CRLs(ctx context.Context, name string) ([]CRL, error) {
	if _, err := a.authority(ctx, name); err != nil {
		return nil, err
	}
	rows, err := a.newestCRLs(ctx, name)
	if err != nil {
		return nil, err
	}
	list := make([]CRL, len(rows))
	for i := range rows {
		list[i] = rows[i].crl()
	}
	return list, nil
}

func (a *Authorities) newestCRLs(ctx context.Context, name string) ([]crlRow, error) {
	var rows []crlRow
	err := a.db.Select(ctx, &rows, "SELECT "+crlSummary+" FROM crls WHERE authority = ? AND number IN (SELECT MAX(number) FROM crls WHERE authority = ? GROUP BY shard) ORDER BY shard", name, name)
	if err != nil {
		return nil, unavailable("read CRLs", err)
	}
	return rows, nil
}

func (a *Authorities) newestCRL(ctx context.Context, name string, shard int) (r crlRow, err error) {
	err = a.db.Get(ctx, &r, "SELECT "+crlSummary+" FROM crls WHERE authority = ? AND shard = ? ORDER BY number DESC LIMIT 1", name, shard)
	if isNoRows(err) {
		return r, a.noCRL(ctx, name, shard)
	}
	if err != nil {
		return r, unavailable("read CRL", err)
	}
	return r, nil
}

// noCRL says why there is no CRL to give: the CA has not so many, or has none yet.
func (a *Authorities) noCRL(ctx context.Context, name string, shard int) error {
	shards, err := a.Shards(ctx, name)
	if err == nil && shard >= shards {
		err = refuse(NotFound, "unknown_crl", "CA %q has no CRL %d: it has %d, counted from 0", name, shard, shards)
	}
	if err == nil {
		err = refuse(NotFound, "unknown_crl", "CA %q has no CRL yet", name)
	}
	return err
}

// SetCRL changes how long a CA's CRLs are valid and how often they are reissued; the next one is issued at once.
func (a *Authorities) SetCRL(ctx context.Context, actor, name string, validity, interval time.Duration) (Info, error) {
	if err := checkCRLTimes(validity, interval); err != nil {
		return Info{}, err
	}
	err := a.db.Write(ctx, "ca.crl_times", func(tx *database.Tx) error {
		rows, err := tx.Exec("UPDATE authorities SET crl_validity = ?, crl_interval = ? WHERE name = ?", validity.Milliseconds(), interval.Milliseconds(), name)
		if err != nil {
			return err
		}
		if rows == 0 {
			return refuse(NotFound, "unknown_ca", "there is no CA %q", name)
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		return a.append(tx, audit.Entry{Actor: actor, Action: "crl_times_set", Object: name, Detail: map[string]string{"validity": validity.String(), "interval": interval.String()}})
	})
	if err != nil {
		return Info{}, passThrough("set CRL times", err)
	}
	if _, err := a.IssueCRL(ctx, actor, name); err != nil {
		return Info{}, err
	}
	return a.Get(ctx, name)
}
