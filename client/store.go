// The device's flash. A renewal is written beside what works, read back, and put in force by one rename; what worked
// before stays until the new pair has been accepted by a server once. So at every instant, and after a loss of power at
// any instant, there is a key with its certificate that loads.
//
//	DIR/a, DIR/b       the slots: bundle.pem, key.pem, cert.pem, proven
//	DIR/current        -> a or b, the pointer; replaced by rename
//	DIR/bundle.pem     -> current/bundle.pem; likewise key.pem and cert.pem: all three change in the same instant
//	DIR/next.key       the key of a request under way: an answer that was lost is asked for again with the same key
//	DIR/trust.pem      the roots that authenticate the EST server
//	DIR/lock           held while a renewal is under way

package client

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
)

// ErrNoIdentity is returned by a Store that holds no usable pair yet.
var ErrNoIdentity = errors.New("no certificate yet")

const (
	currentLink = "current"
	nextKeyFile = "next.key"
	trustFile   = "trust.pem"
	lockFile    = "lock"
)

// Store keeps one Identity in a directory. Its methods may be called concurrently. Several processes may read the
// same directory; one at a time can renew. All files are 0600, whatever the umask.
type Store struct {
	dir string

	mu     sync.Mutex
	lock   *os.File
	cached *Identity
	seen   fileVersion // what cached was read from
}

// fileVersion changes when the pointer is moved or a bundle is replaced.
type fileVersion struct {
	target string
	size   int64
	mtime  int64
}

// OpenStore opens the directory, making it (0700) if there is none, and finishes or undoes what a crash left half done.
func OpenStore(dir string) (*Store, error) {
	s := &Store{dir: dir}
	if err := s.makeDirs(); err != nil {
		return nil, err
	}
	for _, name := range []string{bundleFile, keyFile, certFile} {
		if info, err := os.Lstat(s.path(name)); err == nil && info.Mode()&os.ModeSymlink == 0 {
			return nil, fmt.Errorf("%s: there is a file of that name that this store did not make; use another directory", s.path(name))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.acquire(); err != nil {
		return s, nil // another process is at work here: reading is all we can do, and we can
	}
	defer s.release()
	if err := s.repair(); err != nil {
		return nil, fmt.Errorf("repair %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) makeDirs() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	private := []string{s.slot("a").dir, s.slot("b").dir}
	for _, dir := range private {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(entries, isForeign) {
		private = append(private, s.dir) // a directory that others use too keeps its mode
	}
	for _, dir := range private {
		if err := os.Chmod(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// isForeign reports whether a directory entry is not of a store's making.
func isForeign(entry os.DirEntry) bool {
	switch entry.Name() {
	case "a", "b", currentLink, bundleFile, keyFile, certFile, nextKeyFile, trustFile, lockFile:
		return false
	}
	return !strings.HasPrefix(entry.Name(), ".")
}

// Dir is the directory of the store.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) slot(name string) slot { return slot{dir: s.path(name)} }

// current is the name of the slot that the pointer names, or "".
func (s *Store) current() string {
	if target, err := os.Readlink(s.path(currentLink)); err == nil && (target == "a" || target == "b") {
		return target
	}
	return ""
}

func other(name string) string {
	if name == "a" {
		return "b"
	}
	return "a"
}

// Load reads the pair in force, or if its files are damaged the one before it. ErrNoIdentity means that there is none.
func (s *Store) Load() (*Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load()
}

func (s *Store) load() (*Identity, error) {
	id, _, err := s.best()
	if err != nil {
		s.cached = nil
		return nil, err
	}
	if anchors, err := s.Trust(); err == nil {
		id.Anchors = anchors
	}
	s.cached, s.seen = id, s.version()
	return id, nil
}

// best is the usable pair and its slot: the current one, else the other.
func (s *Store) best() (*Identity, string, error) {
	first := s.current()
	if first == "" {
		first = s.newer()
	}
	id, err := s.slot(first).read()
	if err == nil {
		return id, first, nil
	}
	if id, otherErr := s.slot(other(first)).read(); otherErr == nil {
		return id, other(first), nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, "", ErrNoIdentity
	}
	return nil, "", fmt.Errorf("%w: %w", ErrNoIdentity, err)
}

// newer serves when the pointer is lost: the slot with the later certificate.
func (s *Store) newer() string {
	a, errA := s.slot("a").read()
	b, errB := s.slot("b").read()
	if errA != nil || (errB == nil && b.Certificate.NotBefore.After(a.Certificate.NotBefore)) {
		return "b"
	}
	return "a"
}

func (s *Store) version() fileVersion {
	target := s.current()
	v := fileVersion{target: target}
	if info, err := os.Stat(s.slot(target).path(bundleFile)); err == nil {
		v.size, v.mtime = info.Size(), info.ModTime().UnixNano()
	}
	return v
}

// Stage returns the key of the request under way, making one of this spec (see GenerateKey) if there is none. The key is
// on flash before it is returned, so that the same request can be repeated after a crash. From here to Commit or Close no other
// process can renew in this directory.
func (s *Store) Stage(spec string) (crypto.Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.acquire(); err != nil {
		return nil, err
	}
	if key, err := s.nextKey(); err == nil && KeySpec(key.Public()) == spec && !s.inUse(key.Public()) {
		return key, nil
	}
	key, err := GenerateKey(spec)
	if err != nil {
		return nil, err
	}
	data, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	if err := fault.Step("client.stage", func() error { return atomicfile.Write(s.path(nextKeyFile), data, 0o600) }); err != nil {
		return nil, fmt.Errorf("keep the new key: %w", err)
	}
	return s.nextKey()
}

func (s *Store) nextKey() (crypto.Signer, error) {
	data, err := os.ReadFile(s.path(nextKeyFile))
	if err != nil {
		return nil, err
	}
	return ParsePrivateKey(data)
}

func (s *Store) inUse(public crypto.PublicKey) bool {
	id, _, err := s.best()
	return err == nil && sameKey(id.Key.Public(), public)
}

// Commit puts id in force: written to the free slot, read back, switched to by one rename. The pair before stays. An error
// leaves in force one of the two, whole; Commit may be repeated.
func (s *Store) Commit(id *Identity) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.load()
	if err := s.acquire(); err != nil {
		return err
	}
	defer s.release()
	if len(id.Anchors) > 0 {
		if err := s.setTrust(id.Anchors); err != nil {
			return err
		}
	}
	target, err := s.freeSlot()
	if err != nil {
		return err
	}
	if err := s.slot(target).write(id); err != nil {
		return fmt.Errorf("keep the new certificate: %w", err)
	}
	if err := s.link(); err != nil {
		return err
	}
	if err := s.switchTo(target); err != nil {
		return err
	}
	return s.unstage()
}

// freeSlot chooses the slot that may be overwritten. That is never the last one known to work: when the current pair has
// not been accepted by any server yet and the one before it loads, the one before becomes current again first.
func (s *Store) freeSlot() (string, error) {
	_, current, err := s.best()
	if err != nil {
		return "a", nil
	}
	if s.slot(current).proven() {
		return other(current), nil
	}
	if _, err := s.slot(other(current)).read(); err != nil {
		return other(current), nil
	}
	return current, s.switchTo(other(current))
}

func (s *Store) unstage() error {
	return fault.Step("client.unstage", func() error { return removeFile(s.path(nextKeyFile)) })
}

// Confirm notes that a server has accepted cert in a completed handshake; from then on the pair before it may be
// overwritten. A certificate that is not in force is ignored.
func (s *Store) Confirm(cert *x509.Certificate) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, name, err := s.best()
	if err != nil || !id.Certificate.Equal(cert) || s.slot(name).proven() {
		return nil
	}
	return s.slot(name).prove()
}

// Proven reports whether the pair in force has been confirmed.
func (s *Store) Proven() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, name, err := s.best()
	return err == nil && s.slot(name).proven()
}

// Trust reads DIR/trust.pem.
func (s *Store) Trust() ([]*x509.Certificate, error) {
	data, err := os.ReadFile(s.path(trustFile))
	if err != nil {
		return nil, err
	}
	anchors, err := ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path(trustFile), err)
	}
	return anchors, nil
}

// SetTrust replaces DIR/trust.pem. Give it only what an authenticated server said, or what was pinned in the factory.
func (s *Store) SetTrust(anchors []*x509.Certificate) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.setTrust(anchors)
}

func (s *Store) setTrust(anchors []*x509.Certificate) error {
	data := certificatesPEM(anchors)
	if have, err := os.ReadFile(s.path(trustFile)); err == nil && string(have) == string(data) {
		return nil
	}
	err := fault.Step("client.trust", func() error { return atomicfile.Write(s.path(trustFile), data, 0o600) })
	if err != nil {
		return fmt.Errorf("keep the trust anchors: %w", err)
	}
	return nil
}

// Close lets another process renew in this directory. The Store can still be read.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release()
	return nil
}

// TLSCertificate is the pair in force, for Client.Certificate. It follows renewals, those of another process too.
func (s *Store) TLSCertificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.cached
	if id == nil || s.version() != s.seen {
		var err error
		if id, err = s.load(); err != nil {
			return nil, err
		}
	}
	return id.TLSCertificate(), nil
}

// TLSConfig is for connections to a service such as an MQTT broker, which roots authenticate under serverName. Each new connection presents
// the pair that is then in force, so a renewal needs no restart. TLS 1.2 and 1.3.
func (s *Store) TLSConfig(serverName string, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: serverName,
		RootCAs:    roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.TLSCertificate()
		},
	}
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
