// The validation authority's side: what cannot be verified is not used, and what is too old is not believed.

package mirror

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path/filepath"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca/ocsp"
)

// maxAhead is how far the publisher's clock may run before the reader's.
const maxAhead = 5 * time.Minute

// Reader follows what is published of one CA. It is safe for concurrent use.
type Reader struct {
	name   string
	dir    string
	issuer *x509.Certificate
	maxAge time.Duration

	updating sync.Mutex
	seen     []byte // head.json as it was read last

	mu    sync.RWMutex
	head  head
	table *table // nil: nothing could be read yet
}

// NewReader reads the mirror in dir for the CA called name, whose certificate the reader's operator has from the CA itself. What was published longer
// than maxAge ago is not believed.
func NewReader(dir, name string, issuer *x509.Certificate, maxAge time.Duration) *Reader {
	return &Reader{name: name, dir: filepath.Join(dir, "status", name), issuer: issuer, maxAge: maxAge}
}

// Update takes what is new. With an error, what was read before stays.
func (r *Reader) Update() error {
	r.updating.Lock()
	defer r.updating.Unlock()
	content, err := readFile(filepath.Join(r.dir, headFile), maxHead)
	if err != nil {
		return err
	}
	if r.seen != nil && bytes.Equal(content, r.seen) {
		return nil
	}
	next, signer, err := openHead(content, r.name, r.issuer)
	if err != nil {
		return fmt.Errorf("%s: %w", headFile, err)
	}
	r.mu.RLock()
	last, table := r.head, r.table
	r.mu.RUnlock()
	if table != nil && next.Sequence < last.Sequence {
		return fmt.Errorf("%s: number %d is older than number %d, which was here before", headFile, next.Sequence, last.Sequence)
	}
	if table != nil && table.revoked(signer.SerialNumber) {
		return errSignerRevoked
	}
	if table != nil && next.Generation == last.Generation && next.Snapshot == last.Snapshot && next.Segments >= last.Segments {
		records, err := next.readSegments(r.dir, last.Segments, last.NewestDigest)
		if errors.Is(err, fs.ErrNotExist) { // not here yet
			return err
		}
		if err == nil {
			if newTable(nil).with(records).revoked(signer.SerialNumber) {
				return errSignerRevoked
			}
			r.mu.Lock()
			r.table.apply(records)
			r.head = next
			r.mu.Unlock()
			r.seen = content
			return nil
		}
	}
	loaded, err := next.load(r.dir)
	if err != nil {
		return err
	}
	if loaded.revoked(signer.SerialNumber) {
		return errSignerRevoked
	}
	r.mu.Lock()
	r.head, r.table = next, loaded
	r.mu.Unlock()
	r.seen = content
	return nil
}

// errSignerRevoked: whoever has a revoked signer's key may say anything.
var errSignerRevoked = errors.New(headFile + ": its signer is revoked")

// PublishedAt is when what is in use was published; zero if there is nothing.
func (r *Reader) PublishedAt() time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.head.PublishedAt
}

// Fresh says why what is in use cannot be believed at a time, or nil.
func (r *Reader) Fresh(now time.Time) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	switch age := now.Sub(r.head.PublishedAt); {
	case r.table == nil:
		return fmt.Errorf("CA %s: nothing is published that can be used", r.name)
	case age > r.maxAge:
		return fmt.Errorf("CA %s: what is published is %v old, %v is the limit", r.name, age.Truncate(time.Second), r.maxAge)
	case age < -maxAhead:
		return fmt.Errorf("CA %s: what is published is from %v ahead", r.name, -age.Truncate(time.Second))
	}
	return nil
}

// Status is how a serial number stands. An error means that nobody here can tell.
func (r *Reader) Status(serial *big.Int, now time.Time) (ocsp.Status, error) {
	if err := r.Fresh(now); err != nil {
		return ocsp.Status{}, err
	}
	key, ok := serialKey(serial)
	if !ok {
		return ocsp.Status{}, nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	record, found := r.table.find(key)
	if !found {
		return ocsp.Status{}, nil
	}
	return decode(record, now), nil
}
