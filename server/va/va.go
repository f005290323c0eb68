// Package va is a validation authority standing alone: it answers OCSP requests with keys of its own, and gives out CA certificates and CRLs. What it says it
// reads, from the records of the installation or from a mirror of published files; it writes nothing and the CA never connects to it.
//
// It issues nothing, revokes nothing and holds no CA key.
//
//	va.go      Authority: one desk for each CA that it has a certificate of
//	keys.go    the directory of its keys and certificates
//	files.go   /ca and /crl from a mirror
package va

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/server/mirror"
)

// Config is what New needs. Either Mirror or Records is given.
type Config struct {
	Keys       string // directory
	Passphrase []byte
	Mirror     string          // directory of published files
	MaxAge     time.Duration   // of what is published
	Records    *ca.Authorities // of a database that is only read
	Clock      *clock.Clock
	Log        *slog.Logger
}

// Authority answers for the CAs that it has certificates of. It is safe for concurrent use.
type Authority struct {
	cfg       Config
	responder *ocsp.Responder

	mu    sync.RWMutex
	desks map[string]*desk
}

// desk is what is needed to answer for one CA.
type desk struct {
	stamp  string // of the files that it was read from
	issuer *ocsp.Issuer
	signer *ocsp.Signer
	reader *mirror.Reader // nil with records
	behind error          // why the last look at the mirror found nothing better
}

// New reads the keys. A directory without any is an error; a certificate that does not serve is one too.
func New(cfg Config) (*Authority, error) {
	a := &Authority{cfg: cfg, responder: ocsp.NewResponder(cfg.Clock, cfg.Log), desks: map[string]*desk{}}
	if err := a.readKeys(); err != nil {
		return nil, err
	}
	if len(a.desks) == 0 {
		return nil, fmt.Errorf("%s holds no certificate: see `est-server va csr` and `est-server ca sign-ocsp`", cfg.Keys)
	}
	a.follow()
	return a, nil
}

const (
	followEvery = 300 * time.Millisecond
	keysEvery   = 2 * time.Second
	warnEvery   = time.Hour
)

// Run follows the mirror and the keys until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	var keys, warned time.Time
	for ctx.Err() == nil {
		a.follow()
		if now := time.Now(); now.Sub(keys) >= keysEvery {
			keys = now
			if err := a.readKeys(); err != nil {
				a.cfg.Log.Error("keys not read; what was read before stays", "dir", a.cfg.Keys, "error", err)
			}
			if now.Sub(warned) >= warnEvery {
				warned = now
				a.warn()
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(followEvery):
		}
	}
	return nil
}

// follow takes what is new in the mirror.
func (a *Authority) follow() {
	for name, d := range a.all() {
		if d.reader == nil {
			continue
		}
		err := d.reader.Update()
		a.mu.Lock()
		if err != nil && (d.behind == nil || d.behind.Error() != err.Error()) {
			a.cfg.Log.Warn("mirror not read; what was read before stays", "ca", name, "error", err)
		}
		d.behind = err
		a.mu.Unlock()
	}
}

func (a *Authority) warn() {
	now := a.cfg.Clock.Now()
	for name, d := range a.all() {
		c := d.signer.Certificate
		if now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)) {
			a.cfg.Log.Warn("the certificate for OCSP answers ends soon: have the request of `est-server va csr "+name+"` signed", "ca", name, "not_after", c.NotAfter)
		}
	}
}

func (a *Authority) all() map[string]*desk {
	a.mu.RLock()
	defer a.mu.RUnlock()
	out := make(map[string]*desk, len(a.desks))
	for name, d := range a.desks {
		out[name] = d
	}
	return out
}

// OCSP answers a request about certificates of the CA name; the error is for a CA that this authority does not answer for.
func (a *Authority) OCSP(ctx context.Context, name string, request []byte) (ocsp.Response, error) {
	a.mu.RLock()
	d := a.desks[name]
	a.mu.RUnlock()
	if d == nil {
		return ocsp.Response{}, fmt.Errorf("no certificate for CA %q", name)
	}
	if a.cfg.Records != nil {
		return a.cfg.Records.OCSPBy(ctx, name, func() *ocsp.Signer { return d.signer }, request)
	}
	response := a.responder.Respond(ctx, ocsp.Authority{Issuer: d.issuer, Signer: d.signer, Status: func(_ context.Context, serial *big.Int) (ocsp.Status, error) {
		return d.reader.Status(serial, a.cfg.Clock.Now())
	}}, request)
	return response, nil
}

// Names are the CAs that the authority answers for.
func (a *Authority) Names() []string {
	var names []string
	for name := range a.all() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// State is what is shown of one CA.
type State struct {
	NotAfter    time.Time // of the authority's certificate
	PublishedAt time.Time // of what is read from the mirror; zero with records, and before anything was read
}

// States are those of all CAs, by name.
func (a *Authority) States() map[string]State {
	out := map[string]State{}
	for name, d := range a.all() {
		s := State{NotAfter: d.signer.Certificate.NotAfter}
		if d.reader != nil {
			s.PublishedAt = d.reader.PublishedAt()
		}
		out[name] = s
	}
	return out
}

// Ready says what keeps the authority from answering, for any of its CAs.
func (a *Authority) Ready(ctx context.Context) error {
	now := a.cfg.Clock.Now()
	var problems []error
	for name, d := range a.all() {
		if now.After(d.signer.Certificate.NotAfter) {
			problems = append(problems, fmt.Errorf("CA %s: the certificate for OCSP answers ended at %s", name, d.signer.Certificate.NotAfter.Format(time.RFC3339)))
		}
		if d.reader != nil {
			problems = append(problems, d.reader.Fresh(now))
		}
	}
	if a.cfg.Records != nil {
		_, err := a.cfg.Records.StatusNow(ctx)
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// newDesk puts together what was read from the directory of keys.
func (a *Authority) newDesk(name, stamp string, signer *ocsp.Signer, issuer *x509.Certificate, old *desk) (*desk, error) {
	i, err := ocsp.NewIssuer(name, issuer)
	if err != nil {
		return nil, err
	}
	d := &desk{stamp: stamp, issuer: i, signer: signer}
	if a.cfg.Mirror == "" {
		return d, nil
	}
	if old != nil && old.issuer.Certificate.Equal(issuer) {
		d.reader = old.reader
	} else {
		d.reader = mirror.NewReader(a.cfg.Mirror, name, issuer, a.cfg.MaxAge)
	}
	return d, nil
}
