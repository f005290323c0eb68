// What holds keys: a PKCS#11 token, a TPM, a cloud service. It is opened when it is first needed, and again after it was lost.
//
// A PKCS#11 module has one state for all its tokens, and some modules see a token that came back only after they were ended and begun anew.
// That ends the sessions with the other tokens too, which are opened again at once: it is done freely while none of them works, and seldom
// while one does.

package keystore

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natal-pki/natal/internal/fault"
	"go.step.sm/crypto/kms/apiv1"
	"golang.org/x/sync/semaphore"
)

const (
	queueLength = 64               // signatures that wait for their turn at one backend
	openPause   = 1 * time.Second  // between two tries to open a backend
	resetPause  = 15 * time.Second // between two ends of a module in which another token works
)

type counter = atomic.Int64

// library is what is begun and ended as a whole.
type library struct {
	mu       sync.RWMutex // for reading: something of it is used; for writing: it is opened or closed
	backends []*backend
	hung     counter // calls that have not come back
	reset    time.Time
}

// backend is what its keys share: a session, a login, a queue.
type backend struct {
	library *library
	address address
	dir     string // data directory
	turns   *semaphore.Weighted
	waiting counter

	pin refusedPIN

	// Under library.mu.
	manager apiv1.KeyManager // nil while closed
	tried   time.Time
	failure error // of the last try

	mu      sync.Mutex
	remotes []*remote
	signers map[string]crypto.Signer // of manager, by URI
}

// backend is called with s.mu held.
func (s *Store) backend(a address) *backend {
	if b := s.backends[a.backend]; b != nil {
		return b
	}
	l := s.libraries[a.library]
	if l == nil {
		l = &library{}
		s.libraries[a.library] = l
	}
	b := &backend{library: l, address: a, dir: s.dir, turns: semaphore.NewWeighted(a.turns), signers: map[string]crypto.Signer{}}
	l.mu.Lock()
	l.backends = append(l.backends, b)
	l.mu.Unlock()
	s.backends[a.backend] = b
	return b
}

func (b *backend) add(r *remote) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.remotes = append(b.remotes, r)
}

// works tells whether any key of the backend but one is up.
func (b *backend) works(but *remote) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.remotes, func(r *remote) bool { return r != but && r.isUp() })
}

var errClosed = errors.New("not open")

// find returns the public half of the key at uri.
func (b *backend) find(uri string) (crypto.PublicKey, error) {
	b.library.mu.RLock()
	defer b.library.mu.RUnlock()
	if b.manager == nil {
		return nil, errClosed
	}
	return b.manager.GetPublicKey(&apiv1.GetPublicKeyRequest{Name: keyName(uri)})
}

func (b *backend) sign(uri string, random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	b.library.mu.RLock()
	defer b.library.mu.RUnlock()
	if b.manager == nil {
		return nil, errClosed
	}
	b.mu.Lock()
	signer := b.signers[uri]
	b.mu.Unlock()
	if signer == nil {
		var err error
		if signer, err = b.manager.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: keyName(uri)}); err != nil {
			return nil, err
		}
		b.mu.Lock()
		b.signers[uri] = signer
		b.mu.Unlock()
	}
	return signer.Sign(random, digest, opts)
}

// reopen ends the session and begins another. A backend that still works for another key is left alone.
func (b *backend) reopen(r *remote) error {
	if b.works(r) {
		return fmt.Errorf("%s: the key cannot be used, while others of its token can", b.address.shown)
	}
	l := b.library
	if l.hung.Load() > 0 { // to wait for it would keep the other tokens waiting too
		return fmt.Errorf("%w: %s: a call has still not come back", ErrNoAnswer, b.address.shown)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(b.tried) < openPause { // tried for another of its keys
		return b.failure
	}
	b.close()
	others := slices.ContainsFunc(l.backends, func(o *backend) bool { return o != b && o.manager != nil && o.works(r) })
	if !others {
		for _, o := range l.backends {
			o.close()
		}
	}
	if err := b.open(); err == nil || !others || errors.Is(err, errPIN) || time.Since(l.reset) < resetPause {
		return err
	}
	l.reset = time.Now()
	for _, o := range l.backends {
		o.close()
	}
	err := b.open()
	for _, o := range l.backends {
		if o != b {
			o.open() // a failure shows at the next check of its keys
		}
	}
	return err
}

// open is called with library.mu held.
func (b *backend) open() error {
	b.manager, b.failure = b.connect()
	if b.failure != nil {
		b.failure = fmt.Errorf("%s: %w", b.address.shown, b.failure)
	}
	b.tried = time.Now()
	return b.failure
}

func (b *backend) connect() (apiv1.KeyManager, error) {
	opener := openers[b.address.scheme]
	if opener == nil {
		return nil, notBuilt(b.address.scheme)
	}
	options := apiv1.Options{URI: b.address.backend, StorageDirectory: filepath.Join(b.dir, "keys", "tpm")}
	if b.address.scheme == "tpmkms" {
		if err := os.MkdirAll(options.StorageDirectory, 0o700); err != nil {
			return nil, err
		}
	}
	attempt, err := b.pin.read(b.address.pinSource)
	if err != nil {
		return nil, err
	}
	options.Pin = attempt.pin
	manager, err := opener(context.Background(), options)
	if err != nil && isPINRefused(err) {
		b.pin.refuse(attempt)
		err = fmt.Errorf("%w: %w", errPIN, err)
	}
	if err != nil {
		return nil, err
	}
	return manager, nil
}

// close is called with library.mu held.
func (b *backend) close() {
	if b.manager == nil {
		return
	}
	b.manager.Close() // whatever it says, there is nothing more to be done with it
	b.manager = nil
	b.mu.Lock()
	clear(b.signers)
	b.mu.Unlock()
}

func (l *library) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.backends {
		b.close()
	}
}

var algorithms = map[string]struct {
	algorithm apiv1.SignatureAlgorithm
	bits      int
}{
	"ec:P-256": {apiv1.ECDSAWithSHA256, 0},
	"ec:P-384": {apiv1.ECDSAWithSHA384, 0},
	"rsa:3072": {apiv1.SHA256WithRSA, 3072},
	"rsa:4096": {apiv1.SHA256WithRSA, 4096},
}

// create makes the key of r and returns the URI that finds just this one.
func (r *remote) create(spec string) (stored string, err error) {
	b := r.backend
	kind, ok := algorithms[spec]
	if !ok {
		return "", fmt.Errorf("key %q is not one of the kinds a CA may have", spec)
	}
	if b.address.pause > 0 {
		return "", errors.New("a key of a cloud service is made there, with its rights, and then used as an existing one")
	}
	leave, err := b.enter(patientLimit)
	if err != nil {
		return "", err
	}
	_, err = bounded(createLimit, &b.library.hung, func() (struct{}, error) {
		defer leave()
		stored, err = b.create(r, kind.algorithm, kind.bits)
		return struct{}{}, err
	})
	return stored, err
}

func (r *remote) vacant() error {
	b := r.backend
	if openers[b.address.scheme] == nil {
		return notBuilt(b.address.scheme)
	}
	_, err := bounded(checkLimit, &b.library.hung, func() (struct{}, error) {
		_, err := b.find(r.uri)
		if errors.Is(err, errClosed) {
			if err := b.reopen(r); err != nil {
				return struct{}{}, err
			}
			_, err = b.find(r.uri)
		}
		switch {
		case err == nil:
			return struct{}{}, ErrExists
		case isMissing(err):
			return struct{}{}, nil
		}
		return struct{}{}, err
	})
	return err
}

func (b *backend) create(r *remote, algorithm apiv1.SignatureAlgorithm, bits int) (stored string, err error) {
	uri := r.uri
	if _, err := b.find(uri); errors.Is(err, errClosed) {
		if err := b.reopen(r); err != nil {
			return "", err
		}
	}
	b.library.mu.RLock()
	defer b.library.mu.RUnlock()
	if b.manager == nil {
		return "", errClosed
	}
	if _, err := b.manager.GetPublicKey(&apiv1.GetPublicKeyRequest{Name: keyName(uri)}); err == nil {
		return "", ErrExists
	}
	stored = withID(uri)
	err = fault.Step("keystore.create_captive", func() error {
		_, err := b.manager.CreateKey(&apiv1.CreateKeyRequest{Name: keyName(stored), SignatureAlgorithm: algorithm, Bits: bits})
		return err
	})
	if errors.Is(err, apiv1.AlreadyExistsError{}) {
		return "", ErrExists
	}
	return stored, err
}
