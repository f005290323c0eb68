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
	"strings"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
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
	now := a.cfg.Clock.Now()
	err = a.cfg.DB.Write(ctx, "admin.add", func(tx *database.Tx) error {
		rows, err := tx.Exec("INSERT INTO administrators (name, role, created_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING", in.Name, in.Role, now.UnixMilli())
		if err != nil {
			return err
		}
		if rows == 0 {
			return conflict("there is an administrator %q already", in.Name)
		}
		return audit.Append(tx, now, audit.Entry{Actor: c.Actor, Action: "administrator_added", Object: in.Name, Detail: map[string]string{"role": in.Role}})
	})
	if err != nil {
		return Identity{}, err
	}
	cert, err := a.cfg.CA.Issue(ctx, ca.Request{
		CA: adminIssuer, Profile: profileOf(in.Role), Device: identityOf(adminRow{Name: in.Name, Role: in.Role}), PublicKey: csr.PublicKey,
		RequesterKind: requesterKind, Requester: c.Actor, Actor: c.Actor,
	})
	if err != nil {
		return Identity{}, errors.Join(err, a.forgetAdmin(ctx, c, in.Name))
	}
	return a.identity(ctx, cert)
}

func (a *API) identity(ctx context.Context, cert ca.Certificate) (Identity, error) {
	issuer, err := a.cfg.CA.Get(ctx, cert.Issuer)
	if err != nil {
		return Identity{}, err
	}
	out := Identity{Certificate: encodeDER(cert.DER), Chain: encodeChain([]*x509.Certificate{issuer.Certificate})}
	for _, above := range issuer.Chain {
		if bytes.Equal(above.RawIssuer, above.RawSubject) {
			out.Trust = encodeChain([]*x509.Certificate{above})
		} else {
			out.Chain += encodeChain([]*x509.Certificate{above})
		}
	}
	return out, nil
}

func (a *API) removeAdmin(ctx context.Context, c Caller, name string) error {
	var row adminRow
	err := a.cfg.DB.Get(ctx, &row, "SELECT name, role, created_at FROM administrators WHERE name = ?", name)
	if errors.Is(err, sql.ErrNoRows) {
		return notFound("there is no administrator %q", name)
	}
	if err != nil {
		return err
	}
	// The record goes first: it alone lets a certificate in, so nothing that fails later leaves a right behind.
	if err := a.forgetAdmin(ctx, c, name); err != nil {
		return err
	}
	certs, err := a.adminCertificates(ctx, row)
	if err != nil {
		return err
	}
	for _, cert := range certs {
		if _, err := a.cfg.CA.Revoke(ctx, c.Actor, cert.Serial, "privilegeWithdrawn"); err != nil {
			return err
		}
	}
	return nil
}

func (a *API) forgetAdmin(ctx context.Context, c Caller, name string) error {
	return a.cfg.DB.Write(ctx, "admin.remove", func(tx *database.Tx) error {
		if _, err := tx.Exec("DELETE FROM administrators WHERE name = ?", name); err != nil {
			return err
		}
		return audit.Append(tx, a.cfg.Clock.Now(), audit.Entry{Actor: c.Actor, Action: "administrator_removed", Object: name})
	})
}

// roleOf is the administrator that a certificate names, and the role that the record gives.
func (a *API) roleOf(ctx context.Context, cert ca.Certificate) (name, role string, err error) {
	name, ok := strings.CutPrefix(cert.Device, identityOf(adminRow{}))
	if !ok || cert.Profile != adminProfile {
		return "", "", fmt.Errorf("certificate of %s, profile %s", cert.Device, cert.Profile)
	}
	err = a.cfg.DB.Get(ctx, &role, "SELECT role FROM administrators WHERE name = ?", name)
	if errors.Is(err, sql.ErrNoRows) {
		return "", "", fmt.Errorf("no administrator %q", name)
	}
	return name, role, err
}
