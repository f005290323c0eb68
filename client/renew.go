// When to renew and when to try again, and the whole of an enrollment on a Store.

package client

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"time"

	"github.com/natal-pki/natal/internal/wire"
)

// renewSpread is the part of a lifetime over which devices spread: those born in one hour must not come back in one.
const renewSpread = 0.2

// RenewAt is when to renew cert: at two thirds of its lifetime, up to a tenth of it earlier or later. The deviation comes from the certificate
// itself, so that a restart does not draw it anew.
func RenewAt(cert *x509.Certificate) time.Time {
	sum := sha256.Sum256(cert.Raw)
	uniform := float64(binary.BigEndian.Uint64(sum[:])) / math.MaxUint64
	lifetime := cert.NotAfter.Sub(cert.NotBefore)
	return cert.NotBefore.Add(time.Duration(float64(lifetime) * (2.0/3 + renewSpread*(uniform-0.5)))).Truncate(time.Second)
}

// Backoff says how long to wait after a failure. The zero value is ready for use, by one goroutine.
//
// After the n-th failure in a row the wait is uniform between half of Min and Min*2^(n-1), at most Max. After a refusal (401, 403) it
// is Refused, give or take a tenth: an operator has to act first. It is never shorter than the server's Retry-After.
type Backoff struct {
	Min     time.Duration // 0 is 1 s
	Max     time.Duration // 0 is 15 min
	Refused time.Duration // 0 is 15 min

	failures int
}

// Next is the wait after err.
func (b *Backoff) Next(err error) time.Duration {
	shortest, longest, refused := orDefault(b.Min, time.Second), orDefault(b.Max, 15*time.Minute), orDefault(b.Refused, 15*time.Minute)
	ceiling := longest
	if b.failures < 32 && shortest < longest>>b.failures {
		ceiling = shortest << b.failures
	}
	b.failures++
	wait := shortest/2 + spread(ceiling-shortest/2)
	if Refused(err) {
		wait = refused - refused/10 + spread(refused/5)
	}
	if e := new(Error); errors.As(err, &e) && e.RetryAfter > 0 {
		wait = max(wait, e.RetryAfter+spread(e.RetryAfter/10))
	}
	return wait
}

// Reset is called after a success.
func (b *Backoff) Reset() { b.failures = 0 }

func orDefault(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// spread is uniform in [0, d).
func spread(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

// Enroll obtains the first certificate with c (see Client.Enroll), keeps it and proves it. The key is of the preferred spec (see GenerateKey) unless
// the server's CSR attributes ask for another; it is on flash before the request leaves, and stays there if there is no answer, so
// that calling Enroll again repeats the same request.
func (s *Store) Enroll(ctx context.Context, c *Client, preferred string, req Request) (*Identity, error) {
	defer s.Close()
	id, err := c.enrollFirst(ctx, s.stage(preferred), req)
	if err != nil {
		return nil, err
	}
	return s.keep(ctx, c, id)
}

// Renew obtains a successor of the pair in force, authenticated by that pair and by nothing else, with a new key
// (see Client.Reenroll). Of c it uses the server, the label and the trust. The pair in force stays in force until the new one
// is complete on flash, and stays on flash until the new one has been accepted once.
func (s *Store) Renew(ctx context.Context, c *Client, preferred string, req Request) (*Identity, error) {
	defer s.Close()
	current, err := s.Load()
	if err != nil {
		return nil, err
	}
	renewing := c.withCertificate(s.TLSCertificate)
	defer renewing.Close()
	id, err := renewing.reenroll(ctx, s.stage(preferred), req)
	if err != nil {
		return nil, err
	}
	if err := s.Confirm(current.Certificate); err != nil { // a certificate that renewed itself works
		return nil, err
	}
	return s.keep(ctx, c, id)
}

func (s *Store) stage(preferred string) keyChoice {
	return func(a Attributes) (crypto.Signer, error) { return s.Stage(a.ChooseKey(preferred)) }
}

// keep commits id, then tries to prove it. That the proof fails, because the server went away just now, is no error: the next use will do.
func (s *Store) keep(ctx context.Context, c *Client, id *Identity) (*Identity, error) {
	if err := s.Commit(id); err != nil {
		return nil, err
	}
	s.Prove(ctx, c)
	return id, nil
}

// Prove presents the pair in force to the server of c once, in a handshake of its own, and confirms it if it is accepted.
func (s *Store) Prove(ctx context.Context, c *Client) error {
	probe := c.withCertificate(s.TLSCertificate)
	defer probe.Close()
	if err := probe.authenticate(ctx); err != nil {
		return err
	}
	a, err := probe.exchange(ctx, request{operation: wire.OpCACerts, mediaType: wire.TypePKCS7})
	if err != nil {
		return err
	}
	if a.presented == nil {
		return &Error{Operation: wire.OpCACerts, Reason: "no_certificate", Message: "the server did not ask for a certificate"}
	}
	return s.Confirm(a.presented)
}
