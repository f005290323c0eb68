// Package client is the device's side of Enrollment over Secure Transport (EST, RFC 7030 with RFC 8951): it learns
// whom to trust, makes a request for a key that never leaves the device, renews in time and keeps key and certificate on
// flash so that a loss of power at any moment leaves one usable pair.
//
// A device needs three things to begin: the address of its server (Client.Server), a way to recognise that server
// (TrustAnchors or TrustFingerprint) and a way to be recognised (User and Password, or Certificate):
//
//	store, err := client.OpenStore("/var/lib/device")
//	c := &client.Client{Server: "https://est.example.com:8443", TrustFingerprint: print, User: "pump-7", Password: code}
//	identity, err := store.Enroll(ctx, c, "ec:P-256", client.Request{CommonName: "pump-7"})
//	broker := store.TLSConfig("mqtt.example.com", brokerRoots) // follows every renewal
//
// and later, when RenewAt(identity.Certificate) has come, store.Renew(ctx, c, "ec:P-256", client.Request{}).
//
// The server is authenticated against explicit trust anchors only, never the system's, and no credential leaves
// before that is done. The certificate presented is the leaf with its issuing CA, never the root.
//
// It needs nothing beyond the standard library. It does not do: HTTP Digest, server-side key generation, full CMC,
// HTTP/2, proxies, and id-kp-cmcRA in place of the server's name (a registration authority's certificate could then pose as the server).
//
//	client.go    Client: the four operations
//	identity.go  what an enrollment yields, and the checks on it
//	trust.go     anchors, fingerprints, the checks on /cacerts
//	request.go   keys, CSR attributes, the certificate request, channel binding
//	connection.go one TLS connection: dialling, limits, keep-alive
//	exchange.go  one HTTP exchange: challenge, redirect, repetition on a stale connection
//	error.go     Error, Retry-After, what a TLS alert means
//	store.go     Store: two slots and a pointer
//	slot.go      one slot of a Store
//	repair.go    the pointer of a Store, and what a crash left behind
//	lock_*.go    one renewal at a time
//	renew.go     when to renew, when to try again; Store.Enroll, Store.Renew
package client

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/wire"
)

// Client talks to one EST server under one label. Only Server is required, and one of TrustAnchors and
// TrustFingerprint. Fields must not change after the first call. Methods may be called concurrently; requests go one after
// the other over one connection, which is kept open between calls until Close.
type Client struct {
	// Server is the address of the EST server, "https://host" or "https://host:8443". The host is the name that
	// the server's certificate must carry.
	Server string

	// Label is the additional path segment of RFC 7030 section 3.2.2; empty for the path without one.
	Label string

	// TrustAnchors are the roots that the server's certificate must chain to. The system's roots are never used.
	TrustAnchors []*x509.Certificate

	// TrustFingerprint is the SHA-256 of the DER of a self-signed root, in hexadecimal, with or without colons. It is
	// used when TrustAnchors is empty: the first call then fetches /cacerts from a server not yet known, sending nothing that identifies
	// the device, takes from it only the root with this fingerprint, and opens a new TLS session that this root must
	// authenticate (RFC 7030 section 4.1.1).
	TrustFingerprint string

	// User and Password answer an HTTP Basic challenge: device id and enrollment code. They are sent only in
	// answer to a 401 of a server that TLS has authenticated.
	User, Password string

	// Certificate returns the identity to present in TLS: the leaf, then its issuing CA, never the root. It is called for each new
	// connection; nil, or a nil result, presents none.
	Certificate func() (*tls.Certificate, error)

	// Clock tells the time by which certificates are judged; nil is the system's clock.
	Clock *clock.Clock

	// Timeout bounds each HTTP exchange with all that it needs (connecting, handshake, answer); 0 is 30 seconds.
	Timeout time.Duration

	// UserAgent is sent with each request; empty is "natal-client".
	UserAgent string

	// Dial opens the TCP connection; nil is a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	init    sync.Once
	initErr error
	origin  *url.URL
	busy    chan struct{} // holds one element while an exchange is under way; guards conn

	conn *connection

	mu      sync.Mutex
	anchors []*x509.Certificate // learned from TrustFingerprint
}

const (
	defaultTimeout   = 30 * time.Second
	defaultUserAgent = "natal-client"
)

// Close closes the connection that is kept open. The Client stays usable.
func (c *Client) Close() error {
	if err := c.setUp(); err != nil {
		return nil // nothing was ever opened
	}
	c.busy <- struct{}{}
	defer func() { <-c.busy }()
	c.dropConnection()
	return nil
}

// CACerts fetches the certificates of the CA (RFC 7030 section 4.1): self-signed roots, newest first, then the others. The answer is
// refused unless it has a self-signed root, every other certificate chains to one of them, and all are valid now.
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	if err := c.authenticate(ctx); err != nil {
		return nil, err
	}
	a, err := c.exchange(ctx, request{operation: wire.OpCACerts, mediaType: wire.TypePKCS7})
	if err != nil {
		return nil, err
	}
	certs, err := readCACerts(a.body, c.Anchors(), c.now())
	if err != nil {
		return nil, badAnswer(wire.OpCACerts, a.status, err)
	}
	return certs, nil
}

// Anchors returns what authenticates the server: TrustAnchors, or what TrustFingerprint led to (nil before the first call).
func (c *Client) Anchors() []*x509.Certificate {
	if len(c.TrustAnchors) > 0 {
		return c.TrustAnchors
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.anchors
}

// CSRAttrs fetches what the server wants to see in a request (RFC 7030 section 4.5). No wish at all, 204 and 404 are
// the zero Attributes; what the client does not know is ignored.
func (c *Client) CSRAttrs(ctx context.Context) (Attributes, error) {
	if err := c.authenticate(ctx); err != nil {
		return Attributes{}, err
	}
	a, err := c.exchange(ctx, request{operation: wire.OpCSRAttrs, mediaType: wire.TypeCSRAttrs})
	if err != nil {
		if e := new(Error); errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusNoContent) {
			return Attributes{}, nil
		}
		return Attributes{}, err
	}
	attributes, err := parseAttributes(a.body)
	if err != nil {
		return Attributes{}, badAnswer(wire.OpCSRAttrs, a.status, err)
	}
	return attributes, nil
}

// Enroll asks for the first certificate for key (POST simpleenroll, RFC 7030 section 4.2.1), authenticated by User and Password or
// by Certificate (a birth certificate). A repetition with the same key is safe: a server that has issued already answers with the same
// certificate. A request that waits for an operator is an *Error with Status 202 and RetryAfter.
func (c *Client) Enroll(ctx context.Context, key crypto.Signer, req Request) (*Identity, error) {
	return c.enrollFirst(ctx, fixed(key), req)
}

func (c *Client) enrollFirst(ctx context.Context, choose keyChoice, req Request) (*Identity, error) {
	if req.CommonName == "" {
		req.CommonName = c.User
	}
	return c.enroll(ctx, wire.OpSimpleEnroll, choose, req.template())
}

// Reenroll asks for a successor of Certificate (POST simplereenroll, RFC 7030 section 4.2.2). key may be a new one, and should
// be. With the zero Request, subject and subject alternative names are those of Certificate, byte for byte, as the RFC demands.
func (c *Client) Reenroll(ctx context.Context, key crypto.Signer, req Request) (*Identity, error) {
	return c.reenroll(ctx, fixed(key), req)
}

func (c *Client) reenroll(ctx context.Context, choose keyChoice, req Request) (*Identity, error) {
	current, err := c.certificate()
	if err != nil {
		return nil, err
	}
	if current == nil {
		return nil, &Error{Operation: wire.OpSimpleReenroll, Reason: "no_certificate", Message: "there is no certificate to renew"}
	}
	template := req.template()
	if req.isZero() {
		if template, err = templateOf(current); err != nil {
			return nil, err
		}
	}
	return c.enroll(ctx, wire.OpSimpleReenroll, choose, template)
}

// keyChoice supplies the key once the server's wishes are known.
type keyChoice func(Attributes) (crypto.Signer, error)

func fixed(key crypto.Signer) keyChoice {
	return func(Attributes) (crypto.Signer, error) { return key, nil }
}

func (c *Client) enroll(ctx context.Context, operation string, choose keyChoice, template x509.CertificateRequest) (*Identity, error) {
	certs, err := c.CACerts(ctx)
	if err != nil {
		return nil, err
	}
	attributes, err := c.CSRAttrs(ctx)
	if err != nil {
		return nil, err
	}
	key, err := choose(attributes)
	if err != nil {
		return nil, err
	}
	if err := attributes.check(operation, key); err != nil {
		return nil, err
	}
	a, err := c.exchange(ctx, request{
		operation: operation,
		mediaType: wire.TypePKCS7,
		body: func(state tls.ConnectionState) ([]byte, error) {
			return newRequest(key, template, attributes, state)
		},
	})
	if err != nil {
		return nil, err
	}
	identity, err := c.accept(a, key, certs)
	var missing x509.UnknownAuthorityError
	if errors.As(err, &missing) {
		// The CA may have been replaced since /cacerts was read; the newer list must hold its certificate.
		if certs, err = c.CACerts(ctx); err != nil {
			return nil, err
		}
		identity, err = c.accept(a, key, certs)
	}
	if err != nil {
		return nil, badAnswer(operation, a.status, err)
	}
	return identity, nil
}

// authenticate makes sure that there are anchors, which with TrustFingerprint takes one exchange with a server
// that is not authenticated. Its connection is never used for anything else.
func (c *Client) authenticate(ctx context.Context) error {
	if err := c.setUp(); err != nil {
		return err
	}
	if len(c.Anchors()) > 0 {
		return nil
	}
	a, err := c.exchange(ctx, request{operation: wire.OpCACerts, mediaType: wire.TypePKCS7, unauthenticated: true})
	if err != nil {
		return err
	}
	root, err := findRoot(a.body, c.TrustFingerprint, c.now())
	if err != nil {
		return &Error{Operation: wire.OpCACerts, Reason: "fingerprint", Message: err.Error(), Err: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.anchors = []*x509.Certificate{root}
	return nil
}

func (c *Client) setUp() error {
	c.init.Do(func() {
		c.busy = make(chan struct{}, 1)
		c.origin, c.initErr = c.parseServer()
		switch {
		case c.initErr != nil:
		case strings.Contains(c.Label, "/") || wire.IsOperation(c.Label) || len(c.Label) > 128:
			c.initErr = fmt.Errorf("label %q: it must be one path segment of at most 128 characters and no EST operation", c.Label)
		case len(c.TrustAnchors) == 0 && c.TrustFingerprint == "":
			c.initErr = errors.New("no trust anchor and no fingerprint: the server cannot be authenticated")
		case len(c.TrustAnchors) == 0:
			_, c.initErr = parseFingerprint(c.TrustFingerprint)
		}
	})
	return c.initErr
}

func (c *Client) parseServer() (*url.URL, error) {
	u, err := url.Parse(c.Server)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("server %q: it must be https://HOST or https://HOST:PORT", u.Redacted())
	}
	return &url.URL{Scheme: "https", Host: u.Host}, nil
}

func (c *Client) certificate() (*tls.Certificate, error) {
	if c.Certificate == nil {
		return nil, nil
	}
	return c.Certificate()
}

func (c *Client) now() time.Time {
	if c.Clock == nil {
		return clock.System().Now()
	}
	return c.Clock.Now()
}

func (c *Client) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return defaultTimeout
}

func (c *Client) userAgent() string {
	if c.UserAgent != "" {
		return c.UserAgent
	}
	return defaultUserAgent
}

// withCertificate is a Client for the same server that has nothing but certificate to say who it is.
func (c *Client) withCertificate(certificate func() (*tls.Certificate, error)) *Client {
	return &Client{
		Server: c.Server, Label: c.Label, TrustAnchors: c.Anchors(), TrustFingerprint: c.TrustFingerprint, Certificate: certificate,
		Clock: c.Clock, Timeout: c.Timeout, UserAgent: c.UserAgent, Dial: c.Dial,
	}
}
