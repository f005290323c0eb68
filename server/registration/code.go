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

// NewCode says what a code is to be like.
type NewCode struct {
	Secret string        // chosen elsewhere (CheckCodeStrength judges it); "": one is made here
	Life   time.Duration // 0: Config.CodeLife
}

// CreateCode makes a code for a device, which is added if it does not exist. An earlier code that is still unused is revoked. A device that has
// enrolled needs Reissue instead. expires 0 means Config.CodeLife.
func (b *Book) CreateCode(ctx context.Context, actor, id, label string, expires time.Duration, sans []string) (Code, error) {
	return b.CreateCodeAs(ctx, actor, id, label, NewCode{Life: expires}, sans)
}

// CreateCodeAs is CreateCode for a code that may have been chosen elsewhere.
func (b *Book) CreateCodeAs(ctx context.Context, actor, id, label string, n NewCode, sans []string) (Code, error) {
	l, err := b.Label(ctx, label)
	if err != nil {
		return Code{}, err
	}
	if n, err = b.checkCode(l, id, n); err != nil {
		return Code{}, err
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
		code, err = b.addCode(tx, b.clock.Now(), actor, id, l, n)
		return err
	})
	if err != nil {
		return Code{}, storage("create code", err)
	}
	b.changes.Announce()
	return code, nil
}

// AddDeviceWithCode is AddDevice with a code in the same transaction.
func (b *Book) AddDeviceWithCode(ctx context.Context, actor string, d NewDevice, n NewCode) (EndEntity, Code, error) {
	l, err := b.Label(ctx, d.Label)
	if err != nil {
		return EndEntity{}, Code{}, err
	}
	if n, err = b.checkCode(l, d.ID, n); err != nil {
		return EndEntity{}, Code{}, err
	}
	var code Code
	err = b.db.Write(ctx, "registration.device_add_with_code", func(tx *database.Tx) (err error) {
		if err := b.addEntity(tx, actor, l, d); err != nil {
			return err
		}
		code, err = b.addCode(tx, b.clock.Now(), actor, d.ID, l, n)
		return err
	})
	if err != nil {
		return EndEntity{}, Code{}, storage("add device", err)
	}
	b.changes.Announce()
	e, err := b.Device(ctx, d.ID)
	return e, code, err
}

// checkCode refuses a code that label l does not take or that is not good enough, and fills in the life.
func (b *Book) checkCode(l Label, device string, n NewCode) (NewCode, error) {
	if n.Life == 0 {
		n.Life = b.codeLife
	}
	if n.Life < time.Second || n.Life > maxCodeLife {
		return n, refuse(Invalid, "code_life", "a code lives between 1s and %dd", maxCodeLife/(24*time.Hour))
	}
	if !slices.Contains(l.Auth, AuthCode) {
		return n, refuse(Conflict, "label_auth", "label %q takes no codes", l.Name)
	}
	if n.Secret == "" {
		return n, nil
	}
	return n, CheckCodeStrength(device, n.Secret)
}

// MakeCode makes a code: 26 characters of 5 bits, 130 bits.
func MakeCode() (string, error) {
	random := make([]byte, 17)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random))[:26], nil
}

// newCodeRow is the record of a code, and the code.
func (b *Book) newCodeRow(now time.Time, device, label string, n NewCode) (r codeRow, secret string, err error) {
	if secret = n.Secret; secret == "" {
		if secret, err = MakeCode(); err != nil {
			return r, "", err
		}
	}
	id := make([]byte, 7)
	if _, err := rand.Read(id); err != nil {
		return r, "", err
	}
	return codeRow{
		ID: hex.EncodeToString(id), Device: device, Label: label, Hash: b.hashCode(device, secret), State: CodeActive,
		ExpiresAt: now.Add(n.Life).UnixMilli(), CreatedAt: now.UnixMilli(),
	}, secret, nil
}

func (b *Book) addCode(tx *database.Tx, now time.Time, actor, id string, l Label, n NewCode) (Code, error) {
	r, secret, err := b.newCodeRow(now, id, l.Name, n)
	if err != nil {
		return Code{}, err
	}
	if n.Secret != "" {
		var before int64
		if err := tx.Get(&before, "SELECT COUNT(*) FROM enrollment_codes WHERE device = ? AND hash = ?", id, r.Hash); err != nil {
			return Code{}, err
		}
		if before > 0 {
			return Code{}, refuse(Conflict, "code_reused", "device %q had this code before", id)
		}
	}
	if err := insertCodes(tx, []codeRow{r}); err != nil {
		return Code{}, err
	}
	c := r.code(now)
	c.Code = secret
	return c, b.append(tx, audit.Entry{Actor: actor, Action: "code_created", Object: id, Detail: map[string]string{"code_id": r.ID, "label": l.Name, "expires": c.Expires.Format(time.RFC3339)}})
}

// insertCodes stores the records of codes in one statement; the caller bounds their number.
func insertCodes(tx *database.Tx, rows []codeRow) error {
	args := make([]any, 0, 10*len(rows))
	for _, r := range rows {
		args = append(args, r.ID, r.Device, r.Label, r.Hash, r.State, r.ExpiresAt, r.CreatedAt, 0, "", "")
	}
	_, err := tx.Exec("INSERT INTO enrollment_codes ("+codeColumns+") VALUES "+tuples(10, len(rows)), args...)
	return err
}

// tuples is the text of so many rows of so many placeholders each.
func tuples(columns, rows int) string {
	one := "(" + strings.TrimSuffix(strings.Repeat("?, ", columns), ", ") + ")"
	return strings.TrimSuffix(strings.Repeat(one+", ", rows), ", ")
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
