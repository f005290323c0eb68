// POST /simpleenroll (RFC 7030 section 4.2.1), and what it shares with /simplereenroll.

package front

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/auth"
	"github.com/natal-pki/natal/server/registration"
)

// issueTimeout bounds the work that goes on after the device may have hung up.
const issueTimeout = 30 * time.Second

func (f *Front) simpleEnroll(ctx context.Context, x *exchange) (answer, error) {
	return f.enroll(ctx, x)
}

// enroll checks the request's form and hands it to the encoder, which verifies the signature and calls issue.
func (f *Front) enroll(ctx context.Context, x *exchange) (answer, error) {
	der, err := readCSR(x.request)
	if err != nil {
		return answer{}, err
	}
	if x.csr, err = inspectCSR(der); err != nil {
		return answer{}, err
	}
	return f.encode(ctx, x, wire.OpSimpleEnroll, wire.TypeCertsOnly, der)
}

// issue finds out who asks, lets the registration authority decide, and sets x.issued.
func (f *Front) issue(ctx context.Context, x *exchange, csr *x509.CertificateRequest) error {
	requester, err := f.auth.Authenticate(ctx, auth.Request{
		Label: x.label, Renew: x.renew, TLS: x.request.TLS, Authorization: x.request.Header["Authorization"],
	})
	if err != nil {
		return f.throttled(x, err)
	}
	x.requester = requester
	if err := checkBinding(x.request.TLS, x.csr); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &Error{Kind: Stopped, Detail: "the request was given up", Err: err}
	}
	// From here on things become durable. A device that hangs up must not leave them half done: its repeat gets this certificate.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), issueTimeout)
	defer cancel()
	x.issued, err = f.book.Enroll(ctx, requester, x.label, csr, x.renew)
	return err
}

// throttled counts a wrong code and turns the error into a slower one when there were too many from this address.
func (f *Front) throttled(x *exchange, err error) error {
	var refused *registration.Error
	if x.renew || len(x.request.Header["Authorization"]) == 0 || !errors.As(err, &refused) || refused.Kind != registration.NotAuthenticated {
		return err
	}
	if f.failures.failed(x.request.RemoteAddr) {
		return &Error{Kind: RateLimited, Detail: "too many wrong enrollment codes from this address", Err: err}
	}
	return err
}
