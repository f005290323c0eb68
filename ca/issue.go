// Issuing: record, sign, store (complete.go), and only then answer (INV-1 to INV-6).

package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"time"

	"github.com/natal-pki/natal/ca/lint"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// Request asks for a certificate for an identity that the caller has authenticated.
type Request struct {
	CA            string // name of the issuing CA
	Profile       string
	Label         string
	Device        string                   // the authenticated identity: the certificate's name
	Reserved      func(name string) bool   // tells whether a name that the request chose itself is somebody else's; nil: none is
	Registered    []string                 // further names registered with it: "dns:...", "ip:..."
	CSR           *x509.CertificateRequest // its signature has been checked; or nil and
	PublicKey     crypto.PublicKey         // a key known otherwise
	RequesterKind string                   // "code", "birth", "operational", "server", ...
	Requester     string                   // which code, birth certificate, serial
	Actor         string                   // for the audit log
	Generation    int64                    // of the end entity
	Renews        string                   // serial of the certificate that this one renews, or ""

	// Upkeep marks what a CA needs for its own work (a canary, the certificate of an OCSP signer): it comes from this very CA, in standby and
	// retiring too. Anything else comes from the CA that has taken over, if one has.
	Upkeep bool

	// ClaimKey is the name of what is used up by this certificate. It is unique in the database for ever: a second
	// certificate with the same ClaimKey cannot be recorded. Empty: nothing is used up.
	ClaimKey string

	// Claim uses up the requester's right in the transaction that records the certificate as intended. It returns the ID of an
	// existing certificate when the right was already used for just this request (a lost answer), which is then returned
	// instead; or an error, and nothing has happened. It may run twice and touches nothing but tx.
	Claim func(tx *database.Tx, now time.Time, intended ID) (existing *ID, err error)
}

// RequesterServer is the RequesterKind of what the server asks for itself.
const RequesterServer = "server"

// prepared is a certificate that is ready to be recorded.
type prepared struct {
	au       *authority
	template *x509.Certificate
	tbs      []byte
	row      certificateRow
	profile  *profile.Profile // nil for the certificate of a CA
}

// Issue makes the certificate that req asks for, or returns the one that was made for it before. Kinds of *Error: ProfileViolation,
// NotFound, Unavailable; an error of Claim comes back unchanged.
func (a *Authorities) Issue(ctx context.Context, req Request) (Certificate, error) {
	if err := a.checkClock(ctx); err != nil {
		return Certificate{}, err
	}
	for tries := 0; ; tries++ {
		c, err := a.issueOnce(ctx, req)
		if !errors.Is(err, errTakenOver) || tries == 3 {
			return c, err
		}
		if err := a.reload(ctx); err != nil {
			return Certificate{}, err
		}
	}
}

// errTakenOver says that the CA has stopped issuing since it was read: its successor is to be asked.
var errTakenOver = refuse(Unavailable, "ca_not_active", "the CA does not issue any more")

func (a *Authorities) issueOnce(ctx context.Context, req Request) (Certificate, error) {
	p, err := a.prepare(ctx, req)
	if err != nil {
		if behind := a.checkClock(ctx); behind != nil { // it was put back meanwhile, which says nothing about the request
			return Certificate{}, behind
		}
		return a.redeliver(ctx, req, err)
	}
	ctx = context.WithoutCancel(ctx) // from the first transaction on the work is carried to its end
	id := ID{p.row.Issuer, p.row.Serial}
	var existing *ID
	err = a.db.Write(ctx, "ca.intend", func(tx *database.Tx) (err error) {
		existing = nil
		if req.Claim != nil {
			if existing, err = req.Claim(tx, moment(p.row.CreatedAt), id); err != nil || existing != nil {
				return err
			}
		}
		if err := stillIssues(tx, p.au, req.Upkeep); err != nil {
			return err
		}
		if err := checkKey(tx, &p.row, p.profile); err != nil {
			return err
		}
		return a.intend(tx, &p.row, req.Actor)
	})
	if err != nil {
		return Certificate{}, passThrough("record certificate", err)
	}
	if existing != nil {
		return a.finish(ctx, *existing)
	}
	return a.complete(ctx, p.au, &p.row)
}

// stillIssues looks in the transaction that records a certificate whether its CA may: another server may have changed that.
func stillIssues(tx *database.Tx, au *authority, upkeep bool) error {
	var now authority
	if err := tx.Get(&now.row.State, "SELECT state FROM authorities WHERE name = ?", au.row.Name); err != nil {
		return err
	}
	if now.row.State == Active || upkeep && now.inForce() {
		return nil
	}
	return errTakenOver
}

// errNothing undoes a claim that found nothing to redeliver.
var errNothing = errors.New("nothing to redeliver")

// redeliver answers a request that could not be granted now. If it is a repeat of one that was granted, because the profile, the label or the CA's state
// changed while the answer was lost, it gets what it got; else refusal.
func (a *Authorities) redeliver(ctx context.Context, req Request, refusal error) (Certificate, error) {
	if req.Claim == nil {
		return Certificate{}, refusal
	}
	var existing *ID
	err := a.db.Write(ctx, "ca.redeliver", func(tx *database.Tx) (err error) {
		if existing, err = req.Claim(tx, a.clock.Now(), ID{}); err == nil && existing == nil {
			err = errNothing
		}
		return err
	})
	if err != nil || existing == nil {
		return Certificate{}, refusal
	}
	return a.finish(context.WithoutCancel(ctx), *existing)
}

// passThrough keeps errors that carry their own kind and calls the rest a storage failure.
func passThrough(what string, err error) error {
	var domain interface{ Domain() }
	if errors.As(err, &domain) {
		return err
	}
	return unavailable(what, err)
}

// Domain marks Error as an error that crosses a transaction unchanged.
func (e *Error) Domain() {}

func (a *Authorities) prepare(ctx context.Context, req Request) (*prepared, error) {
	au, prof, err := a.issuer(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := a.mayIssueBy(au, prof, &req); err != nil {
		return nil, err
	}
	serial, err := newSerial() // first, because it decides which CRL the certificate names
	if err != nil {
		return nil, unavailable("serial number", err)
	}
	in, err := a.input(ctx, req, au, prof, serial)
	if err != nil {
		return nil, err
	}
	template, _, err := prof.Build(in)
	if err != nil {
		return nil, violation(err)
	}
	template.SerialNumber = serial
	if err := au.mustName(template, prof.Use()); err != nil {
		return nil, err
	}
	p, err := a.encode(au, au.certificate, template, req.key(), in.Now, lint.Context{Use: prof.Use(), CRL: in.CRL(prof)})
	if err != nil {
		return nil, err
	}
	p.profile = prof
	p.row.Device, p.row.Label, p.row.Profile, p.row.ProfileHash = req.Device, req.Label, prof.Name(), prof.Hash()
	p.row.RequesterKind, p.row.Requester, p.row.Generation, p.row.Renews = req.RequesterKind, req.Requester, req.Generation, req.Renews
	p.row.Claim = req.ClaimKey
	if p.row.Claim == "" {
		p.row.Claim = "serial/" + p.row.Serial
	}
	if err := a.ready(au); err != nil { // before anything is recorded that would wait for the key
		return nil, err
	}
	return p, nil
}

func (req *Request) key() crypto.PublicKey {
	if req.CSR != nil {
		return req.CSR.PublicKey
	}
	return req.PublicKey
}

// issuer finds the CA and the profile of a request.
func (a *Authorities) issuer(ctx context.Context, req Request) (*authority, *profile.Profile, error) {
	au, err := a.authority(ctx, req.CA)
	if err != nil {
		return nil, nil, err
	}
	if !req.Upkeep {
		au = a.inPlaceOf(au)
	}
	prof, err := a.Profile(ctx, req.Profile)
	return au, prof, err
}

// mayIssueBy tells whether the CA may issue now, and by this profile.
func (a *Authorities) mayIssueBy(au *authority, prof *profile.Profile, req *Request) error {
	if err := au.mayIssue(); err != nil && !(req.Upkeep && au.inForce()) {
		return err
	}
	use := au.row.Use
	switch {
	case prof.Use() == profile.UseOCSP: // speaks for its CA, whatever that issues for: the server itself asks for it, and nobody else
		if req.RequesterKind != RequesterServer {
			return refuse(ProfileViolation, "issuer", "profile %s is for the server's own OCSP signers", prof.Name())
		}
	case prof.Use() == profile.UseCA:
		return refuse(ProfileViolation, "issuer", "profile %s is for the certificates of CAs", prof.Name())
	case use != "" && use != prof.Use():
		return refuse(ProfileViolation, "issuer", "CA %q issues for use %s, profile %s is for %s", au.row.Name, use, prof.Name(), prof.Use())
	}
	if !a.IssuedBy(prof, au.row.Name) {
		return refuse(ProfileViolation, "issuer", "CA %q is none of the issuers of profile %s", au.row.Name, prof.Name())
	}
	return nil
}

// input is what the profile looks at.
func (a *Authorities) input(ctx context.Context, req Request, au *authority, prof *profile.Profile, serial *big.Int) (profile.Input, error) {
	in := profile.Input{
		Device: req.Device, Registered: req.Registered, Reserved: req.Reserved, CSR: req.CSR, PublicKey: req.PublicKey,
		Issuer: au.certificate, PublicURL: au.row.PublicURL, IssuerName: au.row.Name, CRLPath: au.crlPath(SerialHex(serial)), Now: a.clock.Now(),
	}
	var err error
	if in.Signature, _, err = signatureAlgorithm(au.certificate.PublicKey); err != nil {
		return in, &Error{Kind: Invalid, Rule: "signature", Detail: err.Error()}
	}
	if req.Renews != "" && prof.LimitsRenewal() {
		var notAfter int64
		err := a.db.Get(ctx, &notAfter, "SELECT not_after FROM certificates WHERE serial = ? AND device = ?", req.Renews, req.Device)
		if err != nil && !isNoRows(err) {
			return in, unavailable("read certificate", err)
		}
		in.Renewed = moment(notAfter)
	}
	return in, nil
}

func violation(err error) error {
	var v *profile.Violation
	if errors.As(err, &v) {
		return &Error{Kind: ProfileViolation, Rule: v.Finding.Rule, Detail: v.Finding.Detail}
	}
	return &Error{Kind: Invalid, Rule: "profile", Detail: "the profile cannot be applied", Err: err}
}

// encode encodes template, which has its serial number, and lints the result.
func (a *Authorities) encode(au *authority, parent, template *x509.Certificate, public crypto.PublicKey, now time.Time, is lint.Context) (*prepared, error) {
	issuerKey := parent.PublicKey
	tbs, err := toBeSigned(template, parent, public, issuerKey)
	if err != nil {
		return nil, &Error{Kind: Invalid, Rule: "encoding", Detail: "the certificate cannot be encoded", Err: err}
	}
	if err := a.check(tbs, template, parent, now, is); err != nil {
		return nil, err
	}
	spki, err := keyHash(public)
	if err != nil {
		return nil, &Error{Kind: Invalid, Rule: "key_type", Detail: "the key cannot be encoded", Err: err}
	}
	sum := sha256.Sum256(tbs)
	return &prepared{au: au, template: template, tbs: tbs, row: certificateRow{
		fresh: true, Serial: SerialHex(template.SerialNumber), Issuer: au.row.Name, State: Intended, SPKISHA256: spki, TBS: tbs, TBSSHA256: hex.EncodeToString(sum[:]),
		NotBefore: template.NotBefore.UnixMilli(), NotAfter: template.NotAfter.UnixMilli(), CreatedAt: now.UnixMilli(),
	}}, nil
}

// check is the last look before anything is recorded: the bounds that no profile can move (INV-16), and the lint, on the bytes that will be signed.
func (a *Authorities) check(tbs []byte, template, parent *x509.Certificate, now time.Time, is lint.Context) error {
	if template.NotAfter.After(parent.NotAfter) || template.NotBefore.Before(now.Add(-2*time.Hour)) {
		return refuse(ProfileViolation, "validity", "%s to %s is outside what the issuer may sign now", template.NotBefore.Format(time.RFC3339), template.NotAfter.Format(time.RFC3339))
	}
	der, err := assemble(tbs, standIn(parent.PublicKey))
	if err != nil {
		return &Error{Kind: Invalid, Rule: "encoding", Detail: "the certificate cannot be encoded", Err: err}
	}
	is.Issuer = parent
	if err := a.linter.Check(der, is); err != nil {
		return &Error{Kind: ProfileViolation, Rule: "lint", Detail: err.Error()}
	}
	return nil
}

// intend records the certificate and the intent to sign it.
func (a *Authorities) intend(tx *database.Tx, r *certificateRow, actor string) error {
	_, err := tx.Exec("INSERT INTO certificates ("+certificateColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		r.Serial, r.Issuer, r.State, r.Device, r.Label, r.Profile, r.ProfileHash, r.SPKISHA256, r.RequesterKind, r.Requester, r.Claim, r.Generation, r.Renews,
		r.TBSSHA256, r.TBS, r.DER, r.NotBefore, r.NotAfter, r.CreatedAt, r.IssuedAt, r.RenewedAt, r.FirstUsedAt, r.SupersededAt, r.RevokedAt, r.Reason)
	if err != nil {
		return err
	}
	return a.append(tx, audit.Entry{Actor: actor, Action: "certificate_intended", Object: r.Serial, Detail: map[string]string{
		"issuer": r.Issuer, "device": r.Device, "label": r.Label, "profile": r.Profile, "profile_hash": r.ProfileHash, "tbs_sha256": r.TBSSHA256,
		"spki_sha256": r.SPKISHA256, "requester_kind": r.RequesterKind, "requester": r.Requester,
	}})
}
