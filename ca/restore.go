// After a restore: numbers go on where none can have been used, and what a newer published CRL says is taken back into the book.

package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// requesterRestore marks the record of a certificate that is known by a published CRL only.
const requesterRestore = "restore"

// restoredProfile is what such a certificate is recorded under.
const restoredProfile = "unknown"

// Published is a CRL of one of our CAs that was published after a backup was made.
type Published struct {
	Authority string
	Number    string
	list      *x509.RevocationList
}

// ReadPublished reads a CRL, DER or PEM, and checks that one of our CAs signed it.
func (a *Authorities) ReadPublished(ctx context.Context, content []byte) (Published, error) {
	if block, _ := pem.Decode(content); block != nil {
		content = block.Bytes
	}
	list, err := x509.ParseRevocationList(content)
	if err != nil {
		return Published{}, refuse(Invalid, "crl", "it cannot be read as a CRL, DER or PEM")
	}
	infos, err := a.List(ctx)
	if err != nil {
		return Published{}, err
	}
	for _, info := range infos {
		c := info.Certificate
		if c != nil && bytes.Equal(c.RawSubject, list.RawIssuer) && list.CheckSignatureFrom(c) == nil {
			return Published{Authority: info.Name, Number: fmt.Sprint(list.Number), list: list}, nil
		}
	}
	return Published{}, refuse(Invalid, "crl", "none of the CAs here signed this CRL (its issuer is %s)", list.Issuer)
}

// Reapplied is what published CRLs brought back.
type Reapplied struct {
	Known   int               // revocations of certificates on record
	Unknown int               // serial numbers of certificates that were issued after the backup
	Devices map[string]string // whose certificate was revoked for another reason than being replaced or held, and that reason
}

// RestateInTx is the part of a stated restore that is about certificates: every CRL number jumps to base, and what the published CRLs
// list is revoked. A serial number without a record gets one, so that CRLs go on listing it (INV-7).
func (a *Authorities) RestateInTx(tx *database.Tx, now time.Time, actor string, base int64, published []Published) (Reapplied, error) {
	out := Reapplied{Devices: map[string]string{}}
	if _, err := tx.Exec("UPDATE authorities SET crl_number = ? WHERE crl_number < ?", base, base); err != nil {
		return out, err
	}
	for _, p := range published {
		for _, e := range p.list.RevokedCertificateEntries {
			if err := a.reapply(tx, actor, p, e, &out); err != nil {
				return out, err
			}
		}
	}
	a.changes.Append(tx, feedapi.Change{At: now, Kind: feedapi.TrustSetChanged})
	return out, nil
}

func (a *Authorities) reapply(tx *database.Tx, actor string, p Published, e x509.RevocationListEntry, out *Reapplied) error {
	serial, reason := SerialHex(e.SerialNumber), reasonName(e.ReasonCode)
	found, known, err := FindInTx(tx, "issuer = ? AND serial = ?", p.Authority, serial)
	if err != nil {
		return err
	}
	held := reason == hold
	if held && (!known || found.State == Intended || found.State == Abandoned) {
		reason = "unspecified" // there is no certificate to come back to: it was signed after the backup
	}
	if !known {
		if found, err = a.recordUnknown(tx, p, serial, e.RevocationTime); err != nil {
			return err
		}
	}
	changed, err := a.RevokeInTx(tx, e.RevocationTime, actor, found, reason)
	if err != nil || !changed {
		return err
	}
	if !known {
		out.Unknown++
		return nil
	}
	out.Known++
	if err := a.endCA(tx, e.RevocationTime, actor, found, reason); err != nil {
		return err
	}
	replaced := held || slices.Contains([]string{"superseded", "affiliationChanged"}, reason)
	if found.Device != "" && found.RequesterKind != requesterAuthority && !replaced {
		out.Devices[found.Device] = reason
	}
	return nil
}

// recordUnknown makes a record of which nothing is known but the number. It ends with its issuer: until then CRLs list it.
func (a *Authorities) recordUnknown(tx *database.Tx, p Published, serial string, at time.Time) (Certificate, error) {
	a.mu.RLock()
	issuer := a.live[p.Authority]
	a.mu.RUnlock()
	row := certificateRow{
		Serial: serial, Issuer: p.Authority, State: Abandoned, Profile: restoredProfile, RequesterKind: requesterRestore, Requester: "crl " + p.Number,
		Claim: "serial/" + serial, NotBefore: issuer.certificate.NotBefore.UnixMilli(), NotAfter: issuer.certificate.NotAfter.UnixMilli(), CreatedAt: at.UnixMilli(),
	}
	_, err := tx.Exec("INSERT INTO certificates (serial, issuer, state, device, label, profile, profile_hash, spki_sha256, requester_kind, requester, claim, generation, renews, tbs_sha256, "+
		"not_before, not_after, created_at, issued_at, renewed_at, first_used_at, superseded_at, revoked_at, reason) VALUES (?, ?, ?, '', '', ?, '', '', ?, ?, ?, 0, '', '', ?, ?, ?, 0, 0, 0, 0, 0, '')",
		row.Serial, row.Issuer, row.State, row.Profile, row.RequesterKind, row.Requester, row.Claim, row.NotBefore, row.NotAfter, row.CreatedAt)
	return row.certificate(), err
}

func reasonName(code int) string {
	for name, c := range reasons {
		if c == code {
			return name
		}
	}
	return "unspecified"
}

// restoreJump is less than any jump of the numbers at a restore and more than are ever reserved without being published.
const restoreJump = 1 << 39

// RenewRestoredCRLs issues the CRLs of every CA whose newest one is from before a restore: its number is lower than those that are in the world.
func (a *Authorities) RenewRestoredCRLs(ctx context.Context, actor string) error {
	infos, err := a.List(ctx)
	if err != nil {
		return err
	}
	for _, info := range infos {
		if info.Certificate == nil || !info.KeyOnline || info.State == Retired {
			continue
		}
		var behind int64
		err := a.db.Get(ctx, &behind, `SELECT COUNT(*) FROM (SELECT MAX(c.number) AS newest FROM crls c WHERE c.authority = ? GROUP BY c.shard) AS s
			JOIN authorities a ON a.name = ? WHERE a.crl_number - s.newest > ?`, info.Name, info.Name, int64(restoreJump))
		if err != nil {
			return unavailable("look for CRLs from before a restore", err)
		}
		if behind == 0 {
			continue
		}
		if _, err := a.IssueCRL(ctx, actor, info.Name); err != nil {
			return fmt.Errorf("crl of %s after the restore: %w", info.Name, err)
		}
	}
	return nil
}
