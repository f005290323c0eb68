// From intended to issued: sign what was recorded, store it, and finish what a crash left undone.

package ca

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
)

// finish returns an existing certificate, signing it first if a crash or a failing key left it intended.
func (a *Authorities) finish(ctx context.Context, id ID) (Certificate, error) {
	var r certificateRow
	if err := a.db.Get(ctx, &r, "SELECT "+certificateColumns+" FROM certificates WHERE serial = ? AND issuer = ?", id.Serial, id.Issuer); err != nil {
		return Certificate{}, unavailable("read certificate", err)
	}
	switch r.State {
	case Issued:
		return r.certificate(), nil
	case Intended:
		au, err := a.authority(ctx, r.Issuer)
		if err != nil {
			return Certificate{}, err
		}
		return a.complete(ctx, au, &r)
	}
	return Certificate{}, refuse(Conflict, "certificate_state", "certificate %s is %s", r.Serial, r.State)
}

// complete signs the recorded bytes and stores the result.
func (a *Authorities) complete(ctx context.Context, au *authority, r *certificateRow) (Certificate, error) {
	if err := a.checkClock(ctx); err != nil {
		return Certificate{}, err
	}
	if au.row.State == Retired || au.row.State == Revoked {
		return Certificate{}, refuse(Conflict, "ca_not_active", "CA %q is %s and signs nothing more", au.row.Name, au.row.State)
	}
	key, err := a.signer(au)
	if err != nil {
		return Certificate{}, err
	}
	single, err := a.singleActive(ctx, r)
	if err != nil {
		return Certificate{}, err
	}
	var der []byte
	err = fault.Step("ca.sign", func() (err error) {
		der, err = sign(r.TBS, key)
		return err
	})
	if err != nil {
		return Certificate{}, a.signFailed(au, err)
	}
	var stored certificateRow
	var ended []string
	err = a.db.Write(ctx, "ca.issued", func(tx *database.Tx) (err error) {
		stored, ended, err = a.storeIssued(tx, au, r, der, single)
		return err
	})
	if err != nil {
		return Certificate{}, unavailable("store certificate", err)
	}
	if len(ended) > 0 {
		a.changes.Announce()
		a.PublishAfterRevocation(ctx, ended...)
	}
	if stored.State != Issued {
		return Certificate{}, refuse(Conflict, "certificate_state", "certificate %s is %s", stored.Serial, stored.State)
	}
	return stored.certificate(), nil
}

// storeIssued turns the record of r from intended into issued, with all that follows from it. It returns the record as it is then, and the CAs
// whose certificates ended because a device may have one at a time (single).
func (a *Authorities) storeIssued(tx *database.Tx, au *authority, r *certificateRow, der []byte, single bool) (stored certificateRow, ended []string, err error) {
	issuedAt := a.clock.Now()
	if single {
		if err := lockCertificates(tx, r); err != nil {
			return stored, nil, err
		}
	}
	var suspended int64 // is the device since the certificate was intended
	err = tx.Get(&suspended, "UPDATE certificates SET state = 'issued', der = ?, tbs = NULL, issued_at = ? WHERE serial = ? AND issuer = ? AND state = 'intended' "+
		"RETURNING (SELECT COUNT(*) FROM suspended_certificates s WHERE s.serial = certificates.serial AND s.issuer = certificates.issuer)", der, issuedAt.UnixMilli(), r.Serial, r.Issuer)
	if isNoRows(err) { // somebody else completed, revoked or abandoned it: what is stored counts
		err = tx.Get(&stored, "SELECT "+certificateColumns+" FROM certificates WHERE serial = ? AND issuer = ?", r.Serial, r.Issuer)
		return stored, nil, err
	}
	held := suspended > 0
	if err == nil && tx.Dialect() == database.Postgres { // having waited for a suspension, the statement still counted what was there before
		held, err = heldBySuspension(tx, r.Serial, r.Issuer)
	}
	if err != nil {
		return stored, nil, err
	}
	stored = *r
	stored.State, stored.DER, stored.TBS, stored.IssuedAt = Issued, der, nil, issuedAt.UnixMilli()
	if r.Renews != "" {
		if _, err := tx.Exec("UPDATE certificates SET renewed_at = ? WHERE serial = ? AND renewed_at = 0", stored.IssuedAt, r.Renews); err != nil {
			return stored, nil, err
		}
	}
	if r.RequesterKind == requesterAuthority {
		if err := a.activate(tx, r.Requester, der, au); err != nil {
			return stored, nil, err
		}
	}
	if held {
		if err := a.holdSuspended(tx, issuedAt, &stored); err != nil {
			return stored, nil, err
		}
	}
	sum := sha256.Sum256(der)
	err = a.append(tx, audit.Entry{Actor: "server", Action: "certificate_issued", Object: r.Serial, Detail: map[string]string{
		"issuer": r.Issuer, "device": r.Device, "sha256": hex.EncodeToString(sum[:]),
	}})
	if err == nil && single {
		ended, err = a.endOthers(tx, issuedAt, &stored)
	}
	return stored, ended, err
}

// Sweep finishes what a crash left intended: signed and stored if its CA can still do so, abandoned if it never will. Run it before serving.
func (a *Authorities) Sweep(ctx context.Context) (completed, abandoned int, err error) {
	return a.sweep(ctx, func(*certificateRow) bool { return true })
}

func (a *Authorities) sweep(ctx context.Context, wanted func(*certificateRow) bool) (completed, abandoned int, err error) {
	var rows []certificateRow
	if err := a.db.Select(ctx, &rows, "SELECT "+certificateColumns+" FROM certificates WHERE state = 'intended' ORDER BY created_at"); err != nil {
		return 0, 0, unavailable("list intended certificates", err)
	}
	for i := range rows {
		r := &rows[i]
		if !wanted(r) {
			continue
		}
		err := a.sweepOne(ctx, r)
		switch {
		case err == nil:
			completed++
			continue
		case isKind(err, Unavailable): // the key is away, the database or the clock not right: it may work later
			a.log.Warn("certificate stays intended", "serial", r.Serial, "ca", r.Issuer, "error", err)
			continue
		}
		closed, err := a.abandon(ctx, r)
		if err != nil {
			return completed, abandoned, err
		}
		if closed {
			abandoned++
		}
	}
	return completed, abandoned, nil
}

func (a *Authorities) sweepOne(ctx context.Context, r *certificateRow) error {
	if !moment(r.NotAfter).After(a.clock.Now()) {
		return refuse(Conflict, "certificate_state", "certificate %s has ended", r.Serial)
	}
	au, err := a.authority(ctx, r.Issuer)
	if err != nil {
		return err
	}
	_, err = a.complete(ctx, au, r)
	return err
}

// abandon closes a record that will never be signed; closed is false if somebody else has settled it meanwhile.
func (a *Authorities) abandon(ctx context.Context, r *certificateRow) (closed bool, err error) {
	err = a.db.Write(ctx, "ca.abandon", func(tx *database.Tx) error {
		rows, err := tx.Exec("UPDATE certificates SET state = 'abandoned' WHERE serial = ? AND issuer = ? AND state = 'intended'", r.Serial, r.Issuer)
		if closed = rows > 0; err != nil || !closed {
			return err
		}
		return a.append(tx, audit.Entry{Actor: "server", Action: "certificate_abandoned", Object: r.Serial, Detail: map[string]string{"issuer": r.Issuer, "device": r.Device}})
	})
	return closed, unavailable("abandon certificate", err)
}
