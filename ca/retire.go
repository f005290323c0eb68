// The end of a CA: retired in good order once nothing of it is in use any more, or revoked at once.

package ca

import (
	"context"
	"strconv"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// upkeep are the profiles whose certificates live and die with their CA: they are not in use by anybody else.
const upkeep = "('canary', '" + OCSPProfile + "')"

// Remaining tells how many certificates of a CA are in use, and when the last of them ends.
func (a *Authorities) Remaining(ctx context.Context, name string) (count int64, last time.Time, err error) {
	var row struct {
		Count int64 `db:"n"`
		Last  int64 `db:"last"`
	}
	// Of CAs below it, those count that are not at their own end; of cross certificates, none: they say something about the root itself.
	err = a.db.Get(ctx, &row, `SELECT COUNT(*) AS n, COALESCE(MAX(not_after), 0) AS last FROM certificates
		WHERE issuer = ? AND state IN ('issued', 'intended', 'held') AND not_after > ? AND profile NOT IN `+upkeep+`
		AND NOT (requester_kind = ? AND (requester = issuer OR requester LIKE 'cross:%' OR requester IN (SELECT name FROM authorities WHERE state IN ('retired', 'revoked'))))`,
		name, a.clock.Now().UnixMilli(), requesterAuthority)
	if err != nil {
		return 0, time.Time{}, unavailable("count certificates", err)
	}
	return row.Count, moment(row.Last), nil
}

// Retire ends a retiring CA: it leaves every trust set, signs a last CRL that is valid as long as its certificate, and nothing more. It is refused
// while certificates of it are in use, unless override says why they may be given up. To be called again does no harm.
func (a *Authorities) Retire(ctx context.Context, actor, name, override string) (Info, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return Info{}, err
	}
	switch au.row.State {
	case Retired:
		return a.lastCRL(ctx, actor, name)
	case Retiring:
	default:
		return Info{}, refuse(Conflict, "ca_state", "CA %q is %s: only a retiring CA is retired; make its successor with ca rollover and let it take over with ca activate", name, au.row.State)
	}
	// No certificate is added to those of a retiring CA, so the count can only fall from here on.
	remaining, last, err := a.Remaining(ctx, name)
	if err != nil {
		return Info{}, err
	}
	if remaining > 0 && override == "" {
		return Info{}, refuse(Conflict, "ca_in_use", "CA %q has %d certificates in use, the last of them until %s", name, remaining, last.Format(time.RFC3339))
	}
	if _, err := a.signer(au); err != nil && a.clock.Now().Before(au.certificate.NotAfter) {
		return Info{}, err
	}
	ctx = context.WithoutCancel(ctx)
	now := a.clock.Now()
	err = a.db.Write(ctx, "ca.retire", func(tx *database.Tx) error {
		rows, err := tx.Exec("UPDATE authorities SET state = 'retired' WHERE name = ? AND state = 'retiring'", name)
		if err != nil {
			return err
		}
		if rows == 0 {
			return refuse(Conflict, "ca_state", "CA %q is not retiring any more", name)
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		a.changes.Append(tx, feedapi.Change{At: now, Kind: feedapi.TrustSetChanged})
		detail := map[string]string{}
		if override != "" {
			detail["override"], detail["in_use"] = override, strconv.FormatInt(remaining, 10)
		}
		return a.append(tx, audit.Entry{Actor: actor, Action: "ca_retired", Object: name, Detail: detail})
	})
	if err != nil {
		return Info{}, passThrough("retire CA", err)
	}
	a.changes.Announce()
	return a.lastCRL(ctx, actor, name)
}

// lastCRL publishes the last CRL of a retired CA, unless it is there.
func (a *Authorities) lastCRL(ctx context.Context, actor, name string) (Info, error) {
	if _, err := a.IssueCRL(ctx, actor, name); err != nil {
		return Info{}, err
	}
	return a.Get(ctx, name)
}

// signedLastCRL tells whether a retired CA has nothing more to sign: its CRLs are valid as long as its certificate, or that has ended. One from before
// the retirement may be valid beyond that; it is not the last, which holds what was revoked until then.
func (a *Authorities) signedLastCRL(ctx context.Context, au *authority) (bool, error) {
	if au.row.State != Retired {
		return false, nil
	}
	if a.clock.Now().After(au.certificate.NotAfter) {
		return true, nil
	}
	var done int
	err := a.db.Get(ctx, &done, "SELECT COUNT(*) FROM crls c WHERE authority = ? AND next_update = ? AND number = (SELECT MAX(number) FROM crls n WHERE n.authority = c.authority AND n.shard = c.shard)", au.row.Name, au.certificate.NotAfter.UnixMilli())
	return done >= au.shards(), unavailable("read CRLs", err)
}

// crlEnds is the nextUpdate of a CRL of au that is made now.
func (au *authority) crlEnds(now time.Time) time.Time {
	if au.row.State == Retired {
		return au.certificate.NotAfter
	}
	return now.Add(time.Duration(au.row.CRLValidity) * time.Millisecond).Truncate(time.Second)
}

// RevokeCA revokes the certificate of a CA that was signed here: it issues nothing more, what it issued authenticates nobody, and it leaves the
// trust sets.
func (a *Authorities) RevokeCA(ctx context.Context, actor, name, reason string) (Info, error) {
	if err := CheckReason(reason); err != nil {
		return Info{}, err
	}
	au, err := a.authority(ctx, name)
	switch {
	case err != nil:
		return Info{}, err
	case au.certificate == nil:
		return Info{}, refuse(Conflict, "ca_waiting", "CA %q has no certificate to revoke", name)
	case au.row.Use == UseRoot:
		return Info{}, refuse(Conflict, "ca_root", "CA %q is a root and cannot revoke itself: roll it over, and take it out of the trust stores with ca retire", name)
	case au.row.Parent == "":
		return Info{}, refuse(Conflict, "ca_external", "CA %q was signed elsewhere: its issuer revokes it; here roll it over, and take it out of the trust sets with ca retire %s --override", name, name)
	}
	if _, err := a.Revoke(ctx, actor, SerialHex(au.certificate.SerialNumber), reason); err != nil {
		return Info{}, err
	}
	return a.Get(ctx, name)
}
