// The certificates that the bridge and its broker live on: the bridge's own (role bridge) and the broker's server certificate. Both are enrolled
// over EST and renewed at about two thirds of their life, without a restart of anything.

package bridge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/natal-pki/natal/client"
	"github.com/natal-pki/natal/internal/clock"
)

const (
	keySpec      = "ec:P-256"
	serverSubdir = "server" // of the state directory: the broker's key and certificate before they are published
)

// Identities holds both.
type Identities struct {
	conf    *Config
	clock   *clock.Clock
	log     *slog.Logger
	metrics *Metrics
	anchors []*x509.Certificate
	own     *client.Store
	server  *client.Store // nil if the server certificate is not ours to renew
}

// OpenIdentities opens the stores; they may be empty.
func OpenIdentities(conf *Config, clk *clock.Clock, log *slog.Logger, metrics *Metrics) (*Identities, error) {
	i := &Identities{conf: conf, clock: clk, log: log, metrics: metrics}
	var err error
	if i.anchors, err = ReadCertificates(conf.Trust); err != nil {
		return nil, err
	}
	if i.own, err = client.OpenStore(conf.Identity); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if conf.Broker.ServerCertificate != "" {
		if i.server, err = client.OpenStore(filepath.Join(conf.State, serverSubdir)); err != nil {
			return nil, fmt.Errorf("server certificate: %w", err)
		}
	}
	return i, nil
}

// ReadCertificates reads a PEM file of certificates and nothing else.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := client.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

// Anchors are the roots of the EST server: those of the file, and those that a rollover made of them, as the bridge's own renewals learned.
func (i *Identities) Anchors() []*x509.Certificate {
	learned, err := i.own.Trust()
	if err != nil { // there is none before the first enrollment
		return i.anchors
	}
	all := slices.Clone(i.anchors)
	for _, a := range learned {
		if !slices.ContainsFunc(all, a.Equal) {
			all = append(all, a)
		}
	}
	return all
}

// Own is the bridge's certificate as TLS presents it.
func (i *Identities) Own() (*tls.Certificate, error) { return i.own.TLSCertificate() }

func (i *Identities) client(label string) *client.Client {
	return &client.Client{Server: i.conf.Server, Label: label, TrustAnchors: i.Anchors(), Clock: i.clock, UserAgent: "broker-bridge"}
}

// EnrollOwn obtains the bridge's first certificate with an enrollment code.
func (i *Identities) EnrollOwn(ctx context.Context, code string) (*client.Identity, error) {
	c := i.client(i.conf.Label)
	defer c.Close()
	c.User, c.Password = i.conf.Broker.Hosts[0], code
	return i.own.Enroll(ctx, c, keySpec, client.Request{CommonName: i.conf.Broker.Hosts[0]})
}

// EnrollServer obtains a server certificate for the broker, authenticated by the bridge's own.
func (i *Identities) EnrollServer(ctx context.Context) (*client.Identity, error) {
	c := i.client(i.conf.Broker.ServerLabel)
	defer c.Close()
	c.Certificate = i.own.TLSCertificate
	req := client.Request{CommonName: i.conf.Broker.Hosts[0]}
	for _, h := range i.conf.Broker.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			req.IPAddresses = append(req.IPAddresses, ip)
		} else {
			req.DNSNames = append(req.DNSNames, h)
		}
	}
	id, err := i.server.Enroll(ctx, c, keySpec, req)
	if err != nil {
		return nil, err
	}
	// No server can confirm it, as it is for servers. The one before stays with the broker until this one was proven there.
	return id, i.server.Confirm(id.Certificate)
}

// ServerBundle is the broker's key, leaf and chain, PEM, in force in the store.
func (i *Identities) ServerBundle() ([]byte, error) {
	return os.ReadFile(filepath.Join(i.server.Dir(), "bundle.pem"))
}

// covers reports whether the certificate bears all names that the configuration wants.
func (i *Identities) covers(c *x509.Certificate) bool {
	return !slices.ContainsFunc(i.conf.Broker.Hosts, func(h string) bool { return c.VerifyHostname(h) != nil })
}

// Run renews until ctx ends. It calls ownChanged after the bridge's certificate changed, and serverChanged with
// ServerBundle once at the start and after each renewal.
func (i *Identities) Run(ctx context.Context, ownChanged func(), serverChanged func([]byte)) {
	if i.server != nil {
		if bundle, err := i.ServerBundle(); err == nil {
			serverChanged(bundle)
		}
	}
	var backoff client.Backoff
	for ctx.Err() == nil {
		next, err := i.renewDue(ctx, ownChanged, serverChanged)
		if err != nil {
			i.log.Error("renewal", "error", err)
			next = i.clock.Now().Add(backoff.Next(err))
		} else {
			backoff.Reset()
			// Where clocks differ, a new certificate can look old already.
			if soonest := i.clock.Now().Add(time.Minute); next.Before(soonest) {
				next = soonest
			}
		}
		i.clock.SleepUntil(ctx, next)
	}
}

// renewDue renews what is due and returns when something will be.
func (i *Identities) renewDue(ctx context.Context, ownChanged func(), serverChanged func([]byte)) (time.Time, error) {
	own, err := i.own.Load()
	if err != nil {
		return time.Time{}, fmt.Errorf("own certificate: %w", err)
	}
	if !i.clock.Now().Before(client.RenewAt(own.Certificate)) {
		c := i.client(i.conf.Label)
		defer c.Close()
		if own, err = i.own.Renew(ctx, c, keySpec, client.Request{}); err != nil {
			return time.Time{}, fmt.Errorf("own certificate: %w", err)
		}
		i.log.Info("own certificate renewed", "serial", own.Certificate.SerialNumber.Text(16), "not_after", own.Certificate.NotAfter)
		ownChanged()
	}
	i.metrics.expires("bridge", own.Certificate.NotAfter)
	next := client.RenewAt(own.Certificate)
	if i.server == nil {
		return next, nil
	}
	server, err := i.server.Load()
	if errors.Is(err, client.ErrNoIdentity) || err == nil && !(i.covers(server.Certificate) && i.clock.Now().Before(client.RenewAt(server.Certificate))) {
		if server, err = i.EnrollServer(ctx); err == nil {
			i.log.Info("server certificate renewed", "serial", server.Certificate.SerialNumber.Text(16), "not_after", server.Certificate.NotAfter)
			var bundle []byte
			if bundle, err = i.ServerBundle(); err == nil {
				serverChanged(bundle)
			}
		}
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("server certificate: %w", err)
	}
	i.metrics.expires("broker", server.Certificate.NotAfter)
	if at := client.RenewAt(server.Certificate); at.Before(next) {
		next = at
	}
	return next, nil
}
