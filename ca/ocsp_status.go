// The states of certificates for whoever answers OCSP requests elsewhere: all of them once, then what changes. The audit log says what changes: its
// numbers follow the order of the commits.

package ca

import (
	"context"
	"errors"
	"fmt"

	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/internal/audit"
)

// RecordedStatus is how a certificate stands in the records. An unknown one is not signed (yet).
type RecordedStatus struct {
	Issuer   string
	Serial   string // lower-case hex
	Status   ocsp.Status
	NotAfter int64 // Unix seconds
}

type statusRow struct {
	Issuer string `db:"issuer"`
	Serial string `db:"serial"`
	certificateStatus
}

// recorded leaves it to the reader whether the certificate has ended.
func (r *statusRow) recorded() RecordedStatus {
	return RecordedStatus{Issuer: r.Issuer, Serial: r.Serial, Status: r.at(moment(r.NotAfter)), NotAfter: r.NotAfter / 1000}
}

const statusPage = 5000

// Statuses calls each with every certificate of a CA that is issued, held or revoked and ends after a time (Unix seconds), in the order of serial numbers.
func (a *Authorities) Statuses(ctx context.Context, issuer string, endsAfter int64, each func(RecordedStatus) error) error {
	for after := ""; ; {
		var rows []statusRow
		err := a.db.Select(ctx, &rows, "SELECT issuer, serial, "+statusColumns+" FROM certificates WHERE serial > ? AND issuer = ? AND state IN ('issued', 'held', 'revoked') AND not_after > ? "+
			"ORDER BY serial LIMIT ?", after, issuer, endsAfter*1000, statusPage)
		if err != nil {
			return unavailable("read certificate status", err)
		}
		for i := range rows {
			if err := each(rows[i].recorded()); err != nil {
				return err
			}
			after = rows[i].Serial
		}
		if len(rows) < statusPage {
			return nil
		}
	}
}

// StatusCursor is a place in the order of changes.
type StatusCursor struct {
	Epoch int64 `json:"epoch"` // of the installation: another one means that everything may be different
	Seq   int64 `json:"seq"`   // of the audit log
}

// StatusNow is the place after all changes so far.
func (a *Authorities) StatusNow(ctx context.Context) (StatusCursor, error) {
	head, err := audit.Current(ctx, a.db)
	if err != nil {
		return StatusCursor{}, unavailable("read audit head", err)
	}
	return StatusCursor{head.Epoch, head.Seq}, nil
}

// StatusChanges returns how the certificates stand now that changed after a place, and the place up to which that holds; more says that there is more.
func (a *Authorities) StatusChanges(ctx context.Context, after StatusCursor) (changed []RecordedStatus, upTo StatusCursor, more bool, err error) {
	var entries []struct {
		Seq    int64  `db:"seq"`
		Action string `db:"action"`
		Object string `db:"object"`
	}
	err = a.db.Select(ctx, &entries, "SELECT seq, action, object FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", after.Seq, statusPage)
	if err != nil {
		return nil, after, false, unavailable("read audit log", err)
	}
	upTo = after
	seen := map[string]bool{}
	for _, e := range entries {
		upTo.Seq = e.Seq
		if len(e.Object) != serialDigits || e.Action == "certificate_intended" || seen[e.Object] {
			continue
		}
		seen[e.Object] = true
		var rows []statusRow
		if err := a.db.Select(ctx, &rows, "SELECT issuer, serial, "+statusColumns+" FROM certificates WHERE serial = ?", e.Object); err != nil {
			return nil, after, false, unavailable("read certificate status", err)
		}
		for i := range rows {
			changed = append(changed, rows[i].recorded())
		}
	}
	return changed, upTo, len(entries) == statusPage, nil
}

const serialDigits = 34

// SignStatus signs a message with the key of the CA's OCSP signer and returns the signer's certificate (DER) too: whoever may say how a certificate stands may
// say it in a file. The message begins with something that no OCSP response begins with.
func (a *Authorities) SignStatus(ctx context.Context, name, message string) (signature, certificate []byte, err error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	if !au.answersOCSP() {
		return nil, nil, refuse(Unavailable, "ca_not_active", "CA %q is %s", name, au.row.State)
	}
	if err := a.checkClock(ctx); err != nil {
		return nil, nil, err
	}
	desk, err := a.ocsp.desk(au)
	if err != nil {
		return nil, nil, err
	}
	signer := desk.current()
	if signer == nil || a.clock.Now().After(signer.Certificate.NotAfter) {
		return nil, nil, &Error{Kind: Unavailable, Rule: "no_signer", Detail: fmt.Sprintf("CA %q has no OCSP signer now", name)}
	}
	signature, err = signer.Sign([]byte(message))
	if errors.Is(err, ocsp.ErrKey) {
		desk.forget(signer)
	}
	return signature, signer.Certificate.Raw, err
}
