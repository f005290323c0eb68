// What binds a new root to the one that it replaces (RFC 4210 section 4.4), and the certificates that a relying party needs in a time of change.

package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/natal-pki/natal/ca/lint"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// crossOf marks, with the name of the new root behind it, who a cross certificate was made for. No CA's name holds a colon.
const crossOf = "cross:"

// prepareCrosses encodes OldWithNew, the old root's key certified by the new root, and NewWithOld, the other way round: who trusts one of the
// two roots can verify what stands below the other.
func (a *Authorities) prepareCrosses(old *authority, row authorityRow, newWithNew *prepared) ([]*prepared, error) {
	der, err := assemble(newWithNew.tbs, standIn(newWithNew.template.PublicKey))
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &Error{Kind: Invalid, Rule: "encoding", Detail: "the root cannot be encoded", Err: err}
	}
	if _, err := a.signer(old); err != nil {
		return nil, err
	}
	fresh := &authority{row: row, certificate: certificate}
	oldWithNew, err := a.prepareCross(fresh, old.certificate, "authority/"+row.Name+"/old-with-new")
	if err != nil {
		return nil, err
	}
	newWithOld, err := a.prepareCross(old, certificate, "authority/"+row.Name+"/new-with-old")
	if err != nil {
		return nil, err
	}
	oldWithNew.row.Requester, newWithOld.row.Requester = crossOf+row.Name, crossOf+row.Name
	return []*prepared{oldWithNew, newWithOld}, nil
}

// prepareCross encodes a certificate of subject's name and key by issuer. It lives no longer than either root.
func (a *Authorities) prepareCross(issuer *authority, subject *x509.Certificate, claim string) (*prepared, error) {
	now := a.clock.Now()
	serial, err := newSerial()
	if err != nil {
		return nil, unavailable("serial number", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, RawSubject: subject.RawSubject, Subject: subject.Subject, SubjectKeyId: subject.SubjectKeyId,
		NotBefore: now.Add(-5 * time.Minute).Truncate(time.Second), NotAfter: subject.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if issuer.certificate.NotAfter.Before(template.NotAfter) {
		template.NotAfter = issuer.certificate.NotAfter
	}
	issuer.addAddresses(template)
	p, err := a.encode(issuer, issuer.certificate, template, subject.PublicKey, now, lint.Context{Use: profile.UseCA, CRL: first(template.CRLDistributionPoints)})
	if err != nil {
		return nil, err
	}
	p.row.Profile, p.row.RequesterKind, p.row.Claim = "ca", requesterAuthority, claim
	return p, nil
}

// addAddresses says where the CRL for a certificate of au and au's own certificate are.
func (au *authority) addAddresses(template *x509.Certificate) {
	if au.row.PublicURL != "" {
		template.CRLDistributionPoints = []string{au.crlAddress(au.shardOf(SerialHex(template.SerialNumber)))}
		template.IssuingCertificateURL = []string{au.row.PublicURL + "/ca/" + au.row.Name + ".der"}
	}
}

// addCross keeps a cross certificate with the root that it was made for, in the transaction that stores the certificate itself.
func (a *Authorities) addCross(tx *database.Tx, root string, der []byte) error {
	query := "SELECT crosses FROM authorities WHERE name = ?"
	if tx.Dialect() == database.Postgres {
		query += " FOR UPDATE"
	}
	var have []byte
	if err := tx.Get(&have, query, root); err != nil {
		return err
	}
	if _, err := tx.Exec("UPDATE authorities SET crosses = ? WHERE name = ?", slices.Concat(have, der), root); err != nil {
		return err
	}
	a.changes.Append(tx, feedapi.Change{At: a.clock.Now(), Kind: feedapi.TrustSetChanged})
	return tx.TouchConfiguration()
}

// Trust is what relying parties of a CA need, through every change of it.
type Trust struct {
	Issuers []*x509.Certificate // the CA and those in its line that stand by or retire, with what is between them and their roots
	Roots   []*x509.Certificate // newest first
	Crosses []*x509.Certificate // between these roots
}

// All is the whole of it.
func (t *Trust) All() []*x509.Certificate { return slices.Concat(t.Roots, t.Issuers, t.Crosses) }

// Trust returns what is to be trusted with the CA name: its line, the roots above, each root's line, and the cross certificates. Nothing of it is outside
// its validity, and what was changed by another server a moment ago is in it.
func (a *Authorities) Trust(ctx context.Context, name string) (Trust, error) {
	if err := a.fresh(ctx); err != nil {
		return Trust{}, err
	}
	if !a.exists(name) {
		return Trust{}, refuse(NotFound, "unknown_ca", "there is no CA %q", name)
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	var t Trust
	now := a.clock.Now()
	add := func(list *[]*x509.Certificate, c *x509.Certificate) {
		if !now.Before(c.NotBefore) && !now.After(c.NotAfter) && !slices.ContainsFunc(*list, c.Equal) {
			*list = append(*list, c)
		}
	}
	for _, au := range a.line(name) {
		for _, c := range append([]*x509.Certificate{au.certificate}, au.chain...) {
			if selfIssued(c) {
				add(&t.Roots, c)
			} else {
				add(&t.Issuers, c)
			}
		}
	}
	for _, root := range slices.Clone(t.Roots) {
		for _, au := range a.rootLine(root) {
			add(&t.Roots, au.certificate)
		}
	}
	for _, root := range t.Roots {
		for _, cross := range a.crossesFor(root) {
			if slices.ContainsFunc(t.Roots, func(issuer *x509.Certificate) bool { return bytes.Equal(issuer.RawSubject, cross.RawIssuer) }) {
				add(&t.Crosses, cross)
			}
		}
	}
	slices.SortStableFunc(t.Roots, func(a, b *x509.Certificate) int { return b.NotBefore.Compare(a.NotBefore) })
	return t, nil
}

// rootLine returns the roots of this server that stand in one line with root. One that stands by counts from the moment when it has both cross
// certificates: without them nobody could tell it from an impostor. The caller holds mu.
func (a *Authorities) rootLine(root *x509.Certificate) []*authority {
	var list []*authority
	for name, au := range a.live {
		if au.certificate == nil || !au.certificate.Equal(root) {
			continue
		}
		for _, member := range a.line(name) {
			if member.row.State != Standby || len(member.crosses) == 2 {
				list = append(list, member)
			}
		}
	}
	return list
}

// crossesFor returns the cross certificates of a root's key. The caller holds mu.
func (a *Authorities) crossesFor(root *x509.Certificate) []*x509.Certificate {
	var list []*x509.Certificate
	for _, au := range a.live {
		for _, cross := range au.crosses {
			if bytes.Equal(cross.RawSubject, root.RawSubject) && sameKey(cross.PublicKey, root.PublicKey) {
				list = append(list, cross)
			}
		}
	}
	slices.SortFunc(list, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	return list
}

// Links returns the certificates to present beside a chain that ends at root: who trusts another root of the line verifies the chain by them.
func (a *Authorities) Links(ctx context.Context, root *x509.Certificate) ([]*x509.Certificate, error) {
	if err := a.current(ctx); err != nil {
		return nil, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	now := a.clock.Now()
	return slices.DeleteFunc(a.crossesFor(root), func(c *x509.Certificate) bool { return now.Before(c.NotBefore) || now.After(c.NotAfter) }), nil
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// fresh is current without the moment for which a change by another server may go unnoticed.
func (a *Authorities) fresh(ctx context.Context) error {
	var version int64
	if err := a.db.Get(ctx, &version, "SELECT value FROM counters WHERE name = 'configuration'"); err != nil {
		return unavailable("database", err)
	}
	a.mu.RLock()
	known := a.version >= version && a.live != nil
	a.mu.RUnlock()
	if known {
		return nil
	}
	return a.reload(ctx)
}
