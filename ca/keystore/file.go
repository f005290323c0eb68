// Keys in files of the data directory, encrypted with the passphrase.

package keystore

import (
	"bytes"
	"crypto"
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

// createFile makes a key in a file of mode 0600, replacing what is there.
func (s *Store) createFile(uri, spec string) (crypto.Signer, error) {
	path, err := s.filePath(uri)
	if err != nil {
		return nil, err
	}
	key, err := Generate(spec)
	if err != nil {
		return nil, err
	}
	encrypted, err := Encrypt(key, s.passphrase)
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

func (s *Store) fileExists(uri string) bool {
	path, err := s.filePath(uri)
	if err != nil {
		return false
	}
	_, err = os.Stat(path)
	return err == nil
}

func (s *Store) openFile(uri string) (crypto.Signer, error) {
	path, err := s.filePath(uri)
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
	return Decrypt(encrypted, s.passphrase, uri)
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
func (s *Store) filePath(uri string) (string, error) {
	path, ok := strings.CutPrefix(uri, "file:")
	if !ok {
		return "", fmt.Errorf("%w: %s", ErrNotHere, uri)
	}
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("key %s: want a path inside the data directory", uri)
	}
	return filepath.Join(s.dir, path), nil
}

func (s *Store) exportFile(uri, out string) error {
	path, err := s.filePath(uri)
	if err != nil {
		return err
	}
	key, err := s.openFile(uri)
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
	again, err := Decrypt(copied, s.passphrase, out)
	if err != nil {
		return err
	}
	if public, ok := again.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return fmt.Errorf("%s does not hold the key that was written", out)
	}
	return nil
}

func (s *Store) removeFile(uri string) error {
	path, err := s.filePath(uri)
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
