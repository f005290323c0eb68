// The EST server's own certificate: issued by the management CA, one file for the encrypted key and the chain, so that
// they cannot fall apart; renewed at two thirds of its life, or when the machine has a new name, and swapped under running
// listeners.

package instance

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
)

// ManagementCA issues what the installation itself lives on.
const ManagementCA = "management"

const (
	serverProfile = "est-server"
	serverKey     = "ec:P-256"

	// What the certificates are recorded under. No device can have this id, so that revoking a device never ends the server's certificate.
	serverIdentity = "natal-est-server"
	renewalRetry   = time.Minute
)

// ServerCertificate is the current certificate of the EST server. It is safe for concurrent use.
type ServerCertificate struct {
	instance *Instance
	current  atomic.Pointer[tls.Certificate]
}

// ServerCertificate loads the certificate, or issues one when there is none that serves.
func (i *Instance) ServerCertificate(ctx context.Context) (*ServerCertificate, error) {
	s := &ServerCertificate{instance: i}
	stored, err := s.load(ctx)
	if err == nil {
		s.current.Store(stored)
		return s, nil
	}
	i.Log.Info("issuing an EST server certificate", "because", err.Error())
	return s, s.Renew(ctx)
}

// Get is tls.Config.GetCertificate.
func (s *ServerCertificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current.Load(), nil
}

// Leaf is the current certificate.
func (s *ServerCertificate) Leaf() *x509.Certificate { return s.current.Load().Leaf }

// Run renews the certificate in time until ctx ends.
func (s *ServerCertificate) Run(ctx context.Context) error {
	for {
		if !s.wait(ctx) {
			return nil
		}
		if err := s.Renew(ctx); err != nil {
			s.instance.Log.Error("EST server certificate not renewed", "error", err, "not_after", s.Leaf().NotAfter)
			if s.instance.Clock.SleepUntil(ctx, s.instance.Clock.Now().Add(renewalRetry)) != nil {
				return nil
			}
		}
	}
}

// followEvery is how soon a change of the CAs above shows in the server's certificate and in the files of the data directory.
const followEvery = time.Second

// wait returns true when a new certificate is due, because of its age or because the CAs above it changed, and false at the end of ctx.
func (s *ServerCertificate) wait(ctx context.Context) bool {
	look := time.NewTicker(followEvery)
	defer look.Stop()
	i, seen := s.instance, int64(0)
	for !due(s.Leaf(), i.Clock.Now()) {
		version, err := i.DB.Configuration(ctx)
		if err == nil && version != seen {
			if err = i.Complete(ctx); err == nil {
				seen = version
			}
			_, above, chainErr := i.presented(ctx)
			if chainErr == nil && !slices.EqualFunc(s.current.Load().Certificate[1:], above, func(der []byte, c *x509.Certificate) bool { return bytes.Equal(der, c.Raw) }) {
				return true
			}
			err = errors.Join(err, chainErr)
		}
		if err != nil && ctx.Err() == nil {
			i.Log.Warn("changes of the CAs not followed", "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-look.C:
		}
	}
	return ctx.Err() == nil
}

// due: also when the certificate begins in the future, because the clock that it was made by has been set back since.
func due(c *x509.Certificate, now time.Time) bool {
	return !now.Before(renewAt(c)) || now.Before(c.NotBefore)
}

func renewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// load reads the stored certificate; the error says why it does not serve.
func (s *ServerCertificate) load(ctx context.Context) (*tls.Certificate, error) {
	i := s.instance
	content, err := os.ReadFile(i.Dir.serverCert())
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("there is none")
	}
	if err != nil {
		return nil, err
	}
	keyBlock, rest := pem.Decode(content)
	if keyBlock == nil {
		return nil, errors.New("its file is damaged")
	}
	key, err := keystore.Decrypt(pem.EncodeToMemory(keyBlock), i.passphrase, i.Dir.serverCert())
	if err != nil {
		return nil, err
	}
	chain := decodeChain(rest)
	if len(chain) < 2 {
		return nil, errors.New("its file is damaged")
	}
	leaf := chain[0]
	_, above, err := i.presented(ctx)
	if err != nil {
		return nil, err
	}
	record, err := i.CA.ByDER(ctx, leaf)
	switch {
	case err != nil:
		return nil, err
	case record.State != ca.Issued:
		return nil, fmt.Errorf("it is %s", record.State)
	case !slices.EqualFunc(chain[1:], above, (*x509.Certificate).Equal):
		return nil, errNewChain
	case due(leaf, i.Clock.Now()):
		return nil, errors.New("two thirds of its life are over, or it has not begun")
	}
	for _, name := range serverNames(ctx, i.Settings.Hosts) {
		if leaf.VerifyHostname(name) != nil {
			return nil, fmt.Errorf("it does not name %s", name)
		}
	}
	out := tlsCertificate(key, chain)
	if public, ok := key.Public().(interface{ Equal(x crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("its key is another one")
	}
	return out, nil
}

// Renew issues a certificate for a new key, stores both and swaps them in.
func (s *ServerCertificate) Renew(ctx context.Context) error {
	i := s.instance
	issuer, above, err := i.presented(ctx)
	if err != nil {
		return err
	}
	key, err := keystore.Generate(serverKey)
	if err != nil {
		return err
	}
	names := serverNames(ctx, i.Settings.Hosts)
	registered := make([]string, len(names))
	for n, name := range names {
		registered[n] = profile.NameOf(name)
	}
	cert, err := i.CA.Issue(ctx, ca.Request{
		CA: issuer, Profile: serverProfile, Device: serverIdentity, Registered: registered, PublicKey: key.Public(),
		RequesterKind: ca.RequesterServer, Requester: serverIdentity, Actor: "server",
	})
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(cert.DER)
	if err != nil {
		return err
	}
	if cert.Issuer != issuer { // another one took over just now
		if _, above, err = i.presented(ctx); err != nil {
			return err
		}
	}
	chain := append([]*x509.Certificate{leaf}, above...)
	content, err := keystore.Encrypt(key, i.passphrase)
	if err != nil {
		return err
	}
	for _, c := range chain {
		content = append(content, encodeCertificate(c)...)
	}
	err = fault.Step("instance.server_certificate", func() error { return atomicfile.Write(i.Dir.serverCert(), content, 0o600) })
	if err != nil {
		return err
	}
	s.current.Store(tlsCertificate(key, chain))
	i.Log.Info("EST server certificate issued", "serial", cert.Serial, "not_after", leaf.NotAfter)
	return nil
}

func tlsCertificate(key crypto.Signer, chain []*x509.Certificate) *tls.Certificate {
	out := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out
}

func encodeCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func decodeChain(content []byte) []*x509.Certificate {
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return chain
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && strings.HasSuffix(block.Type, "CERTIFICATE") {
			chain = append(chain, c)
		}
	}
}

var errNewChain = errors.New("the CAs above it are others now")

// presented is the CA that issues the server's certificate and what stands behind that in TLS: the CA, those between it and its root, and what links the
// root to another one, so that a device that was given one of the two roots years ago verifies the chain all the same.
func (i *Instance) presented(ctx context.Context) (issuer string, above []*x509.Certificate, err error) {
	info, err := i.CA.Serving(ctx, ManagementCA)
	if err != nil {
		return "", nil, err
	}
	if info.Certificate == nil {
		return "", nil, fmt.Errorf("the CA %s waits for its certificate: see `est-server ca csr %s` and `ca import`", info.Name, info.Name)
	}
	above = []*x509.Certificate{info.Certificate}
	for _, c := range info.Chain {
		if !bytes.Equal(c.RawSubject, c.RawIssuer) {
			above = append(above, c)
			continue
		}
		links, err := i.CA.Links(ctx, c)
		if err != nil {
			return "", nil, err
		}
		above = append(above, links...)
	}
	return info.Name, above, nil
}

// ManagementChain is the certificate of the CA that issues for the installation itself, and those above it, up to the root.
func (i *Instance) ManagementChain(ctx context.Context) ([]*x509.Certificate, error) {
	info, err := i.CA.Serving(ctx, ManagementCA)
	if err != nil {
		return nil, err
	}
	if info.Certificate == nil {
		return nil, fmt.Errorf("the CA %s waits for its certificate", info.Name)
	}
	return append([]*x509.Certificate{info.Certificate}, info.Chain...), nil
}

// ManagementTrust is what every device that talks to this server must be able to verify, whichever CA issues to it: the management CA, what will take
// over from it and what has, their roots, newest first, and what links these.
func (i *Instance) ManagementTrust(ctx context.Context) ([]*x509.Certificate, error) {
	trust, err := i.CA.Trust(ctx, ManagementCA)
	return trust.All(), err
}
