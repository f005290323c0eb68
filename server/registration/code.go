// Enrollment codes: one device, one certificate, once. A code is stored as an HMAC and shown once.

package registration

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// DefaultCodeLife is how long a code may wait for its device.
const DefaultCodeLife = 30 * 24 * time.Hour

const maxCodeLife = 5 * 366 * 24 * time.Hour

// States of a code.
const (
	CodeActive  = "active"
	CodeUsed    = "used"
	CodeRevoked = "revoked"
	CodeExpired = "expired" // an active one past its time; not stored
)

// Code is an enrollment code. The secret is known only in the moment of its making.
type Code struct {
	ID        string
	Device    string
	Label     string
	State     string
	Code      string // the secret; only from CreateCode and Reissue
	Expires   time.Time
	CreatedAt time.Time
	UsedAt    time.Time // zero if unused
	Serial    string    // of the certificate made with it, or ""
}

type codeRow struct {
	ID        string `db:"id"`
	Device    string `db:"device"`
	Label     string `db:"label"`
	Hash      string `db:"hash"`
	State     string `db:"state"`
	ExpiresAt int64  `db:"expires_at"`
	CreatedAt int64  `db:"created_at"`
	UsedAt    int64  `db:"used_at"`
	Issuer    string `db:"issuer"`
	Serial    string `db:"serial"`
}

const codeColumns = "id, device, label, hash, state, expires_at, created_at, used_at, issuer, serial"

func (r *codeRow) code(now time.Time) Code {
	c := Code{ID: r.ID, Device: r.Device, Label: r.Label, State: r.State, Expires: moment(r.ExpiresAt), CreatedAt: moment(r.CreatedAt), UsedAt: moment(r.UsedAt), Serial: r.Serial}
	if c.State == CodeActive && !now.Before(c.Expires) {
		c.State = CodeExpired
	}
	return c
}

// CreateCode makes a code for a device, which is added if it does not exist. An earlier code that is still unused is revoked. A device that has
// enrolled needs Reissue instead. expires 0 means Config.CodeLife.
func (b *Book) CreateCode(ctx context.Context, actor, id, label string, expires time.Duration, sans []string) (Code, error) {
	if expires == 0 {
		expires = b.codeLife
	}
	if expires < time.Second || expires > maxCodeLife {
		return Code{}, refuse(Invalid, "code_life", "a code lives between 1s and %dd", maxCodeLife/(24*time.Hour))
	}
	l, err := b.Label(ctx, label)
	if err != nil {
		return Code{}, err
	}
	if !slices.Contains(l.Auth, AuthCode) {
		return Code{}, refuse(Conflict, "label_auth", "label %q takes no codes", label)
	}
	var code Code
	err = b.db.Write(ctx, "registration.code_create", func(tx *database.Tx) error {
		e, err := b.lock(tx, id)
		switch {
		case err != nil && !isKind(err, NotFound):
			return err
		case err != nil || e.State == StateHistorical:
			if err := b.addEntity(tx, actor, l, NewDevice{ID: id, SANs: sans}); err != nil {
				return err
			}
		case e.Label != l.Name:
			return refuse(Conflict, "device_label", "device %q belongs to label %q", id, e.Label)
		case e.standing() != standing{state: StateNew}:
			return refuse(Conflict, "device_state", "device %q is %s: a code would not count", id, e.describe())
		case len(sans) > 0:
			names, err := checkSANs(sans)
			if err != nil {
				return err
			}
			if _, err := tx.Exec("UPDATE end_entities SET sans = ? WHERE id = ?", names, id); err != nil {
				return err
			}
		}
		if _, err := tx.Exec("UPDATE enrollment_codes SET state = 'revoked' WHERE device = ? AND state = 'active'", id); err != nil {
			return err
		}
		code, err = b.addCode(tx, b.clock.Now(), actor, id, l, expires)
		return err
	})
	if err != nil {
		return Code{}, storage("create code", err)
	}
	b.changes.Announce()
	return code, nil
}

func (b *Book) addCode(tx *database.Tx, now time.Time, actor, id string, l Label, life time.Duration) (Code, error) {
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		return Code{}, err
	}
	// 130 bits and more: 26 characters of 5 bits
	secret := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random[:17]))[:26]
	r := codeRow{
		ID: hex.EncodeToString(random[17:]), Device: id, Label: l.Name, State: CodeActive,
		ExpiresAt: now.Add(life).UnixMilli(), CreatedAt: now.UnixMilli(),
	}
	r.Hash = b.hashCode(id, secret)
	if _, err := tx.Exec("INSERT INTO enrollment_codes ("+codeColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", r.ID, r.Device, r.Label, r.Hash, r.State, r.ExpiresAt, r.CreatedAt, 0, "", ""); err != nil {
		return Code{}, err
	}
	c := r.code(now)
	c.Code = secret
	return c, b.append(tx, audit.Entry{Actor: actor, Action: "code_created", Object: id, Detail: map[string]string{"code_id": r.ID, "label": l.Name, "expires": c.Expires.Format(time.RFC3339)}})
}

// hashCode is what is stored of a code. A code has too many bits to be guessed from it, and without the key it cannot even be tested.
func (b *Book) hashCode(device, secret string) string {
	mac := hmac.New(sha256.New, b.codeKey)
	fmt.Fprintf(mac, "enrollment code\x00%s\x00%s", device, secret)
	return hex.EncodeToString(mac.Sum(nil))
}

// Codes lists codes in the order of their ids, without their secrets.
func (b *Book) Codes(ctx context.Context, f Filter) ([]Code, error) {
	where, args := f.where("id")
	var rows []codeRow
	if err := b.db.Select(ctx, &rows, "SELECT "+codeColumns+" FROM enrollment_codes"+where, args...); err != nil {
		return nil, storage("list codes", err)
	}
	list := make([]Code, len(rows))
	for i := range rows {
		list[i] = rows[i].code(b.clock.Now())
	}
	return list, nil
}

// RevokeCode ends the unused code of a device.
func (b *Book) RevokeCode(ctx context.Context, actor, device string) error {
	err := b.db.Write(ctx, "registration.code_revoke", func(tx *database.Tx) error {
		rows, err := tx.Exec("UPDATE enrollment_codes SET state = 'revoked' WHERE device = ? AND state = 'active'", device)
		if err != nil {
			return err
		}
		if rows == 0 {
			return refuse(NotFound, "unknown_code", "device %q has no unused code", device)
		}
		return b.append(tx, audit.Entry{Actor: actor, Action: "code_revoked", Object: device})
	})
	return storage("revoke code", err)
}
