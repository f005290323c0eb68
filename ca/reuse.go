// One key, one device: a public key that is somebody else's, or that was revoked, gets no certificate.

package ca

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/database"
)

// keyUser is a certificate that stands against another one with its key.
type keyUser struct {
	Serial string `db:"serial"`
	Device string `db:"device"`
	State  string `db:"state"`
	Reason string `db:"reason"`
}

const compromised = "reason IN ('keyCompromise', 'cACompromise')"

// getter is a database or a transaction of it.
type getter func(dest any, query string, args ...any) error

// keyUser finds what stands against a certificate with the key of r, by what the profile allows; p is nil for the certificate of a CA. A compromised
// key is refused whosever it was. What was superseded was replaced in good order, which says nothing against its key.
func (r *certificateRow) keyUser(get getter, p *profile.Profile) (u keyUser, found bool, err error) {
	against := []string{compromised}
	args := []any{r.SPKISHA256}
	if p == nil || !p.AllowsKeyReuse() {
		against, args = append(against, "device <> ?"), append(args, r.Device)
	}
	if p == nil || !p.AllowsRevokedKeys() {
		against, args = append(against, "(device = ? AND (state = 'held' OR state = 'revoked' AND reason <> 'superseded'))"), append(args, r.Device)
	}
	err = get(&u, "SELECT serial, device, state, reason FROM certificates WHERE spki_sha256 = ? AND state <> 'abandoned' AND ("+strings.Join(against, " OR ")+
		") ORDER BY CASE WHEN "+compromised+" THEN 0 ELSE 1 END, created_at LIMIT 1", args...)
	if isNoRows(err) {
		return u, false, nil
	}
	return u, err == nil, err
}

// refusal is what u means for a certificate of device.
func (u keyUser) refusal(device string) *Error {
	e := &Error{Kind: ProfileViolation, Rule: "key_revoked", Err: fmt.Errorf("certificate %s of %q is %s (%s)", u.Serial, u.Device, u.State, u.Reason)}
	switch {
	case u.Reason == "keyCompromise" || u.Reason == "cACompromise":
		e.Detail = "a certificate with this key was revoked because the key was compromised: make a new key"
	case u.Device != device:
		e.Rule, e.Detail = "key_reused", "this key is that of another end entity: make a new key"
	default:
		e.Detail = "a certificate with this key was revoked: make a new key"
	}
	return e
}

// checkKey refuses a key, in the transaction that records the certificate: of two requests with one key at the same time, one waits for the other.
func checkKey(tx *database.Tx, r *certificateRow, p *profile.Profile) error {
	if tx.Dialect() == database.Postgres {
		if _, err := tx.Exec("SELECT pg_advisory_xact_lock(?)", lockOf(r.SPKISHA256)); err != nil {
			return err
		}
	}
	u, found, err := r.keyUser(tx.Get, p)
	if err != nil || !found {
		return err
	}
	return u.refusal(r.Device)
}

// lockOf makes a number of a hash.
func lockOf(hash string) int64 {
	raw, err := hex.DecodeString(hash)
	if err != nil || len(raw) < 8 {
		return 0
	}
	return int64(new(big.Int).SetBytes(raw[:8]).Uint64())
}

// explainKey is checkKey for those who only want to know.
func (a *Authorities) explainKey(ctx context.Context, r *certificateRow, p *profile.Profile) ([]profile.Finding, error) {
	get := func(dest any, query string, args ...any) error { return a.db.Get(ctx, dest, query, args...) }
	findings := []profile.Finding{
		{Rule: "key_reused", OK: true, Detail: "no other end entity has this key, or the profile allows it"},
		{Rule: "key_revoked", OK: true, Detail: "no certificate with this key was revoked, or the profile allows it"},
	}
	u, found, err := r.keyUser(get, p)
	if err != nil {
		return nil, unavailable("read certificates", err)
	}
	if !found {
		return findings, nil
	}
	refusal := u.refusal(r.Device)
	for i := range findings {
		if findings[i].Rule == refusal.Rule {
			findings[i].OK, findings[i].Detail = false, refusal.Detail
		}
	}
	return findings, nil
}
