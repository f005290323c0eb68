package client

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func TestEnroll(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, spec := range []string{"ec:P-256", "ec:P-384", "rsa:2048"} {
			t.Run(tls.VersionName(version)+" "+spec, func(t *testing.T) {
				t.Parallel()
				p := newPeer(t, maxVersion(version))
				key, err := GenerateKey(spec)
				if err != nil {
					t.Fatal(err)
				}
				id, err := p.client().Enroll(testContext(t), key, Request{DNSNames: []string{"dev-1.example"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}})
				if err != nil {
					t.Fatal(err)
				}
				if id.Certificate.Subject.CommonName != "dev-1" || len(id.Certificate.DNSNames) != 1 || len(id.Certificate.IPAddresses) != 1 {
					t.Errorf("issued for %s %v %v", id.Certificate.Subject, id.Certificate.DNSNames, id.Certificate.IPAddresses)
				}
				if len(id.Chain) != 2 || !id.Chain[0].Equal(id.Certificate) || !id.Chain[1].Equal(p.ca.Certificate) {
					t.Errorf("chain of %d: it must be the leaf and the issuing CA, without the root", len(id.Chain))
				}
				if len(id.Anchors) != 1 || !id.Anchors[0].Equal(p.root.Certificate) {
					t.Errorf("anchors: %d", len(id.Anchors))
				}
				if KeySpec(id.Certificate.PublicKey) != spec {
					t.Errorf("key %s", KeySpec(id.Certificate.PublicKey))
				}
			})
		}
	}
}

func TestEnrollUsesOneConnectionAndSaysItsLength(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	c := p.client()
	c.Label = "line-2"
	if _, err := c.Enroll(testContext(t), newKey(t), Request{}); err != nil {
		t.Fatal(err)
	}
	requests := p.saw("")
	for _, r := range requests {
		if r.remote != requests[0].remote {
			t.Errorf("%s came over another connection", r.operation)
		}
	}
	posts := p.saw(wire.OpSimpleEnroll)
	if len(posts) != 2 || posts[0].header.Get("Authorization") != "" || posts[1].header.Get("Authorization") == "" {
		t.Fatalf("%d posts: the first must come without credentials, the second answers the challenge", len(posts))
	}
	for _, r := range posts {
		if r.chunked || r.length != int64(len(r.body)) || r.length == 0 {
			t.Errorf("chunked %t, length %d of %d", r.chunked, r.length, len(r.body))
		}
		if r.header.Get("Content-Type") != wire.TypePKCS10 {
			t.Errorf("content type %q", r.header.Get("Content-Type"))
		}
		for line := range bytes.SplitSeq(r.body, []byte("\n")) {
			if len(line) > 76 {
				t.Errorf("a line of %d characters", len(line))
			}
		}
	}
}

func TestCloseIsNotTheEnd(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	c := p.client()
	for range 2 {
		if _, err := c.CACerts(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	requests := p.saw("")
	if len(requests) != 2 || requests[0].remote == requests[1].remote {
		t.Error("Close left the connection open")
	}
	if err := new(Client).Close(); err != nil {
		t.Errorf("close of an unused client: %v", err)
	}
}

// TestStaleConnection closes the kept connection from the server's side: the next request must not fail.
func TestStaleConnection(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	c := p.client()
	for range 3 {
		if _, err := c.CACerts(testContext(t)); err != nil {
			t.Fatal(err)
		}
		p.server.CloseClientConnections()
	}
}

func TestReenroll(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	old := p.ca.Leaf(t, "dev-1", testpki.Names("dev-1.example"), testpki.Edit(func(c *x509.Certificate) { c.Subject.Organization = []string{"Example"} }))
	pair := old.TLS()
	c := &Client{Server: p.server.URL, TrustAnchors: []*x509.Certificate{p.root.Certificate}, Certificate: func() (*tls.Certificate, error) { return &pair, nil }}
	defer c.Close()
	id, err := c.Reenroll(testContext(t), newKey(t), Request{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(id.Certificate.RawSubject, old.Certificate.RawSubject) || !slices.Equal(id.Certificate.DNSNames, old.Certificate.DNSNames) {
		t.Errorf("renewed as %s %v", id.Certificate.Subject, id.Certificate.DNSNames)
	}
	got := p.saw(wire.OpSimpleReenroll)[0]
	if len(got.presented) != 2 || !got.presented[0].Equal(old.Certificate) || got.presented[1].Equal(p.root.Certificate) {
		t.Errorf("presented %d certificates: it must be the leaf and its CA", len(got.presented))
	}

	var e *Error
	if _, err := p.client().Reenroll(testContext(t), newKey(t), Request{}); !errors.As(err, &e) || e.Reason != "no_certificate" {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestRefusalsAreTyped(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	c := p.client()
	c.Password = "wrong"
	_, err := c.Enroll(testContext(t), newKey(t), Request{})
	var e *Error
	if !errors.As(err, &e) || e.Status != 401 || e.Reason != "not_authenticated" || !Refused(err) {
		t.Fatalf("got %v", err)
	}
	if n := len(p.saw(wire.OpSimpleEnroll)); n != 2 {
		t.Errorf("%d attempts: a refused code must not be sent again", n)
	}

	p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		refuse(w, http.StatusServiceUnavailable, "unavailable", "the CA is waiting\x1b[31m\nsecond line")
	})
	_, err = c.Enroll(testContext(t), newKey(t), Request{})
	if !errors.As(err, &e) || e.Status != 503 || e.Reason != "unavailable" || e.RetryAfter != 7*time.Second || e.Message != "the CA is waiting[31m" || Refused(err) {
		t.Errorf("got %#v", e)
	}

	p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["WWW-Authenticate"] = []string{`Digest realm="say basic, please", nonce="basic"`}
		w.WriteHeader(http.StatusUnauthorized)
	})
	if _, err = c.Enroll(testContext(t), newKey(t), Request{}); !errors.As(err, &e) || e.Reason != "challenge" {
		t.Errorf("digest only: %v", err)
	}
}

func TestWrongUse(t *testing.T) {
	t.Parallel()
	root := testpki.Root(t, "Root").Certificate
	for name, c := range map[string]*Client{
		"no server":        {TrustAnchors: []*x509.Certificate{root}},
		"http":             {Server: "http://est.example", TrustAnchors: []*x509.Certificate{root}},
		"a path":           {Server: "https://est.example/est", TrustAnchors: []*x509.Certificate{root}},
		"a user":           {Server: "https://a:b@est.example", TrustAnchors: []*x509.Certificate{root}},
		"no trust":         {Server: "https://est.example"},
		"bad fingerprint":  {Server: "https://est.example", TrustFingerprint: "abc"},
		"label with slash": {Server: "https://est.example", TrustAnchors: []*x509.Certificate{root}, Label: "a/b"},
		"label operation":  {Server: "https://est.example", TrustAnchors: []*x509.Certificate{root}, Label: "cacerts"},
		"long label":       {Server: "https://est.example", TrustAnchors: []*x509.Certificate{root}, Label: strings.Repeat("x", 129)},
	} {
		c.Dial = nil
		if _, err := c.CACerts(testContext(t)); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "a:b") {
			t.Errorf("%s: the error shows a password: %v", name, err)
		}
	}
	if _, err := GenerateKey("rsa:1024"); err == nil {
		t.Error("a weak key was made")
	}
}

// TestOpaqueSigner has a signer that hides its key, as a TPM does.
func TestOpaqueSigner(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	p.on(wire.OpCSRAttrs, func(w http.ResponseWriter, _ *http.Request) {
		writeAttrs(w, wire.AttrOrOID{OID: wire.OIDChallengePassword})
	})
	key := opaque{newKey(t)}
	if _, err := p.client().Enroll(testContext(t), key, Request{}); err != nil {
		t.Error(err)
	}
}

func TestClockDecides(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	c := p.client()
	c.Clock = clock.NewManual(time.Now().AddDate(20, 0, 0)).Clock()
	var e *Error
	if _, err := c.CACerts(testContext(t)); !errors.As(err, &e) || e.Reason != "server_expired" {
		t.Errorf("in twenty years: %v", err)
	}
}
