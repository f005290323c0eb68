// Package keystore opens and makes CA keys by URI. A key comes out as a crypto.Signer and never in any other form.
//
//	file:keys/devices.pem    PKCS#8, encrypted (PBES2: PBKDF2-HMAC-SHA256, AES-256-CBC), relative to the data directory
//
// The passphrase opens the keys unattended, at every start; where it comes from is the server's affair.
package keystore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
	"go.step.sm/crypto/pemutil"
)

// Specs are the kinds of key a CA may have.
var Specs = []string{"ec:P-256", "ec:P-384", "rsa:3072", "rsa:4096"}

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

// Create makes a key of a spec and stores it at uri, mode 0600, replacing what is there.
func Create(dir, uri, spec string, passphrase []byte) (crypto.Signer, error) {
	path, err := filePath(dir, uri)
	if err != nil {
		return nil, err
	}
	key, err := Generate(spec)
	if err != nil {
		return nil, err
	}
	encrypted, err := Encrypt(key, passphrase)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	err = fault.Step("keystore.create", func() error { return atomicfile.Write(path, encrypted, 0o600) })
	if err != nil {
		return nil, err
	}
	return key, nil
}

// ErrNotHere is returned for a key that is kept elsewhere.
var ErrNotHere = errors.New("the key is not on this machine")

// Exists tells whether there is a key at uri, without opening it.
func Exists(dir, uri string) bool {
	path, err := filePath(dir, uri)
	if err != nil {
		return false
	}
	_, err = os.Stat(path)
	return err == nil
}

// Open returns the key at uri.
func Open(dir, uri string, passphrase []byte) (crypto.Signer, error) {
	path, err := filePath(dir, uri)
	if err != nil {
		return nil, err
	}
	encrypted, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotHere, uri)
	}
	if err != nil {
		return nil, fmt.Errorf("open key: %w", err)
	}
	return Decrypt(encrypted, passphrase, uri)
}

// Encrypt returns key as encrypted PKCS#8 PEM.
func Encrypt(key crypto.Signer, passphrase []byte) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, errors.New("encrypt key: the passphrase is empty")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encrypt key: %w", err)
	}
	sealed, err := sealPKCS8(der, passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypt key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: sealed}), nil
}

// Decrypt reads what Encrypt wrote; name stands in errors.
func Decrypt(encrypted, passphrase []byte, name string) (crypto.Signer, error) {
	if !bytes.Contains(encrypted, []byte("ENCRYPTED PRIVATE KEY")) {
		return nil, fmt.Errorf("open key %s: it is not an encrypted PKCS#8 key", name)
	}
	key, err := pemutil.ParseKey(encrypted, pemutil.WithPassword(passphrase))
	if err != nil {
		return nil, fmt.Errorf("open key %s: wrong passphrase or damaged file", name)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("open key %s: it cannot sign", name)
	}
	return signer, nil
}

// filePath returns where a file: key is.
func filePath(dir, uri string) (string, error) {
	path, ok := strings.CutPrefix(uri, "file:")
	if !ok {
		return "", fmt.Errorf("%w: %s", ErrNotHere, uri)
	}
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("key %s: want a path inside the data directory", uri)
	}
	return filepath.Join(dir, path), nil
}

// Export writes the encrypted key at uri to the file out and reads it back. A file that holds just this already is as good; any other
// is left alone, with an error.
func Export(dir, uri, out string, passphrase []byte) error {
	path, err := filePath(dir, uri)
	if err != nil {
		return err
	}
	key, err := Open(dir, uri, passphrase)
	if err != nil {
		return err
	}
	encrypted, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if there, err := os.ReadFile(out); !errors.Is(err, os.ErrNotExist) && !bytes.Equal(there, encrypted) {
		return fmt.Errorf("%s exists; nothing is overwritten", out)
	}
	if err := fault.Step("keystore.export", func() error { return atomicfile.Write(out, encrypted, 0o600) }); err != nil {
		return err
	}
	copied, err := os.ReadFile(out)
	if err != nil {
		return err
	}
	again, err := Decrypt(copied, passphrase, out)
	if err != nil {
		return err
	}
	if public, ok := again.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return fmt.Errorf("%s does not hold the key that was written", out)
	}
	return nil
}

// Remove takes the key at uri from the store.
func Remove(dir, uri string) error {
	path, err := filePath(dir, uri)
	if err != nil {
		return err
	}
	return fault.Step("keystore.remove", func() error {
		if err := os.Remove(path); err != nil {
			return err
		}
		return atomicfile.SyncDir(filepath.Dir(path))
	})
}
