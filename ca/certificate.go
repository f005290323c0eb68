// The records of certificates. They are kept whole, for ever.

package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/database"
)

// States of a certificate.
const (
	Intended  = "intended"  // recorded, about to be signed
	Issued    = "issued"    // signed and stored
	Held      = "held"      // revoked with certificateHold; may be undone
	Revoked   = "revoked"   // for ever
	Abandoned = "abandoned" // was intended and will never be signed
)

// ID names a certificate.
type ID struct {
	Issuer string // name of the CA
	Serial string // lower-case hex
}

// Certificate is the record of a certificate.
type Certificate struct {
	Issuer        string // name of the CA
	Serial        string // lower-case hex, 34 digits
	State         string
	Device        string // end entity id = CN
	Label         string
	Profile       string
	ProfileHash   string // SHA-256 of the profile file it was made by, hex
	SPKISHA256    string // of the public key, hex
	RequesterKind string
	Requester     string
	Generation    int64  // of the end entity when it was issued
	Renews        string // serial of the certificate that asked for it, or ""
	Reason        string // of revocation, RFC 5280 name
	NotBefore     time.Time
	NotAfter      time.Time
	CreatedAt     time.Time
	IssuedAt      time.Time // zero while intended
	RenewedAt     time.Time // when a successor was issued; zero if none
	FirstUsedAt   time.Time // first authentication with it; zero if none
	SupersededAt  time.Time // since when it may not re-enroll; zero if it may
	RevokedAt     time.Time // zero if not revoked
	DER           []byte    // nil while intended
}

// IsCA tells whether it is the certificate of a CA.
func (c Certificate) IsCA() bool { return c.RequesterKind == requesterAuthority }

type certificateRow struct {
	Serial        string `db:"serial"`
	Issuer        string `db:"issuer"`
	State         string `db:"state"`
	Device        string `db:"device"`
	Label         string `db:"label"`
	Profile       string `db:"profile"`
	ProfileHash   string `db:"profile_hash"`
	SPKISHA256    string `db:"spki_sha256"`
	RequesterKind string `db:"requester_kind"`
	Requester     string `db:"requester"`
	Claim         string `db:"claim"`
	Generation    int64  `db:"generation"`
	Renews        string `db:"renews"`
	TBSSHA256     string `db:"tbs_sha256"`
	TBS           []byte `db:"tbs"`
	DER           []byte `db:"der"`
	NotBefore     int64  `db:"not_before"`
	NotAfter      int64  `db:"not_after"`
	CreatedAt     int64  `db:"created_at"`
	IssuedAt      int64  `db:"issued_at"`
	RenewedAt     int64  `db:"renewed_at"`
	FirstUsedAt   int64  `db:"first_used_at"`
	SupersededAt  int64  `db:"superseded_at"`
	RevokedAt     int64  `db:"revoked_at"`
	Reason        string `db:"reason"`

	fresh bool // made for the request that is being answered, not read back after a crash
}

const certificateColumns = "serial, issuer, state, device, label, profile, profile_hash, spki_sha256, requester_kind, requester, claim, generation, renews, " +
	"tbs_sha256, tbs, der, not_before, not_after, created_at, issued_at, renewed_at, first_used_at, superseded_at, revoked_at, reason"

func (r *certificateRow) certificate() Certificate {
	return Certificate{
		Issuer: r.Issuer, Serial: r.Serial, State: r.State, Device: r.Device, Label: r.Label, Profile: r.Profile, ProfileHash: r.ProfileHash,
		SPKISHA256: r.SPKISHA256, RequesterKind: r.RequesterKind, Requester: r.Requester, Generation: r.Generation, Renews: r.Renews, Reason: r.Reason,
		NotBefore: moment(r.NotBefore), NotAfter: moment(r.NotAfter), CreatedAt: moment(r.CreatedAt), IssuedAt: moment(r.IssuedAt), RenewedAt: moment(r.RenewedAt),
		FirstUsedAt: moment(r.FirstUsedAt), SupersededAt: moment(r.SupersededAt), RevokedAt: moment(r.RevokedAt), DER: r.DER,
	}
}

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// SerialHex writes a serial number as the records do.
func SerialHex(serial *big.Int) string { return fmt.Sprintf("%034x", serial) }

// ParseSerial reads a serial number as people type it: hex, with or without colons, any case.
func ParseSerial(s string) (string, error) {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(s), "0x"), ":", ""), 16)
	if !ok || strings.Contains(s, "+") || n.Sign() <= 0 || n.BitLen() > 159 {
		return "", refuse(Invalid, "serial", "%q is not a serial number in hex", s)
	}
	return SerialHex(n), nil
}

// SPKISHA256 is the SHA-256 of a key's SubjectPublicKeyInfo, hex.
func SPKISHA256(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// keyHash is the SPKISHA256 of a public key.
func keyHash(key crypto.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	return SPKISHA256(spki), err
}

// Certificate returns the record of a serial number in any form that ParseSerial reads.
func (a *Authorities) Certificate(ctx context.Context, serial string) (Certificate, error) {
	serial, err := ParseSerial(serial)
	if err != nil {
		return Certificate{}, err
	}
	var r certificateRow
	err = a.db.Get(ctx, &r, "SELECT "+certificateColumns+" FROM certificates WHERE serial = ?", serial)
	if isNoRows(err) {
		return Certificate{}, refuse(NotFound, "unknown_certificate", "there is no certificate %s", serial)
	}
	if err != nil {
		return Certificate{}, unavailable("read certificate", err)
	}
	return r.certificate(), nil
}

// ByDER returns the record that holds exactly this certificate; a certificate that only claims to be ours is NotFound (INV-10).
func (a *Authorities) ByDER(ctx context.Context, certificate *x509.Certificate) (Certificate, error) {
	if err := a.current(ctx); err != nil {
		return Certificate{}, err
	}
	a.mu.RLock()
	ours := a.issuers[string(certificate.RawIssuer)]
	a.mu.RUnlock()
	if !ours { // a birth certificate, mostly: no need to look for it
		return Certificate{}, refuse(NotFound, "unknown_certificate", "the certificate's issuer is none of our CAs")
	}
	found, err := a.Certificate(ctx, SerialHex(certificate.SerialNumber))
	if err != nil {
		return Certificate{}, err
	}
	if !bytes.Equal(found.DER, certificate.Raw) {
		return Certificate{}, refuse(NotFound, "unknown_certificate", "certificate %s is not the one on record", found.Serial)
	}
	return found, nil
}

// FindInTx reads a record inside a transaction; found is false when there is none.
func FindInTx(tx *database.Tx, condition string, args ...any) (c Certificate, found bool, err error) {
	var r certificateRow
	err = tx.Get(&r, "SELECT "+certificateColumns+" FROM certificates WHERE "+condition, args...)
	if isNoRows(err) {
		return Certificate{}, false, nil
	}
	if err != nil {
		return Certificate{}, false, err
	}
	return r.certificate(), true, nil
}
