// Package keystore opens and makes CA keys by URI. A key comes out as a crypto.Signer and never in any other form.
//
//	file:keys/devices.pem                                       PKCS#8, encrypted (PBES2: PBKDF2-HMAC-SHA256, AES-256-CBC), relative to the data directory
//	pkcs11:module-path=/usr/lib/m.so;token=T;object=devices?pin-source=/etc/pin    an object of a PKCS#11 token
//	tpmkms:name=devices;device=/dev/tpmrm0                      a key that only this machine's TPM can use
//	awskms:..., azurekms:..., cloudkms:...                      a key of a cloud service, where the binary was built for it
//
// The passphrase opens the files unattended, at every start; where it comes from is the server's affair. The other keys never leave the
// device or service that made them. Such a device is slow, is taken away or stops to answer: whoever signs with it waits for a bounded time
// and in a bounded queue, and what is known of it is kept up to date by Check.
//
//	keystore.go        Store: the keys of an installation, by URI
//	uri.go             reading URIs, and the URI of a key beside another
//	file.go pbes2.go   keys in encrypted files, and the format of those
//	remote.go          a key that is elsewhere: signing, and whether it can be used
//	backend.go         the token, TPM or service that holds keys: opened, lost, opened again
//	pin.go             the PIN of a token, and never the same wrong one twice
//	pkcs11.go tpm.go awskms.go azurekms.go cloudkms.go    what the backends are opened with
package keystore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// Specs are the kinds of key a CA may have.
var Specs = []string{"ec:P-256", "ec:P-384", "rsa:3072", "rsa:4096"}

// Errors of a Store.
var (
	ErrNotHere  = errors.New("the key is not there") // its file was taken away; its token can be used and does not hold it
	ErrExists   = errors.New("there is a key of this name already")
	ErrCaptive  = errors.New("the key cannot leave the device or service that made it")
	ErrBusy     = errors.New("too many signatures wait for this key")
	ErrNoAnswer = errors.New("no answer in time")
)

// Store holds the keys of an installation. It is safe for concurrent use.
type Store struct {
	dir        string
	passphrase []byte

	mu        sync.Mutex
	remotes   map[string]*remote  // by URI
	backends  map[string]*backend // by URI without what names a key
	libraries map[string]*library
}

// New returns the store of a data directory; the passphrase opens and encrypts its files.
func New(dir string, passphrase []byte) *Store {
	return &Store{dir: dir, passphrase: passphrase, remotes: map[string]*remote{}, backends: map[string]*backend{}, libraries: map[string]*library{}}
}

// Generate makes a key in memory.
func Generate(spec string) (crypto.Signer, error) {
	switch spec {
	case "ec:P-256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ec:P-384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa:3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "rsa:4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("key %q is not one of %s", spec, strings.Join(Specs, ", "))
}

// IsFile tells whether uri is that of a file; every other key is captive where it is.
func IsFile(uri string) bool { return strings.HasPrefix(uri, "file:") }

// Create makes a key of a spec at uri and returns it with the URI to open it by from then on. A file that is there is replaced; any other
// key never is: ErrExists.
func (s *Store) Create(uri, spec string) (key crypto.Signer, stored string, err error) {
	if IsFile(uri) {
		key, err = s.createFile(uri, spec)
		return key, uri, err
	}
	r, err := s.remote(uri)
	if err != nil {
		return nil, "", err
	}
	stored, err = r.create(spec)
	r.lookAgain()
	if err != nil {
		return nil, "", err
	}
	key, err = s.Open(stored)
	return key, stored, err
}

// Vacant returns nil if a key could be made at uri: its token can be used, and holds no key of that name.
func (s *Store) Vacant(uri string) error {
	if IsFile(uri) {
		return nil
	}
	r, err := s.remote(uri)
	if err != nil {
		return err
	}
	return r.vacant()
}

// Open returns the key at uri.
func (s *Store) Open(uri string) (crypto.Signer, error) {
	if IsFile(uri) {
		return s.openFile(uri)
	}
	r, err := s.remote(uri)
	if err != nil {
		return nil, err
	}
	if err := r.state(); err != nil {
		return nil, err
	}
	return r, nil
}

// Exists tells whether there is a key at uri: of a file that it is there, of any other key that it could be used a moment ago. It does not wait for a
// token that hangs while somebody keeps an eye on it with Check.
func (s *Store) Exists(uri string) bool {
	if IsFile(uri) {
		return s.fileExists(uri)
	}
	r, err := s.remote(uri)
	return err == nil && r.stateWithin(watchedFor) == nil
}

// Check looks whether the key at uri, which is not a file, can be used now, and opens its token anew where that may help. It takes a few
// seconds at most.
func (s *Store) Check(uri string) error {
	r, err := s.remote(uri)
	if err != nil {
		return err
	}
	return r.check()
}

// Export writes the encrypted key at uri to the file out and reads it back. A file that holds just this already is as good; any other
// is left alone, with an error.
func (s *Store) Export(uri, out string) error {
	if !IsFile(uri) {
		return ErrCaptive
	}
	return s.exportFile(uri, out)
}

// Remove takes the key file at uri from the store.
func (s *Store) Remove(uri string) error {
	if !IsFile(uri) {
		return ErrCaptive
	}
	return s.removeFile(uri)
}

// Close ends the sessions with all tokens. No key of the store is used afterwards.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.libraries {
		bounded(closeLimit, nil, func() (struct{}, error) { l.close(); return struct{}{}, nil })
	}
}

// Patient returns a signer that waits longer for its turn than others do, for signatures that many rely on, such as a CRL's.
func Patient(key crypto.Signer) crypto.Signer {
	if r, ok := key.(*remote); ok {
		return patient{r}
	}
	return key
}

// IsBusy tells whether so many wait for the key that a further signature would be refused.
func IsBusy(key crypto.Signer) bool {
	r, ok := key.(*remote)
	return ok && r.backend.waiting.Load() >= queueLength
}

// Path is the file of a file's URI, "" for any other.
func (s *Store) Path(uri string) string {
	path, _ := s.filePath(uri)
	return path
}

// Shown is a URI for people: without where the PIN is.
func Shown(uri string) string { return shown(uri) }
