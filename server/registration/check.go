// From a credential to a Requester: whose it is, and whether it counts, as the database says now.

package registration

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
)

// Kinds of Requester.
const (
	KindCode        = "code"
	KindBirth       = "birth"
	KindOperational = "operational"
	KindBridge      = "bridge"
)

// Requester is an authenticated party. What it may still have is decided by Enroll, in one transaction with what it gets.
type Requester struct {
	Kind        string
	Device      string          // the identity: the only name that a certificate for it can have
	Label       string          // at which it authenticated
	CodeID      string          // KindCode
	BirthCAKey  string          // KindBirth: SHA-256 of the issuing birth CA's public key, hex
	BirthSerial string          // KindBirth: serial number of the birth certificate, hex
	Certificate *ca.Certificate // KindOperational and KindBridge
	Repeat      bool            // KindOperational: its renewal ended it (profile key single_active); it gets that renewal's certificate again, and nothing else
}

// CheckCode checks an enrollment code. Every failure is NotAuthenticated and takes the same path: the wire does not tell an unknown device
// from a wrong, expired, revoked or used code. A used code passes here: whether it is a repeat of the same request shows in Enroll.
func (b *Book) CheckCode(ctx context.Context, l Label, device, secret string) (Requester, error) {
	given := b.hashCode(device, secret)
	var rows []codeRow
	known := device
	if !idForm.MatchString(device) {
		known = "" // nobody's; PostgreSQL would not take every string that a stranger may send
	}
	if err := b.db.Select(ctx, &rows, "SELECT "+codeColumns+" FROM enrollment_codes WHERE device = ?", known); err != nil {
		return Requester{}, storage("read codes", err)
	}
	var found *codeRow
	for i := range rows {
		if subtle.ConstantTimeCompare([]byte(rows[i].Hash), []byte(given)) == 1 {
			found = &rows[i]
		}
	}
	now := b.clock.Now()
	switch {
	case !slices.Contains(l.Auth, AuthCode):
		return Requester{}, notAuthenticated("label %s takes no codes", l.Name)
	case found == nil && len(rows) == 0: // what was given is not quoted: it may be the code, in the wrong field
		return Requester{}, notAuthenticated("no code for a device of the given name")
	case found == nil:
		return Requester{}, notAuthenticated("wrong code for device %s", device)
	case found.Label != l.Name:
		return Requester{}, notAuthenticated("code %s of device %s is for label %s", found.ID, device, found.Label)
	case found.State == CodeRevoked:
		return Requester{}, notAuthenticated("code %s of device %s is revoked", found.ID, device)
	case found.State == CodeActive && !now.Before(moment(found.ExpiresAt)):
		return Requester{}, notAuthenticated("code %s of device %s is expired", found.ID, device)
	case found.State == CodeUsed && now.Sub(moment(found.UsedAt)) > RedeliveryWindow:
		return Requester{}, notAuthenticated("code %s of device %s is used", found.ID, device)
	}
	return Requester{Kind: KindCode, Device: found.Device, Label: l.Name, CodeID: found.ID}, nil
}

// CheckOperational checks a certificate of ours: it must be the recorded one, byte for byte, and count now.
func (b *Book) CheckOperational(ctx context.Context, l Label, certificate *x509.Certificate) (Requester, error) {
	record, err := b.ca.ByDER(ctx, certificate)
	if err != nil {
		var typed *ca.Error
		if errors.As(err, &typed) && typed.Kind == ca.NotFound {
			return Requester{}, notAuthenticated("certificate: %w", err)
		}
		return Requester{}, err
	}
	p, err := b.ca.Profile(ctx, record.Profile)
	if err != nil || !p.ClientAuth() {
		return Requester{}, notAuthenticated("certificate %s of profile %s authenticates no client", record.Serial, record.Profile)
	}
	if p.Use() == profile.UseBirth { // CheckBirth's affair, as for any other birth certificate
		return Requester{}, notAuthenticated("certificate: %w", &ca.Error{Kind: ca.NotFound, Rule: "birth_certificate", Detail: "a birth certificate"})
	}
	now := b.clock.Now()
	repeat := record.State == ca.Revoked && record.Reason == "superseded" && !record.RenewedAt.IsZero() && now.Sub(record.RevokedAt) <= RedeliveryWindow
	switch {
	case b.ca.Ended(record.Issuer):
		return Requester{}, notAuthenticated("certificate %s of %s: its CA %s is revoked", record.Serial, record.Device, record.Issuer)
	case record.State != ca.Issued && !repeat:
		return Requester{}, notAuthenticated("certificate %s of %s is %s (%s)", record.Serial, record.Device, record.State, record.Reason)
	case now.Before(record.NotBefore) || now.After(record.NotAfter):
		return Requester{}, notAuthenticated("certificate %s of %s is valid from %v to %v", record.Serial, record.Device, record.NotBefore, record.NotAfter)
	}
	r := Requester{Kind: KindOperational, Device: record.Device, Label: l.Name, Certificate: &record, Repeat: repeat}
	if record.Label != l.Name {
		if repeat {
			return Requester{}, notAuthenticated("certificate %s of %s is superseded", record.Serial, record.Device)
		}
		if !slices.Contains(l.Auth, AuthBridge) || record.Profile != profileBridge {
			return Requester{}, notAuthenticated("certificate %s of %s is of label %s, not %s", record.Serial, record.Device, record.Label, l.Name)
		}
		r.Kind = KindBridge
	}
	e, err := b.Device(ctx, record.Device)
	if err != nil {
		if isKind(err, NotFound) {
			return Requester{}, notAuthenticated("certificate %s: no end entity %s", record.Serial, record.Device)
		}
		return Requester{}, err
	}
	if !e.counts(record.Generation) {
		return Requester{}, notAuthenticated("end entity %s is %s, generation %d; certificate %s is of generation %d", e.ID, e.describe(), e.Generation, record.Serial, record.Generation)
	}
	return r, nil
}

// profileBridge is the shipped profile whose certificates have the role bridge.
const profileBridge = "bridge"

// maxClientChain bounds the work that an unauthenticated chain can cause.
const maxClientChain = 5

// CheckBirth checks a birth certificate against the birth CAs of the label. The identity is its subject's serialNumber, or else its CN.
func (b *Book) CheckBirth(ctx context.Context, l Label, certificate *x509.Certificate, intermediates []*x509.Certificate) (Requester, error) {
	c, err := b.current(ctx)
	if err != nil {
		return Requester{}, err
	}
	trust := c.birth[l.Name]
	switch {
	case !slices.Contains(l.Auth, AuthBirth):
		return Requester{}, notAuthenticated("label %s takes no birth certificates", l.Name)
	case trust == nil:
		return Requester{}, notAuthenticated("label %s has no birth CA", l.Name)
	case len(intermediates) > maxClientChain:
		return Requester{}, notAuthenticated("birth certificate with a chain of %d", len(intermediates))
	case certificate.IsCA:
		return Requester{}, notAuthenticated("birth certificate %s is a CA certificate", certificate.Subject)
	}
	if _, err := profile.KeySpec(certificate.PublicKey); err != nil {
		return Requester{}, notAuthenticated("birth certificate: %w", err)
	}
	if err := b.checkOwnBirth(ctx, certificate); err != nil {
		return Requester{}, err
	}
	pool := x509.NewCertPool()
	for _, i := range intermediates {
		pool.AddCert(i)
	}
	chains, err := certificate.Verify(x509.VerifyOptions{Roots: trust.pool, Intermediates: pool, CurrentTime: b.clock.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return Requester{}, notAuthenticated("birth certificate: %w", err)
	}
	id, err := birthIdentity(certificate)
	if err != nil {
		return Requester{}, notAuthenticated("birth certificate: %w", err)
	}
	if err := b.CheckID(id); err != nil {
		return Requester{}, notAuthenticated("birth certificate: %w", err)
	}
	return Requester{
		Kind: KindBirth, Device: id, Label: l.Name,
		BirthCAKey: ca.SPKISHA256(chains[0][1].RawSubjectPublicKeyInfo), BirthSerial: ca.SerialHex(certificate.SerialNumber),
	}, nil
}

// checkOwnBirth refuses a birth certificate that this installation issued and that does not count any more.
func (b *Book) checkOwnBirth(ctx context.Context, certificate *x509.Certificate) error {
	record, err := b.ca.ByDER(ctx, certificate)
	var typed *ca.Error
	switch {
	case errors.As(err, &typed) && typed.Kind == ca.NotFound:
		return nil // another PKI's
	case err != nil:
		return err
	case record.State != ca.Issued || b.ca.Ended(record.Issuer):
		return notAuthenticated("birth certificate %s of %s is %s, its CA %s", record.Serial, record.Device, record.State, record.Issuer)
	}
	return nil
}

// birthIdentity is the subject's serialNumber if present, else its CN; each may stand there once.
func birthIdentity(certificate *x509.Certificate) (string, error) {
	values := map[string][]string{}
	for _, attribute := range certificate.Subject.Names {
		value, _ := attribute.Value.(string)
		values[attribute.Type.String()] = append(values[attribute.Type.String()], value)
	}
	for _, oid := range []string{"2.5.4.5", "2.5.4.3"} { // serialNumber, commonName
		switch v := values[oid]; {
		case len(v) > 1:
			return "", fmt.Errorf("the subject has %d values of %s: one identity, one name", len(v), oid)
		case len(v) == 1:
			return v[0], nil
		}
	}
	return "", errors.New("the subject has neither serialNumber nor CN")
}

func isKind(err error, kind Kind) bool {
	var typed *Error
	return errors.As(err, &typed) && typed.Kind == kind
}
