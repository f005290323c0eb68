// From a request to an answer. A state is looked up for every request; only the signature over an unchanged state is kept.

package ocsp

import (
	"context"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"time"

	"github.com/natal-pki/natal/internal/clock"
)

const (
	// Validity is how long an answer may be relied on, from the moment it is made: nextUpdate.
	Validity = time.Hour
	// backdate makes a new answer acceptable to a client whose clock runs behind, as for CRLs.
	backdate = 5 * time.Minute
	// keep is how long a signed answer is given out again: whoever gets it can use it for half an hour at least.
	keep = Validity / 2
	// generation is how many signed answers are kept before those not asked for since are dropped; two generations are kept.
	generation = 8192
)

// Response is an answer, ready to send.
type Response struct {
	DER     []byte
	Outcome string
	Err     error // what the client is not told
	Signed  bool  // just now, as opposed to before

	// Of a signed answer that others may get too; zero values otherwise.
	Shared     bool
	ETag       string
	ProducedAt time.Time
	ThisUpdate time.Time
	NextUpdate time.Time
}

// Authority is what is needed to answer for one CA.
type Authority struct {
	Issuer *Issuer
	Signer *Signer
	// Status says what is recorded about a serial number of this CA. Any error is answered by tryLater: what cannot be read is never good.
	Status func(ctx context.Context, serial *big.Int) (Status, error)
}

// Responder answers requests. It is safe for concurrent use.
type Responder struct {
	clock *clock.Clock
	log   *slog.Logger

	mu       sync.Mutex
	newer    map[string]*kept
	older    map[string]*kept
	complain time.Time
}

// kept is a signed answer and what it was made from.
type kept struct {
	status   Status
	signer   *Signer
	response Response
}

// NewResponder returns a Responder.
func NewResponder(c *clock.Clock, log *slog.Logger) *Responder {
	return &Responder{clock: c, log: log, newer: map[string]*kept{}}
}

// Respond answers one request about certificates of a. It always returns an answer.
func (r *Responder) Respond(ctx context.Context, a Authority, der []byte) Response {
	request, err := ParseRequest(der)
	if err != nil {
		return failed(OutcomeMalformed, err)
	}
	now := r.clock.Now()
	if end := a.Signer.Certificate.NotAfter; now.After(end) {
		return r.Later(a.Issuer.Name, fmt.Errorf("the OCSP signer's certificate ended at %s", end.Format(time.RFC3339)))
	}
	if now.Before(a.Signer.Certificate.NotBefore) {
		return r.Later(a.Issuer.Name, fmt.Errorf("the OCSP signer's certificate begins at %s", a.Signer.Certificate.NotBefore.Format(time.RFC3339)))
	}
	statuses := make([]Status, len(request.certificates))
	for i := range request.certificates {
		id := &request.certificates[i]
		if !a.Issuer.is(id) || id.serial.Sign() <= 0 {
			continue // unknown: "the request indicates an unrecognized issuer that is not served by this responder" (RFC 6960 section 2.2)
		}
		if statuses[i], err = a.Status(ctx, id.serial); err != nil {
			return r.Later(a.Issuer.Name, err)
		}
	}
	response, err := r.answer(a, request, statuses, now)
	if err != nil {
		return r.Later(a.Issuer.Name, err)
	}
	return response
}

func failed(outcome string, err error) Response {
	response := Failure(outcome)
	response.Err = err
	return response
}

// complaints is how often a lasting failure is logged.
const complaints = 10 * time.Second

// Later is the answer while something that is needed is not there.
func (r *Responder) Later(ca string, err error) Response {
	r.mu.Lock()
	now := time.Now()
	say := now.Sub(r.complain) >= complaints
	if say {
		r.complain = now
	}
	r.mu.Unlock()
	if say {
		r.log.Error("ocsp answers tryLater", "ca", ca, "error", err)
	}
	return failed(OutcomeTryLater, err)
}

func (r *Responder) answer(a Authority, request *Request, statuses []Status, now time.Time) (Response, error) {
	status := statuses[0]
	shared := len(statuses) == 1 && !request.Nonce() && status.State != Unknown
	if !shared {
		return r.sign(a, request, statuses, now)
	}
	key := a.Issuer.Name + "/" + string(request.certificates[0].raw)
	if k := r.find(key); k != nil && k.status == status && k.signer == a.Signer && !now.Before(k.response.ProducedAt) && now.Sub(k.response.ProducedAt) < keep && now.Before(k.response.NextUpdate) {
		response := k.response
		response.Signed = false
		return response, nil
	}
	response, err := r.sign(a, request, statuses, now)
	if err != nil {
		return Response{}, err
	}
	response.Shared, response.ETag = true, etag(response.DER)
	r.store(key, &kept{status: status, signer: a.Signer, response: response})
	return response, nil
}

func (r *Responder) find(key string) *kept {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.newer[key]; k != nil {
		return k
	}
	k := r.older[key]
	if k != nil {
		r.put(key, k)
	}
	return k
}

func (r *Responder) store(key string, k *kept) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(key, k)
}

// put is called with mu held.
func (r *Responder) put(key string, k *kept) {
	if len(r.newer) >= generation {
		r.older, r.newer = r.newer, make(map[string]*kept, generation)
	}
	r.newer[key] = k
}

// sign makes an answer. Its times have whole seconds; nextUpdate lies neither beyond the signer's end nor beyond that of a good certificate.
func (r *Responder) sign(a Authority, request *Request, statuses []Status, now time.Time) (Response, error) {
	response := Response{Outcome: statuses[0].State.String(), ProducedAt: now.Truncate(time.Second)}
	response.ThisUpdate = now.Add(-backdate).Truncate(time.Second)
	response.NextUpdate = earlier(now.Add(Validity).Truncate(time.Second), a.Signer.Certificate.NotAfter)
	answers := make([]single, len(statuses))
	for i, status := range statuses {
		answers[i] = single{id: request.certificates[i].raw, status: status, thisUpdate: response.ThisUpdate, nextUpdate: response.NextUpdate}
		if status.State == Good {
			answers[i].nextUpdate = earlier(response.NextUpdate, time.Unix(status.NotAfter, 0))
		}
		if i == 0 {
			response.NextUpdate = answers[0].nextUpdate
		}
	}
	var err error
	response.DER, err = a.Signer.respond(response.ProducedAt, answers, request.nonce)
	response.Signed = true
	return response, err
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b.UTC()
	}
	return a
}
