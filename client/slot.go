// One slot: a directory with one key and its certificate, in one file that can be replaced whole and in the two files that
// many programs want. A slot is believed only if its key and its certificate belong together.

package client

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
)

// Files of a slot.
const (
	bundleFile = "bundle.pem" // key, leaf, issuing CA
	keyFile    = "key.pem"
	certFile   = "cert.pem" // leaf, issuing CA
	provenFile = "proven"   // exists once a server has accepted the pair in a handshake
)

type slot struct{ dir string }

func (s slot) path(name string) string { return filepath.Join(s.dir, name) }

// read returns the pair, from the bundle or, should that be damaged, from the two files.
func (s slot) read() (*Identity, error) {
	id, err := readPair(s.path(bundleFile), s.path(bundleFile))
	if err == nil {
		return id, nil
	}
	if id, splitErr := readPair(s.path(certFile), s.path(keyFile)); splitErr == nil {
		return id, nil
	}
	return nil, err
}

// readPair reads a key and its chain, from two files or from one. A file that was torn is no longer made of whole PEM
// blocks, even if the first of them are whole.
func readPair(certPath, keyPath string) (*Identity, error) {
	certs, err := os.ReadFile(certPath)
	if err != nil {
		return nil, err
	}
	keys := certs
	if keyPath != certPath {
		if keys, err = os.ReadFile(keyPath); err != nil {
			return nil, err
		}
	}
	if torn(certs) || torn(keys) {
		return nil, fmt.Errorf("%s: damaged", certPath)
	}
	pair, err := tls.X509KeyPair(certs, keys)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certPath, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: the key cannot sign", keyPath)
	}
	id := &Identity{Certificate: pair.Leaf, Key: key}
	for i, der := range pair.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", certPath, i+1, err)
		}
		id.Chain = append(id.Chain, cert)
	}
	return id, nil
}

func torn(data []byte) bool {
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil {
			return true
		}
		data = rest
	}
	return false
}

func (s slot) proven() bool {
	_, err := os.Stat(s.path(provenFile))
	return err == nil
}

// complete reports whether each of the three files holds this pair.
func (s slot) complete(id *Identity) bool {
	for _, pair := range [][2]string{{bundleFile, bundleFile}, {certFile, keyFile}} {
		got, err := readPair(s.path(pair[0]), s.path(pair[1]))
		if err != nil || !got.Certificate.Equal(id.Certificate) || len(got.Chain) != len(id.Chain) {
			return false
		}
	}
	return true
}

// write puts a pair into the slot. The slot must not be the current one, nor hold the last pair that is known to work.
func (s slot) write(id *Identity) error {
	key, err := keyPEM(id.Key)
	if err != nil {
		return err
	}
	chain := id.ChainPEM()
	bundle := append(append([]byte{}, key...), chain...)
	if err := fault.Step("client.slot.unprove", func() error { return removeFile(s.path(provenFile)) }); err != nil {
		return err
	}
	if err := fault.Step("client.slot.key", func() error { return atomicfile.Write(s.path(keyFile), key, 0o600) }); err != nil {
		return err
	}
	if err := fault.Step("client.slot.cert", func() error { return atomicfile.Write(s.path(certFile), chain, 0o600) }); err != nil {
		return err
	}
	if err := fault.Step("client.slot.bundle", func() error { return atomicfile.Write(s.path(bundleFile), bundle, 0o600) }); err != nil {
		return err
	}
	if !s.complete(id) {
		return fmt.Errorf("%s: what was written does not read back", s.dir)
	}
	return nil
}

// restore writes anew what is damaged beside a good pair, the good part last of all.
func (s slot) restore(id *Identity) error {
	key, err := keyPEM(id.Key)
	if err != nil {
		return err
	}
	chain := id.ChainPEM()
	if _, err := readPair(s.path(bundleFile), s.path(bundleFile)); err != nil {
		bundle := append(append([]byte{}, key...), chain...)
		if err := fault.Step("client.restore.bundle", func() error { return atomicfile.Write(s.path(bundleFile), bundle, 0o600) }); err != nil {
			return err
		}
	}
	if err := fault.Step("client.restore.key", func() error { return atomicfile.Write(s.path(keyFile), key, 0o600) }); err != nil {
		return err
	}
	return fault.Step("client.restore.cert", func() error { return atomicfile.Write(s.path(certFile), chain, 0o600) })
}

// prove notes that a server has accepted the pair.
func (s slot) prove() error {
	return fault.Step("client.prove", func() error { return atomicfile.Write(s.path(provenFile), nil, 0o600) })
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("a store keeps keys in files, and this key cannot be written to one: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParsePrivateKey reads the first private key of a PEM file: PKCS#8, PKCS#1 or SEC 1 ("EC PRIVATE KEY").
func ParsePrivateKey(data []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("no private key in PEM form")
		}
		data = rest
		if block.Type != "PRIVATE KEY" && !strings.HasSuffix(block.Type, " PRIVATE KEY") {
			continue
		}
		if strings.HasPrefix(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the private key is encrypted")
		}
		return parsePrivateKeyDER(block.Bytes)
	}
}

func parsePrivateKeyDER(der []byte) (crypto.Signer, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		return signer, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	var key *ecdsa.PrivateKey
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, errors.New("the private key is neither PKCS#8 nor PKCS#1 nor SEC 1")
	}
	return key, nil
}

// removeFile removes a file durably; one that is not there is removed already.
func removeFile(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}
