// The hold that comes with the suspension of a device, and its exact inverse: what is held here is written down, so that a certificate which an
// operator held by itself before stays held.

package ca

import (
	"slices"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

type suspendedRow struct {
	Serial   string `db:"serial"`
	Issuer   string `db:"issuer"`
	Device   string `db:"device"`
	IssuedAt int64  `db:"issued_at"`
}

// SuspendInTx holds all certificates of a device that are issued, a bridge's canaries with it, as part of a larger change. One that is still intended
// is held in the moment in which it is issued. The caller announces the change log and publishes the CRLs of the issuers after the commit.
func (a *Authorities) SuspendInTx(tx *database.Tx, now time.Time, actor, device string) (issuers []string, err error) {
	var rows []suspendedRow
	for _, of := range []string{"device = ?", "requester_kind = 'canary' AND requester = ?"} {
		query := "SELECT serial, issuer, device, issued_at FROM certificates WHERE " + of + " AND state IN ('issued', 'intended') AND not_after > ?"
		if tx.Dialect() == database.Postgres {
			query += " FOR UPDATE" // who is completing one of them is waited for, or waits
		}
		var some []suspendedRow
		if err := tx.Select(&some, query, device, now.UnixMilli()); err != nil {
			return nil, err
		}
		rows = append(rows, some...)
	}
	for _, r := range rows {
		if _, err := tx.Exec("INSERT INTO suspended_certificates (serial, issuer, device) VALUES (?, ?, ?)", r.Serial, r.Issuer, device); err != nil {
			return nil, err
		}
		changed, err := a.RevokeInTx(tx, now, actor, Certificate{Issuer: r.Issuer, Serial: r.Serial, Device: r.Device, IssuedAt: moment(r.IssuedAt)}, hold)
		if err != nil {
			return nil, err
		}
		if changed && !slices.Contains(issuers, r.Issuer) {
			issuers = append(issuers, r.Issuer)
		}
	}
	return issuers, nil
}

// ResumeInTx takes the holds of SuspendInTx back, and nothing else.
func (a *Authorities) ResumeInTx(tx *database.Tx, actor, device string) (issuers []string, err error) {
	var rows []suspendedRow
	if err := tx.Select(&rows, "SELECT serial, issuer, device FROM suspended_certificates WHERE device = ? ORDER BY issuer, serial", device); err != nil {
		return nil, err
	}
	if err := a.ForgetSuspensionInTx(tx, device); err != nil {
		return nil, err
	}
	for _, r := range rows {
		changed, err := a.unholdInTx(tx, actor, Certificate{Issuer: r.Issuer, Serial: r.Serial, Device: r.Device})
		if err != nil {
			return nil, err
		}
		if changed && !slices.Contains(issuers, r.Issuer) {
			issuers = append(issuers, r.Issuer)
		}
	}
	return issuers, nil
}

// ForgetSuspensionInTx ends a suspension whose certificates are revoked for good.
func (a *Authorities) ForgetSuspensionInTx(tx *database.Tx, device string) error {
	_, err := tx.Exec("DELETE FROM suspended_certificates WHERE device = ?", device)
	return err
}

// heldBySuspension tells whether the suspension of a device holds the certificate.
func heldBySuspension(tx *database.Tx, serial, issuer string) (bool, error) {
	var n int64
	err := tx.Get(&n, "SELECT COUNT(*) FROM suspended_certificates WHERE serial = ? AND issuer = ?", serial, issuer)
	return n > 0, err
}

// ofSuspended tells whether a certificate is of a device that is suspended, whoever held it: nothing of such a device becomes valid.
func ofSuspended(tx *database.Tx, c Certificate) (bool, error) {
	if is, err := heldBySuspension(tx, c.Serial, c.Issuer); is || err != nil {
		return is, err
	}
	query := "SELECT suspended_at FROM end_entities WHERE id = ?"
	if tx.Dialect() == database.Postgres {
		query += " FOR UPDATE" // a suspension under way is waited for, or finds the certificate as it is after this transaction
	}
	var at int64
	err := tx.Get(&at, query, c.Device)
	if isNoRows(err) {
		return false, nil
	}
	return at > 0, err
}

// holdSuspended holds a certificate that was issued in this transaction and whose device was suspended since it was intended.
func (a *Authorities) holdSuspended(tx *database.Tx, now time.Time, c *certificateRow) error {
	if _, err := a.RevokeInTx(tx, now, "server", c.certificate(), hold); err != nil {
		return err
	}
	c.State, c.Reason, c.RevokedAt = Held, hold, now.UnixMilli()
	return nil
}

// unholdInTx makes a held certificate valid again.
func (a *Authorities) unholdInTx(tx *database.Tx, actor string, c Certificate) (changed bool, err error) {
	var notAfter int64
	err = tx.Get(&notAfter, "UPDATE certificates SET state = 'issued', reason = '', revoked_at = 0 WHERE serial = ? AND issuer = ? AND state = 'held' RETURNING not_after", c.Serial, c.Issuer)
	if isNoRows(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	logRevocation(tx, revocation{Issuer: c.Issuer, Serial: c.Serial, NotAfter: notAfter})
	return true, a.append(tx, audit.Entry{Actor: actor, Action: "certificate_unheld", Object: c.Serial, Detail: map[string]string{"issuer": c.Issuer, "device": c.Device}})
}
