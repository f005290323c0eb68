// A key in a token, TPM or cloud service. A call into one of those cannot be interrupted and may never return: it runs in a goroutine
// of its own, and whoever needs it stops waiting after a while.

package keystore

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/tpm"
)

const (
	signLimit    = 5 * time.Second // of one signature, once it has its turn
	turnLimit    = 3 * time.Second // of waiting for the turn
	patientLimit = 30 * time.Second
	checkLimit   = 2500 * time.Millisecond // with the watch's interval of 2 s a dead token is known within 5 s
	createLimit  = 3 * time.Minute         // of making a key: a TPM takes a minute for RSA
	closeLimit   = 2 * time.Second
	checkedFor   = 5 * time.Second // how long the result of a check may be relied on
	watchedFor   = time.Minute     // by whoever only wants to show it
)

// proofMessage is what a key signs to show that it works again: never anything that could be taken for a certificate, CRL or OCSP response.
var proofMessage = []byte("natal: proof that the key works; of no meaning to anybody else")

// remote is a key that is elsewhere.
type remote struct {
	backend *backend
	uri     string

	checking chan struct{} // holds a token while a check is under way

	mu      sync.Mutex
	public  crypto.PublicKey // nil until the key was found for the first time
	failure error            // why it cannot be used; nil if it can, as far as is known
	checked time.Time        // when that was found out
}

var errUnchecked = errors.New("not looked for yet")

// remote returns what is known of the key at uri.
func (s *Store) remote(uri string) (*remote, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.remotes[uri]; r != nil {
		return r, nil
	}
	address, err := parseRemote(uri)
	if err != nil {
		return nil, err
	}
	b := s.backend(address)
	r := &remote{backend: b, uri: uri, checking: make(chan struct{}, 1), failure: errUnchecked}
	b.add(r)
	s.remotes[uri] = r
	return r, nil
}

// Public implements crypto.Signer.
func (r *remote) Public() crypto.PublicKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.public
}

// Sign implements crypto.Signer. A key that is known to be down is not tried.
func (r *remote) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return r.sign(turnLimit, random, digest, opts)
}

// patient is a remote key for whom waits longer.
type patient struct{ *remote }

// Sign implements crypto.Signer.
func (p patient) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return p.sign(patientLimit, random, digest, opts)
}

func (r *remote) sign(turn time.Duration, random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := r.known(); err != nil {
		return nil, err
	}
	leave, err := r.backend.enter(turn)
	if err != nil {
		return nil, err
	}
	signature, err := bounded(signLimit, &r.backend.library.hung, func() ([]byte, error) {
		defer leave()
		return r.backend.sign(r.uri, random, digest, opts)
	})
	if err != nil {
		r.settle(err)
	}
	return signature, err
}

// known is the result of the last check or signature.
func (r *remote) known() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failure
}

// isUp: it was found in order, and not too long ago.
func (r *remote) isUp() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failure == nil && time.Since(r.checked) < checkedFor+r.backend.address.pause
}

// state is known while that is fresh, else the result of a check.
func (r *remote) state() error { return r.stateWithin(checkedFor) }

func (r *remote) stateWithin(fresh time.Duration) error {
	r.mu.Lock()
	failure, recent := r.failure, time.Since(r.checked) < fresh
	r.mu.Unlock()
	if recent {
		return failure
	}
	return r.check()
}

func (r *remote) settle(failure error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure, r.checked = failure, time.Now()
}

// lookAgain: that the key was not there a moment ago is worth nothing after an attempt to make it.
func (r *remote) lookAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(r.failure, ErrNotHere) {
		r.failure, r.checked = errUnchecked, time.Time{}
	}
}

// check finds out whether the key can be used. One check runs at a time; while one hangs, the key is down.
func (r *remote) check() error {
	if r.rested() {
		return r.known()
	}
	select {
	case r.checking <- struct{}{}:
	case <-time.After(checkLimit):
		err := fmt.Errorf("%w: a look at the key has not come back", ErrNoAnswer)
		r.settle(err)
		return err
	}
	_, err := bounded(checkLimit, &r.backend.library.hung, func() (struct{}, error) {
		defer func() { <-r.checking }()
		err := r.look()
		r.settle(err)
		return struct{}{}, err
	})
	if errors.Is(err, ErrNoAnswer) {
		r.settle(err)
	}
	return err
}

// rested: a service that bills every call is not asked at each turn of the watch.
func (r *remote) rested() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.checked) < r.backend.address.pause
}

// look finds the key. One that was down has to prove that it signs, in a new session if need be; one that was up is only looked for, which costs
// its token no signature.
func (r *remote) look() error {
	wasUp := r.known() == nil
	public, err := r.backend.find(r.uri)
	if err == nil && !wasUp {
		err = r.backend.prove(r.uri, public)
	}
	if err != nil {
		if isMissing(err) && r.backend.works(r) { // of a token in which other keys are found, it is the only one that is lost
			return fmt.Errorf("%w: %s", ErrNotHere, shown(r.uri))
		}
		if again := r.backend.reopen(r); again != nil {
			return again
		}
		if public, err = r.backend.find(r.uri); isMissing(err) {
			return fmt.Errorf("%w: %s", ErrNotHere, shown(r.uri))
		}
		if err != nil {
			return err
		}
		if err = r.backend.prove(r.uri, public); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.public == nil {
		r.public = public
	}
	if !samePublic(r.public, public) {
		return errors.New("another key has taken its place")
	}
	return nil
}

// prove lets the key sign proofMessage.
func (b *backend) prove(uri string, public crypto.PublicKey) error {
	hash := crypto.SHA256
	curve, isEC := public.(*ecdsa.PublicKey)
	if isEC && curve.Params().BitSize > 256 {
		hash = crypto.SHA384
	}
	h := hash.New()
	h.Write(proofMessage)
	digest := h.Sum(nil)
	signature, err := b.sign(uri, rand.Reader, digest, hash)
	if err != nil {
		return err
	}
	valid := false
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(k, digest, signature)
	case *rsa.PublicKey:
		valid = rsa.VerifyPKCS1v15(k, hash, digest, signature) == nil
	}
	if !valid {
		return errors.New("the key signs wrongly")
	}
	return nil
}

func isMissing(err error) bool {
	return errors.Is(err, apiv1.NotFoundError{}) || errors.Is(err, tpm.ErrNotFound)
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// enter waits for a turn at the backend; leave ends it.
func (b *backend) enter(limit time.Duration) (leave func(), err error) {
	if b.waiting.Add(1) > queueLength && limit <= turnLimit {
		b.waiting.Add(-1)
		return nil, ErrBusy
	}
	defer b.waiting.Add(-1)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := b.turns.Acquire(ctx, 1); err != nil {
		return nil, ErrBusy
	}
	return func() { b.turns.Release(1) }, nil
}

// bounded runs f and stops waiting for it after limit. hung counts those that have not come back by then.
func bounded[T any](limit time.Duration, hung *counter, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	var late sync.Mutex
	abandoned, ended := false, false
	go func() {
		value, err := f()
		late.Lock()
		ended = true
		if abandoned && hung != nil {
			hung.Add(-1)
		}
		late.Unlock()
		done <- result{value, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-timer.C:
	}
	late.Lock()
	defer late.Unlock()
	if ended {
		r := <-done
		return r.value, r.err
	}
	abandoned = true
	if hung != nil {
		hung.Add(1)
	}
	var none T
	return none, fmt.Errorf("%w: not done after %v", ErrNoAnswer, limit)
}
