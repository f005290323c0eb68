// Revocation: final, except certificateHold, and effective for whoever asks the database at once.

package ca

import (
	"context"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// reasons are the RFC 5280 section 5.3.1 names that an operator may give, and their codes.
var reasons = map[string]int{
	"unspecified": 0, "keyCompromise": 1, "cACompromise": 2, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5,
	"certificateHold": 6, "privilegeWithdrawn": 9,
}

const hold = "certificateHold"

// CheckReason refuses what is not a revocation reason.
func CheckReason(reason string) error {
	if _, known := reasons[reason]; !known {
		return refuse(Invalid, "reason", "%q is not one of unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation, certificateHold, privilegeWithdrawn", reason)
	}
	return nil
}

// Revoke revokes a certificate and publishes its issuer's CRL. When it returns without an error, no request is authorised by the certificate any more.
// A certificate that is revoked already stays as it is (its first reason counts), except that a held one may be revoked for good.
func (a *Authorities) Revoke(ctx context.Context, actor, serial, reason string) (Certificate, error) {
	if err := CheckReason(reason); err != nil {
		return Certificate{}, err
	}
	found, err := a.Certificate(ctx, serial)
	if err != nil {
		return Certificate{}, err
	}
	if reason == hold && (found.State == Intended || found.State == Abandoned) { // it is not signed: there is nothing to come back to
		return Certificate{}, refuse(Conflict, "certificate_state", "certificate %s is %s: it can be revoked for good, not held", found.Serial, found.State)
	}
	if err := mayRevokeCA(found, reason); err != nil {
		return Certificate{}, err
	}
	ctx = context.WithoutCancel(ctx)
	now := a.clock.Now()
	err = a.db.Write(ctx, "ca.revoke", func(tx *database.Tx) error {
		changed, err := a.RevokeInTx(tx, now, actor, found, reason)
		if err != nil || !changed {
			return err
		}
		return a.endCA(tx, now, actor, found, reason)
	})
	if err != nil {
		return Certificate{}, passThrough("record revocation", err)
	}
	a.changes.Announce()
	a.PublishAfterRevocation(ctx, found.Issuer)
	return a.Certificate(ctx, found.Serial)
}

// RevokeInTx revokes one certificate as part of a larger change; the caller announces the change log and calls PublishAfterRevocation
// after the commit. It reports whether anything changed.
func (a *Authorities) RevokeInTx(tx *database.Tx, now time.Time, actor string, c Certificate, reason string) (changed bool, err error) {
	state, from := Revoked, "('issued', 'intended', 'held', 'abandoned')"
	if reason == hold {
		state, from = Held, "('issued')"
	}
	var notAfter int64
	err = tx.Get(&notAfter, "UPDATE certificates SET state = ?, reason = ?, revoked_at = ? WHERE serial = ? AND issuer = ? AND state IN "+from+" RETURNING not_after",
		state, reason, now.UnixMilli(), c.Serial, c.Issuer)
	if isNoRows(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	logRevocation(tx, revocation{Issuer: c.Issuer, Serial: c.Serial, Reason: reason, RevokedAt: now.UnixMilli(), NotAfter: notAfter})
	if err := a.tellBridges(tx, now, c, reason); err != nil {
		return false, err
	}
	return true, a.append(tx, audit.Entry{Actor: actor, Action: "certificate_revoked", Object: c.Serial, Detail: map[string]string{"issuer": c.Issuer, "device": c.Device, "reason": reason}})
}

// mayRevokeCA refuses what makes no sense for the certificate of a CA; any other certificate passes.
func mayRevokeCA(c Certificate, reason string) error {
	switch {
	case c.RequesterKind != requesterAuthority:
	case reason == hold:
		return refuse(Conflict, "ca_hold", "a CA cannot be held: revoke it, or leave it")
	case c.Requester == c.Issuer:
		return refuse(Conflict, "ca_root", "a root cannot revoke itself: take it out of the trust stores")
	}
	return nil
}

// endCA ends the CA whose certificate was revoked, if it is one of this installation: it issues nothing more, what it issued authenticates
// nobody, and it leaves the brokers' trust set.
func (a *Authorities) endCA(tx *database.Tx, now time.Time, actor string, c Certificate, reason string) error {
	if c.RequesterKind != requesterAuthority {
		return nil
	}
	rows, err := tx.Exec("UPDATE authorities SET state = 'revoked' WHERE name = ?", c.Requester)
	if err != nil || rows == 0 {
		return err
	}
	if err := tx.TouchConfiguration(); err != nil {
		return err
	}
	a.changes.Append(tx, feedapi.Change{At: now, Kind: feedapi.TrustSetChanged})
	return a.append(tx, audit.Entry{Actor: actor, Action: "ca_revoked", Object: c.Requester, Detail: map[string]string{"serial": c.Serial, "reason": reason}})
}

// Ended tells whether a CA of this installation was revoked.
func (a *Authorities) Ended(name string) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	au := a.live[name]
	return au != nil && au.row.State == Revoked
}

func (a *Authorities) tellBridges(tx *database.Tx, now time.Time, c Certificate, reason string) error {
	if a.use(c.Issuer) != profile.UseBroker {
		return nil
	}
	// Only what replaces a certificate in good order lets its session go on: a key that was compromised may be in a session of its own.
	orderly := reason == "superseded" || reason == "affiliationChanged"
	var newer int64
	err := tx.Get(&newer, "SELECT COUNT(*) FROM certificates WHERE device = ? AND state = 'issued' AND issued_at > ? AND not_after > ? AND serial <> ?",
		c.Device, c.IssuedAt.UnixMilli(), now.UnixMilli(), c.Serial)
	if err != nil {
		return err
	}
	a.changes.Append(tx, feedapi.Change{At: now, Kind: feedapi.CertificateRevoked, Revoked: &feedapi.Revoked{
		Serial: c.Serial, Issuer: c.Issuer, Device: c.Device, Reason: reason, Superseded: orderly && newer > 0,
	}})
	return nil
}

func (a *Authorities) use(name string) string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if au := a.live[name]; au != nil {
		return au.row.Use
	}
	return ""
}

// Unhold makes a held certificate valid again; nothing else about revocation can be undone.
func (a *Authorities) Unhold(ctx context.Context, actor, serial string) (Certificate, error) {
	found, err := a.Certificate(ctx, serial)
	if err != nil {
		return Certificate{}, err
	}
	ctx = context.WithoutCancel(ctx)
	err = a.db.Write(ctx, "ca.unhold", func(tx *database.Tx) error {
		is, err := ofSuspended(tx, found)
		if err != nil {
			return err
		}
		if is {
			return refuse(Conflict, "device_suspended", "certificate %s is held because %q is suspended: device resume", found.Serial, found.Device)
		}
		changed, err := a.unholdInTx(tx, actor, found)
		if err == nil && !changed {
			return refuse(Conflict, "certificate_state", "certificate %s is %s, not held: revocation is final", found.Serial, found.State)
		}
		return err
	})
	if err != nil {
		return Certificate{}, passThrough("record resumption", err)
	}
	a.PublishAfterRevocation(ctx, found.Issuer)
	return a.Certificate(ctx, found.Serial)
}

// Supersede ends the right to re-enroll of the certificate that successor renews, and of every other successor of it, because this one has
// authenticated. They stay valid for everything else. A second successor is a lost answer or somebody's copy: the audit log shows it.
func (a *Authorities) Supersede(tx *database.Tx, now time.Time, successor Certificate) error {
	var others []string
	err := tx.Select(&others, "SELECT serial FROM certificates WHERE renews = ? AND renews <> '' AND serial <> ? AND superseded_at = 0", successor.Renews, successor.Serial)
	if err != nil {
		return err
	}
	for _, serial := range append(others, successor.Renews) {
		rows, err := tx.Exec("UPDATE certificates SET superseded_at = ? WHERE serial = ? AND superseded_at = 0", now.UnixMilli(), serial)
		if err != nil {
			return err
		}
		if rows == 0 {
			continue
		}
		detail := map[string]string{"by": successor.Serial, "device": successor.Device}
		if serial != successor.Renews {
			detail["signal"] = "one certificate was renewed twice"
		}
		if err := a.append(tx, audit.Entry{Actor: "server", Action: "certificate_superseded", Object: serial, Detail: detail}); err != nil {
			return err
		}
	}
	return nil
}
