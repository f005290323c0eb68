// Administrators: who may use this API from elsewhere. The certificate says who it is, the record which role; both can be
// taken away at once.

package admin

import (
	"bytes"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/feed"
)

const (
	adminIssuer   = "management" // the CA of everything that runs the installation
	adminProfile  = "admin"
	requesterKind = "admin"
)

var adminName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$`)

// identityOf is the name in a certificate. It is reserved, so that an administrator and a device of one name stay two.
func identityOf(row adminRow) string {
	return "natal-" + profileOf(row.Role) + "-" + row.Name
}

type adminRow struct {
	Name      string `db:"name"`
	Role      string `db:"role"`
	CreatedAt int64  `db:"created_at"`
}

func (a *API) registerAdministrators() {
	handle(a, readers, http.MethodGet, "/admins", "List administrators", func(ctx context.Context, _ Caller, _ *struct{}) (List[Administrator], error) {
		return a.listAdmins(ctx)
	})
	handle(a, administrators, http.MethodPost, "/admins", "Add an administrator", func(ctx context.Context, c Caller, in *struct{ Body NewAdministrator }) (Identity, error) {
		return a.addAdmin(ctx, c, in.Body)
	})
	handleEmpty(a, administrators, http.MethodDelete, "/admins/{name}", "Remove an administrator; the certificates are revoked", func(ctx context.Context, c Caller, in *Named) error {
		return a.removeAdmin(ctx, c, in.Name)
	})
}

func (a *API) listAdmins(ctx context.Context) (List[Administrator], error) {
	var rows []adminRow
	out := List[Administrator]{Items: []Administrator{}}
	if err := a.cfg.DB.Select(ctx, &rows, "SELECT name, role, created_at FROM administrators ORDER BY name"); err != nil {
		return out, err
	}
	for _, row := range rows {
		item := Administrator{Name: row.Name, Role: row.Role, CreatedAt: time.UnixMilli(row.CreatedAt).UTC()}
		certs, err := a.adminCertificates(ctx, row)
		if err != nil {
			return out, err
		}
		for _, c := range certs {
			if c.NotAfter.After(item.NotAfter) {
				item.Serial, item.NotAfter = c.Serial, c.NotAfter
			}
		}
		out.Items = append(out.Items, item)
	}
	return out, nil
}

// adminCertificates are the issued ones.
func (a *API) adminCertificates(ctx context.Context, row adminRow) ([]ca.Certificate, error) {
	return a.cfg.CA.Certificates(ctx, ca.Filter{Device: identityOf(row), Profile: profileOf(row.Role), State: ca.Issued})
}

func profileOf(role string) string {
	if role == RoleBridge {
		return "bridge"
	}
	return adminProfile
}

func (a *API) addAdmin(ctx context.Context, c Caller, in NewAdministrator) (Identity, error) {
	if !adminName.MatchString(in.Name) {
		return Identity{}, invalid("invalid", "admin %q: a name has letters, digits, . _ -, at most 48", in.Name)
	}
	csr, err := parseCSR(in.CSR)
	if err != nil {
		return Identity{}, err
	}
	var intended ca.ID
	cert, err := a.cfg.CA.Issue(ctx, ca.Request{
		CA: adminIssuer, Profile: profileOf(in.Role), Device: identityOf(adminRow{Name: in.Name, Role: in.Role}), PublicKey: csr.PublicKey,
		RequesterKind: requesterKind, Requester: c.Actor, Actor: c.Actor,
		Claim: func(tx *database.Tx, now time.Time, id ca.ID) (*ca.ID, error) {
			intended = id
			return nil, recordAdmin(tx, now, c.Actor, in)
		},
	})
	if err != nil {
		return Identity{}, errors.Join(err, a.takeBack(ctx, c, in.Name, intended))
	}
	return a.identity(ctx, cert)
}

// recordAdmin is part of the transaction that records the certificate: neither is there without the other.
func recordAdmin(tx *database.Tx, now time.Time, actor string, in NewAdministrator) error {
	rows, err := tx.Exec("INSERT INTO administrators (name, role, created_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING", in.Name, in.Role, now.UnixMilli())
	if err != nil {
		return err
	}
	if rows == 0 {
		return conflict("there is an administrator %q already", in.Name)
	}
	return audit.Append(tx, now, audit.Entry{Actor: actor, Action: "administrator_added", Object: in.Name, Detail: map[string]string{"role": in.Role}})
}

// takeBack removes an administrator whose certificate was recorded and could not be signed.
func (a *API) takeBack(ctx context.Context, c Caller, name string, intended ca.ID) error {
	var recorded int64
	ctx = context.WithoutCancel(ctx)
	err := a.cfg.DB.Get(ctx, &recorded, "SELECT COUNT(*) FROM certificates WHERE serial = ? AND issuer = ?", intended.Serial, intended.Issuer)
	if err != nil || recorded == 0 {
		return err
	}
	return a.removeAdmin(ctx, c, name)
}

func (a *API) identity(ctx context.Context, cert ca.Certificate) (Identity, error) {
	issuer, err := a.cfg.CA.Get(ctx, cert.Issuer)
	if err != nil {
		return Identity{}, err
	}
	out := Identity{Certificate: encodeDER(cert.DER), Chain: encodeChain([]*x509.Certificate{issuer.Certificate})}
	for _, above := range issuer.Chain {
		if !bytes.Equal(above.RawIssuer, above.RawSubject) {
			out.Chain += encodeChain([]*x509.Certificate{above})
		}
	}
	trust, err := a.cfg.CA.Trust(ctx, adminIssuer)
	out.Trust = encodeChain(trust.Roots)
	return out, err
}

// removeAdmin takes the record and the certificates away at once: the record lets an administrator in, the certificate alone a bridge.
func (a *API) removeAdmin(ctx context.Context, c Caller, name string) error {
	var issuers []string
	ctx = context.WithoutCancel(ctx)
	err := a.cfg.DB.Write(ctx, "admin.remove", func(tx *database.Tx) error {
		var row adminRow
		err := tx.Get(&row, "SELECT name, role, created_at FROM administrators WHERE name = ?", name)
		if errors.Is(err, sql.ErrNoRows) {
			return notFound("there is no administrator %q", name)
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM administrators WHERE name = ?", name); err != nil {
			return err
		}
		now := a.cfg.Clock.Now()
		if issuers, err = a.revokeAll(tx, now, c.Actor, row); err != nil {
			return err
		}
		return audit.Append(tx, now, audit.Entry{Actor: c.Actor, Action: "administrator_removed", Object: name})
	})
	if err != nil {
		return err
	}
	a.cfg.CA.Changes().Announce()
	a.cfg.CA.PublishAfterRevocation(ctx, issuers...)
	return nil
}

// revokeAll revokes what the identity holds, and a bridge's canaries with it. It returns the CAs concerned.
func (a *API) revokeAll(tx *database.Tx, now time.Time, actor string, row adminRow) (issuers []string, err error) {
	condition, args := "device = ?", []any{identityOf(row)}
	if row.Role == RoleBridge {
		condition, args = "(device = ? OR (requester_kind = '"+feed.RequesterKind+"' AND requester = ?))", []any{identityOf(row), identityOf(row)}
	}
	var held []struct {
		Serial   string `db:"serial"`
		Issuer   string `db:"issuer"`
		Device   string `db:"device"`
		IssuedAt int64  `db:"issued_at"`
	}
	err = tx.Select(&held, "SELECT serial, issuer, device, issued_at FROM certificates WHERE "+condition+" AND state IN ('issued', 'intended', 'held') AND not_after > ?",
		append(args, now.UnixMilli())...)
	if err != nil {
		return nil, err
	}
	for _, h := range held {
		cert := ca.Certificate{Issuer: h.Issuer, Serial: h.Serial, Device: h.Device, IssuedAt: time.UnixMilli(h.IssuedAt)}
		if _, err := a.cfg.CA.RevokeInTx(tx, now, actor, cert, "privilegeWithdrawn"); err != nil {
			return nil, err
		}
		if !slices.Contains(issuers, h.Issuer) {
			issuers = append(issuers, h.Issuer)
		}
	}
	return issuers, nil
}

// roleOf is the administrator that a certificate names, and the role that the record gives. A certificate that is older than the record was made
// for an earlier one of that name.
func (a *API) roleOf(ctx context.Context, cert ca.Certificate) (name, role string, err error) {
	name, ok := strings.CutPrefix(cert.Device, identityOf(adminRow{}))
	if !ok || cert.Profile != adminProfile {
		return "", "", fmt.Errorf("certificate of %s, profile %s", cert.Device, cert.Profile)
	}
	var row adminRow
	err = a.cfg.DB.Get(ctx, &row, "SELECT name, role, created_at FROM administrators WHERE name = ?", name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", "", fmt.Errorf("no administrator %q", name)
	case err != nil:
		return "", "", err
	case cert.CreatedAt.UnixMilli() < row.CreatedAt:
		return "", "", fmt.Errorf("certificate %s is older than administrator %q", cert.Serial, name)
	}
	return name, row.Role, nil
}
