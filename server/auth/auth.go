// Package auth finds out who sends a request: TLS state, Authorization header and label in, registration.Requester out.
//
// It is the only package that looks at the certificates of a TLS connection. Nothing is remembered between
// requests: each one is checked against the database, so that a revocation counts at once, on connections that are
// already open too. It decides nothing about what a requester may have.
package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/registration"
)

// Authenticator checks credentials. It is safe for concurrent use.
type Authenticator struct {
	book *registration.Book
}

// New returns an Authenticator over book.
func New(book *registration.Book) *Authenticator {
	return &Authenticator{book: book}
}

// Request is what a device showed.
type Request struct {
	Label         registration.Label
	Renew         bool // /simplereenroll: only the certificate counts
	TLS           *tls.ConnectionState
	Authorization []string // values of the header
}

// Authenticate returns who asks. Any failure of a credential is a *registration.Error of Kind NotAuthenticated, whose Err
// is for the log; other errors mean that the check itself failed.
//
// An Authorization header decides if there is one: a device that shows a wrong code is not let in by its
// certificate. Else the client certificate does, first as one of ours, then as a birth certificate of the label.
func (a *Authenticator) Authenticate(ctx context.Context, r Request) (registration.Requester, error) {
	if len(r.Authorization) > 0 && !r.Renew {
		device, code, err := basic(r.Authorization)
		if err != nil {
			return registration.Requester{}, refuse(err)
		}
		return a.book.CheckCode(ctx, r.Label, device, code)
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return registration.Requester{}, refuse(errNoCredential)
	}
	leaf := r.TLS.PeerCertificates[0]
	requester, err := a.book.CheckOperational(ctx, r.Label, leaf)
	if err == nil || r.Renew || !notOurs(err) {
		return requester, err
	}
	return a.book.CheckBirth(ctx, r.Label, leaf, intermediates(r.TLS.PeerCertificates[1:]))
}

var (
	errNoCredential = errors.New("no client certificate and no Authorization")
	errNotBasic     = errors.New("the Authorization header is not HTTP Basic")
	errNotOne       = errors.New("more than one Authorization header")
)

func refuse(err error) error {
	return &registration.Error{
		Kind: registration.NotAuthenticated, Reason: "not_authenticated", Detail: "the credentials are not accepted", Err: err,
	}
}

// notOurs tells a certificate that is not on record from one that is and does not count: only the former may be a birth
// certificate. A revoked certificate of ours must not get a second chance through a birth CA that happens to be above it.
func notOurs(err error) bool {
	var refused *registration.Error
	var record *ca.Error
	return errors.As(err, &refused) && refused.Kind == registration.NotAuthenticated &&
		errors.As(refused.Err, &record) && record.Kind == ca.NotFound
}

// intermediates leaves self-issued certificates out: a root that the client sends proves nothing.
func intermediates(sent []*x509.Certificate) []*x509.Certificate {
	var kept []*x509.Certificate
	for _, c := range sent {
		if string(c.RawSubject) != string(c.RawIssuer) {
			kept = append(kept, c)
		}
	}
	return kept
}

// basic reads "Basic base64(user:password)" (RFC 7617). The password may contain colons and any UTF-8.
func basic(values []string) (user, password string, err error) {
	if len(values) != 1 {
		return "", "", errNotOne
	}
	scheme, encoded, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return "", "", errNotBasic
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(encoded))
	if err != nil || !utf8.Valid(decoded) {
		return "", "", errNotBasic
	}
	user, password, ok = strings.Cut(string(decoded), ":")
	if !ok {
		return "", "", errNotBasic
	}
	return user, password, nil
}
