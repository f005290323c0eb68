// OCSP: what the records say about a serial number, signed by a delegated signer of the CA (ocsp_signer.go). The encoding is package ocsp's.

package ca

import (
	"context"
	"errors"
	"math/big"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca/ocsp"
)

// responders is what is in memory for OCSP.
type responders struct {
	responder *ocsp.Responder

	mu    sync.Mutex
	desks map[string]*ocspDesk // by CA
}

// desk returns the CA's desk, made anew when the CA's certificate is another one.
func (r *responders) desk(au *authority) (*ocspDesk, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.desks[au.row.Name]
	if d != nil && d.issuer.Certificate.Equal(au.certificate) {
		return d, nil
	}
	issuer, err := ocsp.NewIssuer(au.row.Name, au.certificate)
	if err != nil {
		return nil, err
	}
	d = &ocspDesk{issuer: issuer}
	r.desks[au.row.Name] = d
	return d, nil
}

// answersOCSP: a CA answers while it signs CRLs. One that is retired or revoked has nothing more to say: what it issued has ended, or counts no more.
func (au *authority) answersOCSP() bool {
	return au.certificate != nil && au.inForce()
}

// OCSP answers a request about certificates of the CA name. The error is NotFound, for a CA that is not there or has no certificate yet; every
// other failure is an answer: unauthorized from a CA that is retired or revoked, tryLater while its records, its signer or the clock
// cannot be relied on.
func (a *Authorities) OCSP(ctx context.Context, name string, request []byte) (ocsp.Response, error) {
	return a.answerOCSP(ctx, name, nil, request)
}

// OCSPBy is OCSP signed by a signer that is kept elsewhere; without one the answer is tryLater.
func (a *Authorities) OCSPBy(ctx context.Context, name string, signer func() *ocsp.Signer, request []byte) (ocsp.Response, error) {
	return a.answerOCSP(ctx, name, signer, request)
}

func (a *Authorities) answerOCSP(ctx context.Context, name string, current func() *ocsp.Signer, request []byte) (ocsp.Response, error) {
	au, err := a.authority(ctx, name)
	switch {
	case isKind(err, NotFound):
		return ocsp.Response{}, err
	case err != nil:
		return a.ocsp.responder.Later(name, err), nil
	case au.certificate == nil:
		return ocsp.Response{}, refuse(NotFound, "ca_waiting", "CA %q waits for its certificate", name)
	case !au.answersOCSP():
		return ocsp.Failure(ocsp.OutcomeUnauthorized), nil
	}
	if err := a.checkClock(ctx); err != nil {
		return a.ocsp.responder.Later(name, err), nil
	}
	desk, err := a.ocsp.desk(au)
	if err != nil {
		return ocsp.Failure(ocsp.OutcomeInternal), nil
	}
	if current == nil {
		current = desk.current
	}
	signer := current()
	if signer == nil {
		return a.ocsp.responder.Later(name, errNoSigner), nil
	}
	response := a.ocsp.responder.Respond(ctx, ocsp.Authority{
		Issuer: desk.issuer, Signer: signer,
		Status: func(ctx context.Context, serial *big.Int) (ocsp.Status, error) {
			return a.OCSPStatus(ctx, name, serial)
		},
	}, request)
	if errors.Is(response.Err, ocsp.ErrKey) {
		desk.forget(signer)
	}
	return response, nil
}

var errNoSigner = errors.New("the CA has no OCSP signer now")

// OCSPStatus says how a serial number of a CA stands: good if it was issued and has not ended; revoked if it was revoked or is held, ended or
// not, signed or only about to be; else unknown.
func (a *Authorities) OCSPStatus(ctx context.Context, issuer string, serial *big.Int) (ocsp.Status, error) {
	var r certificateStatus
	err := a.db.Get(ctx, &r, "SELECT "+statusColumns+" FROM certificates WHERE serial = ? AND issuer = ?", SerialHex(serial), issuer)
	if isNoRows(err) {
		return ocsp.Status{}, nil
	}
	if err != nil {
		return ocsp.Status{}, unavailable("read certificate status", err)
	}
	return r.at(a.clock.Now()), nil
}

const statusColumns = "state, reason, revoked_at, not_after"

type certificateStatus struct {
	State     string `db:"state"`
	Reason    string `db:"reason"`
	RevokedAt int64  `db:"revoked_at"`
	NotAfter  int64  `db:"not_after"`
}

func (r *certificateStatus) at(now time.Time) ocsp.Status {
	switch {
	case r.State == Revoked || r.State == Held:
		return ocsp.Status{State: ocsp.Revoked, RevokedAt: r.RevokedAt / 1000, Reason: reasons[r.Reason]}
	case r.State == Issued && !now.After(moment(r.NotAfter)):
		return ocsp.Status{State: ocsp.Good, NotAfter: r.NotAfter / 1000}
	}
	return ocsp.Status{}
}
