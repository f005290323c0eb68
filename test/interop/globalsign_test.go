// The client of github.com/globalsign/est: all four operations, each way to authenticate, and its view of refusals.

package interop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/globalsign/est"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

// world is a server with a second label, and its anchor.
type world struct {
	*harness.Server
	anchors *x509.CertPool
	factory *testpki.Authority
}

func start(t *testing.T) *world {
	t.Helper()
	w := &world{Server: harness.StartServer(t, harness.ServerOptions{}), factory: testpki.Root(t, "Factory"), anchors: x509.NewCertPool()}
	w.MustCLI(t, "birth-ca", "add", "default", testpki.WriteFile(t, filepath.Join(t.TempDir(), "factory.pem"), w.factory.PEM()))
	w.MustCLI(t, "label", "add", "plant-a", "--ca", "devices", "--profile", "iot-device", "--auth", "code")
	trust, err := os.ReadFile(w.Trust())
	if err != nil {
		t.Fatal(err)
	}
	if !w.anchors.AppendCertsFromPEM(trust) {
		t.Fatal("no anchor")
	}
	return w
}

// client trusts the anchor and nothing else.
func (w *world) client(label string) *est.Client {
	return &est.Client{Host: w.EST, AdditionalPathSegment: label, ExplicitAnchor: w.anchors, DisableKeepAlives: true}
}

// basic is a client with a fresh code.
func (w *world) basic(t *testing.T, label, device string) *est.Client {
	t.Helper()
	args := []string{}
	if label != "" {
		args = []string{"--label", label}
	}
	code, err := os.ReadFile(w.CodeFile(t, device, args...))
	if err != nil {
		t.Fatal(err)
	}
	c := w.client(label)
	c.Username, c.Password = device, strings.TrimSpace(string(code))
	return c
}

// with presents a certificate and the CAs after it.
func with(c *est.Client, key crypto.Signer, chain ...*x509.Certificate) *est.Client {
	c.Username, c.Password, c.Certificates, c.PrivateKey = "", "", chain, key
	return c
}

func request(t *testing.T, key crypto.Signer, cn string) *x509.CertificateRequest {
	t.Helper()
	csr, err := x509.ParseCertificateRequest(testpki.CSR(t, key, cn, nil))
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// verify checks what a device would: its own key, its name, the chain to the anchor.
func (w *world) verify(t *testing.T, cert *x509.Certificate, key crypto.Signer, cn string, cas []*x509.Certificate) {
	t.Helper()
	intermediates := x509.NewCertPool()
	for _, ca := range cas {
		intermediates.AddCert(ca)
	}
	if !key.Public().(*ecdsa.PublicKey).Equal(cert.PublicKey) || cert.Subject.CommonName != cn {
		t.Errorf("a certificate of %q for another key or name: %v", cn, cert.Subject)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: w.anchors, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		t.Errorf("verify the certificate of %s: %v", cn, err)
	}
}

// issuers are the CAs of /cacerts without roots.
func issuers(cas []*x509.Certificate) []*x509.Certificate {
	var list []*x509.Certificate
	for _, ca := range cas {
		if ca.CheckSignatureFrom(ca) != nil {
			list = append(list, ca)
		}
	}
	return list
}

func TestGlobalsignClient(t *testing.T) {
	t.Parallel()
	w := start(t)
	for _, label := range []string{"", "plant-a"} {
		name := "SN-" + label
		c := w.basic(t, label, name+"1")
		cas, err := c.CACerts(t.Context())
		if err != nil || len(cas) < 2 || len(issuers(cas)) == len(cas) {
			t.Fatalf("label %q, cacerts: %d certificates, %v; want a root and issuing CAs", label, len(cas), err)
		}
		attributes, err := c.CSRAttrs(t.Context())
		if err != nil {
			t.Errorf("label %q, csrattrs: %v", label, err)
		}
		if len(attributes.OIDs)+len(attributes.Attributes) == 0 {
			t.Errorf("label %q, csrattrs: empty", label)
		}
		key := testpki.Key(t, "ec:P-256")
		first, err := c.Enroll(t.Context(), request(t, key, name+"1"))
		if err != nil {
			t.Fatalf("label %q, enroll with a code: %v", label, err)
		}
		w.verify(t, first, key, name+"1", cas)

		// Renewal with a new key, and with the same one; the certificate before authenticates.
		next := testpki.Key(t, "ec:P-256")
		chain := append([]*x509.Certificate{first}, issuers(cas)...)
		second, err := with(c, key, chain...).Reenroll(t.Context(), request(t, next, name+"1"))
		if err != nil {
			t.Fatalf("label %q, reenroll: %v", label, err)
		}
		w.verify(t, second, next, name+"1", cas)
		third, err := with(c, next, second).Reenroll(t.Context(), request(t, next, name+"1"))
		if err != nil {
			t.Fatalf("label %q, reenroll with the same key and the leaf alone: %v", label, err)
		}
		w.verify(t, third, next, name+"1", cas)
		if first.SerialNumber.Cmp(second.SerialNumber) == 0 || second.SerialNumber.Cmp(third.SerialNumber) == 0 {
			t.Errorf("label %q: a renewal returned the old serial number", label)
		}
	}

	// The same request twice is the same certificate; a birth certificate authenticates as well.
	key := testpki.Key(t, "ec:P-256")
	birth := w.factory.Birth(t, "SN-born")
	c := with(w.client(""), birth.Key, birth.Certificate)
	csr := request(t, key, "SN-born")
	one, err := c.Enroll(t.Context(), csr)
	if err != nil {
		t.Fatalf("enroll with a birth certificate: %v", err)
	}
	if two, err := c.Enroll(t.Context(), csr); err != nil || !one.Equal(two) {
		t.Errorf("the same request again: %v, want the same certificate", err)
	}
	// Channel binding, where its TLS version has one.
	linked := w.basic(t, "", "SN-linked")
	key = testpki.Key(t, "ec:P-256")
	linked.SigningKey = key
	if _, err := linked.Enroll(t.Context(), request(t, key, "SN-linked")); err != nil {
		t.Errorf("enroll with a signing key for the challenge password: %v", err)
	}
}

func TestGlobalsignClientIsRefused(t *testing.T) {
	t.Parallel()
	w := start(t)
	key := testpki.Key(t, "ec:P-256")
	used := w.basic(t, "", "SN-used")
	if _, err := used.Enroll(t.Context(), request(t, testpki.Key(t, "ec:P-256"), "SN-used")); err != nil {
		t.Fatal(err)
	}
	revokedClient := w.basic(t, "", "SN-revoked")
	revoked, err := revokedClient.Enroll(t.Context(), request(t, key, "SN-revoked"))
	if err != nil {
		t.Fatal(err)
	}
	w.MustCLI(t, "device", "revoke", "SN-revoked", "--reason", "keyCompromise")
	wrong := w.basic(t, "", "SN-wrong")
	wrong.Password += "x"
	foreign := testpki.Root(t, "Factory").Birth(t, "SN-foreign")
	cases := []struct {
		name   string
		client *est.Client
		csr    *x509.CertificateRequest
		renew  bool
		status int
	}{
		{"no credential", w.client(""), request(t, key, "SN-1"), false, http.StatusUnauthorized},
		{"wrong code", wrong, request(t, key, "SN-wrong"), false, http.StatusUnauthorized},
		{"used code, another key", used, request(t, testpki.Key(t, "ec:P-256"), "SN-used"), false, http.StatusUnauthorized},
		{"code of another label", func() *est.Client { c := w.basic(t, "", "SN-label"); c.AdditionalPathSegment = "plant-a"; return c }(), request(t, key, "SN-label"), false, http.StatusUnauthorized},
		{"another name", w.basic(t, "", "SN-mine"), request(t, key, "SN-yours"), false, http.StatusForbidden},
		{"weak key", w.basic(t, "", "SN-weak"), request(t, testpki.Key(t, "ec:P-224"), "SN-weak"), false, http.StatusBadRequest},
		{"unknown label", w.client("plant-b"), request(t, key, "SN-1"), false, http.StatusNotFound},
		{"foreign birth certificate", with(w.client(""), foreign.Key, foreign.Certificate), request(t, key, "SN-foreign"), false, http.StatusUnauthorized},
		{"renewal without a certificate", w.client(""), request(t, key, "SN-used"), true, http.StatusUnauthorized},
		{"revoked certificate", with(w.client(""), key, revoked), request(t, key, "SN-revoked"), true, http.StatusUnauthorized},
	}
	for _, tc := range cases {
		operation := tc.client.Enroll
		if tc.renew {
			operation = tc.client.Reenroll
		}
		cert, err := operation(t.Context(), tc.csr)
		var refusal est.Error
		if cert != nil || !errors.As(err, &refusal) || refusal.StatusCode() != tc.status {
			t.Errorf("%s: %v, want status %d", tc.name, err, tc.status)
		}
	}

	// A client that does not know the anchor sends nothing.
	stranger := &est.Client{Host: w.EST, ExplicitAnchor: testpki.Pool(testpki.Root(t, "elsewhere")), Username: "SN-1", Password: "secret"}
	var unknown x509.UnknownAuthorityError
	if _, err := stranger.Enroll(t.Context(), request(t, key, "SN-1")); !errors.As(err, &unknown) {
		t.Errorf("a client with another anchor: %v", err)
	}
}
