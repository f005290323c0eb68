// The keys of a validation authority: for each CA a key that it made itself, encrypted, and the certificate that the CA gave it, carried here by hand.
//
//	NAME.key.pem   the key, 0600
//	NAME.pem       the certificate, and after it the CA's own: what everything read from a mirror is verified with

package va

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/ocsp"
)

const keySpec = "ec:P-256"

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func keyURI(name string) string { return "file:" + name + ".key.pem" }

// Request returns the request for a CA's OCSP certificate, PEM. The key is made if there is none; it stays when the certificate is renewed.
func Request(dir, name string, passphrase []byte) ([]byte, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("%q is not the name of a CA", name)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	store := keystore.New(dir, passphrase)
	key, err := store.Open(keyURI(name))
	if errors.Is(err, keystore.ErrNotHere) {
		key, _, err = store.Create(keyURI(name), keySpec)
	}
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "OCSP signer for " + name[:min(len(name), 40)]}}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// readKeys reads the certificates that are new or changed. A bad one leaves that of before in place.
func (a *Authority) readKeys() error {
	files, err := filepath.Glob(filepath.Join(a.cfg.Keys, "*.pem"))
	if err != nil {
		return err
	}
	var problems []error
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".pem")
		if strings.HasSuffix(name, ".key") || !nameForm.MatchString(name) {
			continue
		}
		info, err := os.Stat(file)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		stamp := fmt.Sprint(info.ModTime().UnixNano(), info.Size())
		old := a.all()[name]
		if old != nil && old.stamp == stamp {
			continue
		}
		d, err := a.readDesk(file, name, stamp, old)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", file, err))
			continue
		}
		a.mu.Lock()
		a.desks[name] = d
		a.mu.Unlock()
		a.cfg.Log.Info("answering for a CA", "ca", name, "not_after", d.signer.Certificate.NotAfter)
	}
	return errors.Join(problems...)
}

func (a *Authority) readDesk(file, name, stamp string, old *desk) (*desk, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	certificate, issuer, err := readPair(content)
	if err != nil {
		return nil, err
	}
	key, err := a.key(name, certificate)
	if err != nil {
		return nil, err
	}
	signer, err := ocsp.NewSigner(key, certificate, issuer)
	if err != nil {
		return nil, err
	}
	if now := a.cfg.Clock.Now(); now.After(certificate.NotAfter) {
		a.cfg.Log.Error("the certificate for OCSP answers has ended", "ca", name, "not_after", certificate.NotAfter)
	}
	return a.newDesk(name, stamp, signer, issuer, old)
}

func (a *Authority) key(name string, certificate *x509.Certificate) (crypto.Signer, error) {
	key, err := keystore.New(a.cfg.Keys, a.cfg.Passphrase).Open(keyURI(name))
	if errors.Is(err, keystore.ErrNotHere) {
		return nil, fmt.Errorf("there is no %s.key.pem for the certificate of %s", name, certificate.Subject)
	}
	return key, err
}

// readPair reads the signer's certificate and that of its CA.
func readPair(content []byte) (certificate, issuer *x509.Certificate, err error) {
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		chain = append(chain, c)
	}
	if len(chain) < 2 {
		return nil, nil, errors.New("want the certificate and that of its CA, as `est-server ca sign-ocsp` writes them")
	}
	return chain[0], chain[1], nil
}
