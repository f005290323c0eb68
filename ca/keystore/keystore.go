// Package keystore opens and makes CA keys by URI. A key comes out as a crypto.Signer and never in any other form.
//
//	file:keys/devices.pem    PKCS#8, encrypted (PBES2: PBKDF2-HMAC-SHA256, AES-256-CBC), relative to the data directory
//
// The passphrase opens the keys unattended, at every start; where it comes from is the server's affair.
//
//	keystore.go    Store: the keys of an installation, by URI
//	uri.go         reading URIs, and the URI of a key beside another
//	file.go        keys in encrypted files
//	pbes2.go       the format of those files
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
)

// Specs are the kinds of key a CA may have.
var Specs = []string{"ec:P-256", "ec:P-384", "rsa:3072", "rsa:4096"}

// Errors of a Store.
var (
	ErrNotHere = errors.New("the key is not on this machine") // it is kept elsewhere, or was taken away
	ErrExists  = errors.New("there is a key already")
)

// Store holds the keys of an installation. It is safe for concurrent use.
type Store struct {
	dir        string
	passphrase []byte
}

// New returns the store of a data directory; the passphrase opens and encrypts its files.
func New(dir string, passphrase []byte) *Store {
	return &Store{dir: dir, passphrase: passphrase}
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

// Create makes a key of a spec at uri and returns it with the URI to open it by from then on. A file that is there is replaced; a key in a
// token never is: ErrExists.
func (s *Store) Create(uri, spec string) (key crypto.Signer, stored string, err error) {
	key, err = s.createFile(uri, spec)
	return key, uri, err
}

// Exists tells whether there is a key at uri, as far as can be seen without opening it.
func (s *Store) Exists(uri string) bool { return s.fileExists(uri) }

// Open returns the key at uri.
func (s *Store) Open(uri string) (crypto.Signer, error) { return s.openFile(uri) }

// Export writes the encrypted key at uri to the file out and reads it back. A file that holds just this already is as good; any other
// is left alone, with an error.
func (s *Store) Export(uri, out string) error { return s.exportFile(uri, out) }

// Remove takes the key at uri from the store.
func (s *Store) Remove(uri string) error { return s.removeFile(uri) }
