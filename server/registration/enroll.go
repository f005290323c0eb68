// From a Requester to a certificate: the binding of identity and request, and the claim, which uses up a right in the transaction that
// records the certificate made by it.

package registration

import (
	"context"
	"crypto/x509"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// Enroll issues the certificate that the requester may have for the key of csr, whose signature has been checked, or returns the one that was
// issued for just this request before. renew says that the request came to /simplereenroll, which asks for the subject that is being renewed.
//
// Kinds: NotAuthenticated (the right is used up), NotAuthorized (another identity; superseded), and those of ca.Issue.
func (b *Book) Enroll(ctx context.Context, r Requester, l Label, csr *x509.CertificateRequest, renew bool) (ca.Certificate, error) {
	if err := CheckIdentity(r.Device, csr); err != nil {
		return ca.Certificate{}, err
	}
	if renew {
		if err := checkRenewed(r, csr); err != nil {
			return ca.Certificate{}, err
		}
	}
	claim := &claim{book: b, requester: r, label: l, spki: ca.SPKISHA256(csr.RawSubjectPublicKeyInfo)}
	request := ca.Request{
		CA: l.CA, Profile: l.Profile, Label: l.Name, Device: r.Device, CSR: csr,
		RequesterKind: r.Kind, Actor: "device:" + r.Device, Claim: claim.take, Reserved: b.Reserved(ctx, r.Device),
	}
	e, err := b.Device(ctx, r.Device)
	if err != nil && !isKind(err, NotFound) {
		return ca.Certificate{}, err
	}
	if err != nil {
		e = EndEntity{ID: r.Device, Label: l.Name, State: StateNew, Generation: 1} // comes into being in the claim
	}
	request.Generation, request.Registered = e.Generation, e.SANs
	claim.generation = e.Generation
	switch r.Kind {
	case KindCode:
		request.Requester, request.ClaimKey = r.CodeID, "code/"+r.CodeID
	case KindBirth:
		request.Requester = r.BirthCAKey + "/" + r.BirthSerial
		request.ClaimKey = "birth/" + request.Requester + "/" + r.Device + "/" + generation(e.Generation)
	case KindOperational:
		request.Requester, request.Renews = r.Certificate.Serial, r.Certificate.Serial
		request.ClaimKey = "renew/" + r.Certificate.Serial + "/" + claim.spki
	case KindBridge:
		request.Requester = r.Certificate.Serial
		request.Actor = "bridge:" + r.Device
		request.ClaimKey = "bridge/" + l.Name + "/" + r.Device + "/" + generation(e.Generation) + "/" + claim.spki
	default:
		return ca.Certificate{}, refuse(NotAuthorized, "not_authorized", "a %s may not enroll", r.Kind)
	}
	claim.requesterName, claim.key = request.Requester, request.ClaimKey
	certificate, err := b.ca.Issue(ctx, request)
	if err == nil && claim.announce {
		b.changes.Announce()
	}
	return certificate, err
}

// CheckIdentity refuses a request that names somebody else. What else the request may contain is the profile's affair.
func CheckIdentity(device string, csr *x509.CertificateRequest) error {
	for _, attribute := range csr.Subject.Names {
		if value, _ := attribute.Value.(string); attribute.Type.String() == "2.5.4.3" && value != device {
			return refuse(NotAuthorized, "identity_differs", "the request names another identity than the authenticated one")
		}
	}
	return nil
}

// checkRenewed: "the Subject field and SubjectAltName extension MUST be identical to the corresponding fields in the certificate being renewed"
// (RFC 7030 section 4.2.2).
func checkRenewed(r Requester, csr *x509.CertificateRequest) error {
	if csr.Subject.CommonName != r.Device {
		return refuse(NotAuthorized, "identity_differs", "the request's subject is not that of the certificate being renewed")
	}
	old, err := x509.ParseCertificate(r.Certificate.DER)
	if err != nil {
		return storage("read certificate", err)
	}
	texts := func(list []*url.URL) []string {
		var all []string
		for _, u := range list {
			all = append(all, u.String())
		}
		return all
	}
	if !sameNames(old.DNSNames, csr.DNSNames) || len(old.IPAddresses) != len(csr.IPAddresses) || !sameNames(old.EmailAddresses, csr.EmailAddresses) || !sameNames(texts(old.URIs), texts(csr.URIs)) {
		return refuse(NotAuthorized, "identity_differs", "the request's subject alternative name is not that of the certificate being renewed")
	}
	for i := range old.IPAddresses {
		if !slices.ContainsFunc(csr.IPAddresses, old.IPAddresses[i].Equal) {
			return refuse(NotAuthorized, "identity_differs", "the request's subject alternative name is not that of the certificate being renewed")
		}
	}
	return nil
}

func sameNames(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func generation(n int64) string { return "g" + strconv.FormatInt(n, 10) }

// claim is what stands between a requester and a certificate. take may run twice.
type claim struct {
	book          *Book
	requester     Requester
	label         Label
	spki          string
	key           string // unique in the database
	requesterName string
	generation    int64
	announce      bool

	entity EndEntity // as it is in the transaction; State "" when it does not exist
}

func (c *claim) take(tx *database.Tx, now time.Time, intended ca.ID) (*ca.ID, error) {
	// The end entity's row is locked first: who comes second waits here and then sees what the first one did.
	var err error
	if c.entity, err = c.book.lock(tx, c.requester.Device); err != nil && !isKind(err, NotFound) {
		return nil, err
	}
	if existing, err := c.existing(tx, now); existing != nil || err != nil {
		return existing, err
	}
	if c.requester.Repeat {
		return nil, notAuthenticated("certificate %s of %s is superseded and serves for the repeat of its renewal only", c.requesterName, c.requester.Device)
	}
	switch c.requester.Kind {
	case KindCode:
		return nil, c.useCode(tx, now, intended)
	case KindBirth:
		return nil, c.bind(tx, now)
	case KindOperational:
		return nil, c.renew(tx, now)
	}
	return nil, c.checkBridge(tx)
}

// existing finds the certificate that this right was used for. The same key within the window gets it again, because the answer may have been
// lost; anything else is refused like any credential that does not count.
func (c *claim) existing(tx *database.Tx, now time.Time) (*ca.ID, error) {
	found, ok, err := ca.FindInTx(tx, "claim = ?", c.key)
	if err != nil || !ok {
		return nil, err
	}
	switch {
	case found.SPKISHA256 != c.spki:
		return nil, notAuthenticated("%s %s of %s was used for another key (certificate %s)", c.requester.Kind, c.requesterName, c.requester.Device, found.Serial)
	case found.State != ca.Issued && found.State != ca.Intended:
		return nil, notAuthenticated("%s %s of %s was used for certificate %s, which is %s", c.requester.Kind, c.requesterName, c.requester.Device, found.Serial, found.State)
	case (c.requester.Kind != KindOperational || c.requester.Repeat) && now.Sub(found.CreatedAt) > RedeliveryWindow:
		return nil, notAuthenticated("%s %s of %s was used for certificate %s at %v", c.requester.Kind, c.requesterName, c.requester.Device, found.Serial, found.CreatedAt)
	}
	if e := c.entity; !e.counts(found.Generation) {
		return nil, notAuthenticated("end entity %s is %s", c.requester.Device, e.describe())
	}
	if c.requester.Kind == KindOperational && !c.requester.Repeat {
		if err := c.mayRenew(tx, now); err != nil {
			return nil, err
		}
	}
	return &ca.ID{Issuer: found.Issuer, Serial: found.Serial}, nil
}

func (c *claim) useCode(tx *database.Tx, now time.Time, intended ca.ID) error {
	rows, err := tx.Exec("UPDATE enrollment_codes SET state = 'used', used_at = ?, issuer = ?, serial = ? WHERE id = ? AND state = 'active' AND expires_at > ?",
		now.UnixMilli(), intended.Issuer, intended.Serial, c.requester.CodeID, now.UnixMilli())
	if err != nil {
		return err
	}
	if rows != 1 {
		return notAuthenticated("code %s of %s is not active any more", c.requester.CodeID, c.requester.Device)
	}
	if err := c.bind(tx, now); err != nil {
		return err
	}
	return c.book.append(tx, audit.Entry{Actor: "device:" + c.requester.Device, Action: "code_used", Object: c.requester.CodeID, Detail: map[string]string{"device": c.requester.Device, "serial": intended.Serial}})
}

// bind ties the end entity to its first authenticator.
func (c *claim) bind(tx *database.Tx, now time.Time) error {
	if c.entity.State == "" {
		if err := c.book.addEntity(tx, "device:"+c.requester.Device, c.label, NewDevice{ID: c.requester.Device}); err != nil {
			if isKind(err, Conflict) || isKind(err, Invalid) {
				return notAuthenticated("%s %s: %w", c.requester.Kind, c.requesterName, err)
			}
			return err
		}
		c.announce = true
		var err error
		if c.entity, err = c.book.lock(tx, c.requester.Device); err != nil {
			return err
		}
	}
	e := c.entity
	if e.Label != c.label.Name || e.Generation != c.generation {
		return notAuthenticated("end entity %s is of label %s, generation %d: %s %s does not count", e.ID, e.Label, e.Generation, c.requester.Kind, c.requesterName)
	}
	_, _, err := c.book.change(tx, now, e, eventEnroll, func(e *EndEntity) { e.BoundKind, e.BoundTo = c.requester.Kind, c.requesterName })
	if isKind(err, Conflict) {
		return notAuthenticated("end entity %s, bound to %s %s: %s %s does not count: %w", e.ID, e.BoundKind, e.BoundTo, c.requester.Kind, c.requesterName, err)
	}
	return err
}

// renew checks, in the transaction, that the certificate may still re-enroll, and notes its first use.
func (c *claim) renew(tx *database.Tx, now time.Time) error {
	if e := c.entity; !e.counts(c.requester.Certificate.Generation) {
		return notAuthenticated("end entity %s is %s", c.requester.Device, e.describe())
	}
	return c.mayRenew(tx, now)
}

func (c *claim) mayRenew(tx *database.Tx, now time.Time) error {
	own, ok, err := ca.FindInTx(tx, "serial = ? AND issuer = ?", c.requester.Certificate.Serial, c.requester.Certificate.Issuer)
	if err != nil {
		return err
	}
	if !ok || own.State != ca.Issued {
		return notAuthenticated("certificate %s of %s is %s", own.Serial, own.Device, own.State)
	}
	overlap := !own.RenewedAt.IsZero() && now.Sub(own.RenewedAt) > RenewalOverlap
	if !own.SupersededAt.IsZero() || overlap {
		return refuse(NotAuthorized, "superseded", "the certificate was renewed before; use its successor")
	}
	if !own.FirstUsedAt.IsZero() {
		return nil
	}
	if _, err := tx.Exec("UPDATE certificates SET first_used_at = ? WHERE serial = ? AND issuer = ? AND first_used_at = 0", now.UnixMilli(), own.Serial, own.Issuer); err != nil {
		return err
	}
	if own.Renews == "" {
		return nil
	}
	return c.book.ca.Supersede(tx, now, own)
}

func (c *claim) checkBridge(tx *database.Tx) error {
	own, ok, err := ca.FindInTx(tx, "serial = ? AND issuer = ?", c.requester.Certificate.Serial, c.requester.Certificate.Issuer)
	if err != nil {
		return err
	}
	if !ok || own.State != ca.Issued {
		return notAuthenticated("certificate %s of %s is %s", own.Serial, own.Device, own.State)
	}
	return nil
}
