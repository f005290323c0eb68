// One certificate at a time, for profiles that say so: when the new one is stored, the others of the end entity end as superseded.

package ca

import (
	"context"
	"slices"
	"time"

	"github.com/natal-pki/natal/internal/database"
)

// singleActive tells whether the version of the profile that r was made by allows one certificate at a time.
func (a *Authorities) singleActive(ctx context.Context, r *certificateRow) (bool, error) {
	if r.RequesterKind == requesterAuthority || r.Device == "" {
		return false, nil
	}
	a.mu.RLock()
	p := a.named[r.Profile]
	a.mu.RUnlock()
	if p == nil || p.Hash() != r.ProfileHash {
		version, err := a.ProfileVersion(ctx, r.Profile, r.ProfileHash)
		if err != nil {
			return false, err
		}
		p = version.Profile
	}
	return p.SingleActive(), nil
}

// lockCertificates makes two that are being issued to one end entity at the same time follow one another, in the order of their serial numbers.
func lockCertificates(tx *database.Tx, r *certificateRow) error {
	if tx.Dialect() != database.Postgres {
		return nil // one writer at a time
	}
	var serials []string
	return tx.Select(&serials, "SELECT serial FROM certificates WHERE device = ? AND profile = ? AND state IN ('intended', 'issued', 'held') ORDER BY serial FOR UPDATE", r.Device, r.Profile)
}

// endOthers revokes the other certificates of the end entity and profile, or, when a newer one was stored before (a crash came between),
// this one. Only what was read back after a crash can be the older one: after the clock was put back, times alone would end each new one. It returns the CAs whose CRLs change.
func (a *Authorities) endOthers(tx *database.Tx, now time.Time, r *certificateRow) (issuers []string, err error) {
	var others []struct {
		Serial    string `db:"serial"`
		Issuer    string `db:"issuer"`
		IssuedAt  int64  `db:"issued_at"`
		CreatedAt int64  `db:"created_at"`
	}
	err = tx.Select(&others, "SELECT serial, issuer, issued_at, created_at FROM certificates WHERE device = ? AND profile = ? AND serial <> ? AND state IN ('issued', 'held') AND not_after > ?",
		r.Device, r.Profile, r.Serial, now.UnixMilli())
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		ends := Certificate{Issuer: o.Issuer, Serial: o.Serial, Device: r.Device, IssuedAt: moment(o.IssuedAt)}
		newer := !r.fresh && o.CreatedAt > r.CreatedAt
		if newer {
			ends = Certificate{Issuer: r.Issuer, Serial: r.Serial, Device: r.Device, IssuedAt: now}
		}
		if _, err := a.RevokeInTx(tx, now, "server", ends, "superseded"); err != nil {
			return nil, err
		}
		if !slices.Contains(issuers, ends.Issuer) {
			issuers = append(issuers, ends.Issuer)
		}
		if newer {
			return issuers, tx.Get(r, "SELECT "+certificateColumns+" FROM certificates WHERE serial = ? AND issuer = ?", r.Serial, r.Issuer)
		}
	}
	return issuers, nil
}
