package client

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

// peer is an EST server that says what a test tells it to say, over real TLS. Without instructions it is a good one: it asks for
// user "dev-1" and code "secret" and issues what the request asks for.
type peer struct {
	t      testing.TB
	root   *testpki.Authority
	ca     *testpki.Authority
	server *httptest.Server

	mu       sync.Mutex
	script   map[string]http.HandlerFunc // by operation, instead of the usual answer
	requests []seen
	issued   int
}

// seen is one request as it arrived.
type seen struct {
	operation string
	method    string
	header    http.Header
	length    int64
	chunked   bool
	body      []byte
	remote    string
	presented []*x509.Certificate
	tls       tls.ConnectionState
}

type peerOption func(*tls.Config, *testpki.Authority)

func newPeer(t testing.TB, options ...peerOption) *peer {
	t.Helper()
	p := &peer{t: t, root: testpki.Root(t, "Root"), script: map[string]http.HandlerFunc{}}
	p.ca = p.root.Intermediate(t, "Devices")
	config := &tls.Config{
		Certificates: []tls.Certificate{p.root.Leaf(t, "est", testpki.Names("127.0.0.1", "localhost"), testpki.EKU(x509.ExtKeyUsageServerAuth)).TLS()},
		ClientAuth:   tls.RequestClientCert,
	}
	for _, o := range options {
		o(config, p.root)
	}
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.server.TLS = config
	p.server.Config.ErrorLog = quiet()
	p.server.StartTLS()
	t.Cleanup(p.server.Close)
	return p
}

func maxVersion(version uint16) peerOption {
	return func(c *tls.Config, _ *testpki.Authority) { c.MaxVersion = version }
}

func serverCertificate(make func(root *testpki.Authority) *testpki.Leaf) peerOption {
	return func(c *tls.Config, root *testpki.Authority) { c.Certificates = []tls.Certificate{make(root).TLS()} }
}

func (p *peer) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	operation := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	p.mu.Lock()
	p.requests = append(p.requests, seen{operation: operation, method: r.Method, header: r.Header.Clone(), length: r.ContentLength,
		chunked: slices.Contains(r.TransferEncoding, "chunked"), body: body, remote: r.RemoteAddr, presented: r.TLS.PeerCertificates, tls: *r.TLS})
	handler := p.script[operation]
	p.mu.Unlock()
	r.Body = io.NopCloser(bytes.NewReader(body))
	if handler == nil {
		handler = p.usual(operation)
	}
	handler(w, r)
}

// on replaces the answer to an operation.
func (p *peer) on(operation string, handler http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script[operation] = handler
}

func (p *peer) usual(operation string) http.HandlerFunc {
	switch operation {
	case wire.OpCACerts:
		return p.certs(p.root.Certificate, p.ca.Certificate)
	case wire.OpCSRAttrs:
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	case wire.OpSimpleEnroll:
		return p.requireCode(p.issue)
	case wire.OpSimpleReenroll:
		return func(w http.ResponseWriter, r *http.Request) {
			if len(r.TLS.PeerCertificates) == 0 {
				refuse(w, http.StatusUnauthorized, "not_authenticated", "who are you")
				return
			}
			p.issue(w, r)
		}
	}
	return http.NotFound
}

// requireCode challenges, and refuses anything but the right code.
func (p *peer) requireCode(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if user, code, ok := r.BasicAuth(); !ok || user != "dev-1" || code != "secret" {
			w.Header()["WWW-Authenticate"] = []string{`Basic realm="est"`}
			refuse(w, http.StatusUnauthorized, "not_authenticated", "not authenticated")
			return
		}
		next(w, r)
	}
}

func refuse(w http.ResponseWriter, status int, reason, text string) {
	w.Header().Set("Content-Type", wire.TypeText)
	w.Header().Set(wire.ReasonHeader, reason)
	w.WriteHeader(status)
	io.WriteString(w, reason+": "+text+"\n")
}

// issue answers with a certificate for the request.
func (p *peer) issue(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.issued++
	p.mu.Unlock()
	writeCerts(w, p.certify(p.csr(r), p.ca, nil))
}

func (p *peer) csr(r *http.Request) *x509.CertificateRequest {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Errorf("read request: %v", err)
	}
	der, err := wire.DecodeBase64(body)
	if err != nil {
		p.t.Errorf("request: %v", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		p.t.Errorf("request: %v", err)
		return &x509.CertificateRequest{}
	}
	if err := csr.CheckSignature(); err != nil {
		p.t.Errorf("request: %v", err)
	}
	return csr
}

// certify makes the certificate that csr asks for; edit may spoil it.
func (p *peer) certify(csr *x509.CertificateRequest, ca *testpki.Authority, edit func(*x509.Certificate)) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		p.t.Error(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), RawSubject: csr.RawSubject, DNSNames: csr.DNSNames, IPAddresses: csr.IPAddresses,
		NotBefore: time.Now().Add(-5 * time.Minute), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		PublicKey: csr.PublicKey,
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, template.PublicKey, ca.Key)
	if err != nil {
		p.t.Errorf("issue: %v", err)
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Errorf("issue: %v", err)
	}
	return cert
}

// certs answers with these certificates.
func (p *peer) certs(certs ...*x509.Certificate) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeCerts(w, certs...) }
}

func writeCerts(w http.ResponseWriter, certs ...*x509.Certificate) {
	der, err := wire.CertsOnly(certs...)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", wire.TypeCertsOnly)
	w.Write(wire.EncodeBase64(der))
}

func writeAttrs(w http.ResponseWriter, elements ...wire.AttrOrOID) {
	der, err := wire.EncodeCSRAttrs(elements)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", wire.TypeCSRAttrs)
	w.Write(wire.EncodeBase64(der))
}

// client is one that trusts the peer's root and has the code.
func (p *peer) client() *Client {
	c := &Client{Server: p.server.URL, TrustAnchors: []*x509.Certificate{p.root.Certificate}, User: "dev-1", Password: "secret", Timeout: 10 * time.Second}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// saw returns the requests so far for an operation; all for "".
func (p *peer) saw(operation string) []seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []seen
	for _, r := range p.requests {
		if operation == "" || r.operation == operation {
			out = append(out, r)
		}
	}
	return out
}

// mustNotHaveCredentials fails if any request showed a code or a certificate.
func (p *peer) mustNotHaveCredentials() {
	p.t.Helper()
	for _, r := range p.saw("") {
		if r.header.Get("Authorization") != "" {
			p.t.Errorf("%s carried credentials", r.operation)
		}
		if len(r.presented) > 0 {
			p.t.Errorf("%s showed a client certificate", r.operation)
		}
	}
}

// challengePassword digs the attribute out of a request: crypto/x509 does not show it.
func challengePassword(t testing.TB, body []byte) string {
	t.Helper()
	der, err := wire.DecodeBase64(body)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []struct {
			Type   asn1.ObjectIdentifier
			Values []asn1.RawValue `asn1:"set"`
		} `asn1:"tag:0,set"`
	}
	if _, err := asn1.Unmarshal(csr.RawTBSCertificateRequest, &info); err != nil {
		t.Fatal(err)
	}
	for _, a := range info.Attributes {
		if a.Type.Equal(wire.OIDChallengePassword) {
			return string(a.Values[0].Bytes)
		}
	}
	return ""
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := GenerateKey("ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// closedAddress is an address where nobody listens.
func closedAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// opaque is a crypto.Signer and nothing else.
type opaque struct{ crypto.Signer }

// losesAnswer closes the connection where an answer should be.
func losesAnswer(w http.ResponseWriter, _ *http.Request) {
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		conn.Close()
	}
}
