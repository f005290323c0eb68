package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

// TestServerNotAuthenticated: nothing of the device reaches a server that fails the check, not even a request.
func TestServerNotAuthenticated(t *testing.T) {
	t.Parallel()
	server := []testpki.Option{testpki.EKU(x509.ExtKeyUsageServerAuth)}
	with := func(o ...testpki.Option) func(*testpki.Authority) *testpki.Leaf {
		return func(root *testpki.Authority) *testpki.Leaf {
			return root.Leaf(t, "est", append(server[:1:1], o...)...)
		}
	}
	for name, c := range map[string]struct {
		leaf   func(*testpki.Authority) *testpki.Leaf
		reason string
	}{
		"another name":  {with(testpki.Names("est.example")), "server_name"},
		"name in CN":    {func(r *testpki.Authority) *testpki.Leaf { return r.Leaf(t, "127.0.0.1", server...) }, "server_name"},
		"expired":       {with(testpki.Names("127.0.0.1"), testpki.Expired()), "server_expired"},
		"not yet valid": {with(testpki.Names("127.0.0.1"), testpki.NotYetValid()), "server_expired"},
		"clientAuth":    {with(testpki.Names("127.0.0.1"), testpki.EKU(x509.ExtKeyUsageClientAuth)), "tls"},
		"unknown issuer": {func(*testpki.Authority) *testpki.Leaf {
			return testpki.Root(t, "Root").Leaf(t, "est", testpki.Names("127.0.0.1"), server[0])
		}, "untrusted_server"},
		"self-signed": {func(*testpki.Authority) *testpki.Leaf {
			return testpki.SelfSigned(t, "est", testpki.Names("127.0.0.1"), server[0])
		}, "untrusted_server"},
		"issuer not CA": {func(r *testpki.Authority) *testpki.Leaf {
			return r.Intermediate(t, "no CA", testpki.NotCA()).Leaf(t, "est", testpki.Names("127.0.0.1"), server[0])
		}, "*"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, serverCertificate(c.leaf))
			device := p.client()
			pair := p.ca.Leaf(t, "dev-1").TLS()
			device.Certificate = func() (*tls.Certificate, error) { return &pair, nil }
			_, err := device.Enroll(testContext(t), newKey(t), Request{})
			var e *Error
			if !errors.As(err, &e) || (e.Reason != c.reason && c.reason != "*") || e.Status != 0 {
				t.Errorf("got %v, want reason %s", err, c.reason)
			}
			if n := len(p.saw("")); n != 0 {
				t.Errorf("%d requests were sent", n)
			}
		})
	}
}

func TestSystemRootsAreNotTrusted(t *testing.T) {
	t.Parallel()
	if pool(nil) == nil {
		t.Fatal("an empty pool is nil: crypto/x509 would take the system's roots")
	}
}

func TestBootstrap(t *testing.T) {
	t.Parallel()
	for name, style := range map[string]func(string) string{
		"plain":  func(s string) string { return s },
		"upper":  strings.ToUpper,
		"colons": func(s string) string { return "SHA256:" + s[:2] + ":" + s[2:] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			c := p.client()
			c.TrustAnchors, c.TrustFingerprint = nil, style(Fingerprint(p.root.Certificate))
			id, err := c.Enroll(testContext(t), newKey(t), Request{})
			if err != nil {
				t.Fatal(err)
			}
			if len(id.Anchors) != 1 || !id.Anchors[0].Equal(p.root.Certificate) || len(c.Anchors()) != 1 {
				t.Errorf("%d anchors", len(id.Anchors))
			}
			requests := p.saw("")
			if requests[0].operation != wire.OpCACerts || requests[1].remote == requests[0].remote {
				t.Error("the session that was not authenticated was used again")
			}
			if requests[0].header.Get("Authorization") != "" {
				t.Error("credentials before authentication")
			}
		})
	}
}

// TestBootstrapRefused: in no case do credentials or the client certificate leave the device.
func TestBootstrapRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(*peer, *Client)
		reason  string
	}{
		"another fingerprint":           {func(p *peer, c *Client) { c.TrustFingerprint = Fingerprint(testpki.Root(p.t, "Root").Certificate) }, "fingerprint"},
		"fingerprint of the issuing CA": {func(p *peer, c *Client) { c.TrustFingerprint = Fingerprint(p.ca.Certificate) }, "fingerprint"},
		"challenge at once": {func(p *peer, _ *Client) {
			p.on(wire.OpCACerts, p.requireCode(p.certs(p.root.Certificate)))
		}, "not_authenticated"},
		"server under another root": {func(p *peer, c *Client) {
			foreign := testpki.Root(p.t, "Foreign")
			p.on(wire.OpCACerts, p.certs(foreign.Certificate, p.root.Certificate))
			c.TrustFingerprint = Fingerprint(foreign.Certificate)
		}, "untrusted_server"},
		"not a certs-only message": {func(p *peer, _ *Client) {
			p.on(wire.OpCACerts, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", wire.TypePKCS7)
				w.Write([]byte("MAA=\n"))
			})
		}, "fingerprint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			device := p.client()
			pair := p.ca.Leaf(t, "dev-1").TLS()
			device.Certificate = func() (*tls.Certificate, error) { return &pair, nil }
			device.TrustAnchors, device.TrustFingerprint = nil, Fingerprint(p.root.Certificate)
			c.prepare(p, device)
			_, err := device.Enroll(testContext(t), newKey(t), Request{})
			var e *Error
			if !errors.As(err, &e) || e.Reason != c.reason {
				t.Errorf("got %v, want reason %s", err, c.reason)
			}
			p.mustNotHaveCredentials()
		})
	}
}

// TestExpiredRootByFingerprint: a fingerprint does not make an expired root good.
func TestExpiredRootByFingerprint(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	old := testpki.Root(t, "Old", testpki.Expired())
	p.on(wire.OpCACerts, p.certs(old.Certificate, p.root.Certificate))
	c := p.client()
	c.TrustAnchors, c.TrustFingerprint = nil, Fingerprint(old.Certificate)
	if _, err := c.CACerts(testContext(t)); err == nil || !strings.Contains(err.Error(), "not valid") {
		t.Errorf("got %v", err)
	}
}
