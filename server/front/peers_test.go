// Peers that share no code with this project read what the front writes: openssl, curl, globalsign's client.

package front_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/globalsign/est"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// CSR attributes say what the profile takes, as openssl reads it.
func csrAttributes(t *testing.T, s *testserver.Server) {
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+wire.Path("", wire.OpCSRAttrs), nil)
	answer, body := do(t, s.Client(t), r)
	der, err := wire.DecodeBase64([]byte(body))
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != wire.TypeCSRAttrs || err != nil {
		t.Fatalf("%d %v %s", answer.StatusCode, answer.Header, body)
	}
	attrs, err := wire.ParseCSRAttrs(der)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := s.CA.Profile(t.Context(), "iot-device")
	if err != nil {
		t.Fatal(err)
	}
	if len(attrs) != len(profile.KeySpecs()) {
		t.Errorf("%d attributes for keys %v", len(attrs), profile.KeySpecs())
	}
	if curve, ok := attrs[0].Curve(); !ok || !curve.Equal(wire.OIDCurveP256) {
		t.Errorf("first attribute %v", attrs[0])
	}
	last := attrs[len(attrs)-1]
	if bits, ok := last.RSABits(); !ok || bits != 3072 {
		t.Errorf("last attribute %v", last)
	}
	if text := openssl(t, der, "asn1parse", "-inform", "DER"); !strings.Contains(text, "prime256v1") || !strings.Contains(text, "rsaEncryption") {
		t.Errorf("openssl reads\n%s", text)
	}
}

// openssl reads an answer as a peer that shares no code with this project.
func openssl(t testing.TB, input []byte, args ...string) string {
	t.Helper()
	harness.RequirePrograms(t, "openssl")
	cmd := exec.CommandContext(t.Context(), harness.Program(t, "openssl"), args...)
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// With curl and openssl alone: fetch the CAs, enroll by code, verify the certificate.
func curlAndOpenSSL(t *testing.T, s *testserver.Server) {
	harness.RequirePrograms(t, "curl", "openssl")
	curl := harness.Program(t, "curl")
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	trust := testpki.WriteFile(t, filepath.Join(dir, "trust.pem"), testpki.CertPEM(s.Anchor(t)))
	netrc := testpki.WriteFile(t, filepath.Join(dir, "netrc"), []byte("machine 127.0.0.1 login "+id+" password "+code.Code+"\n"))
	run := func(input []byte, args ...string) []byte {
		cmd := exec.CommandContext(t.Context(), curl, append([]string{"--silent", "--show-error", "--fail-with-body", "--cacert", trust}, args...)...)
		cmd.Stdin = bytes.NewReader(input)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	decode := func(body []byte) []byte {
		der, err := base64.StdEncoding.DecodeString(string(body))
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	cas := openssl(t, decode(run(nil, s.URL+wire.Path("", wire.OpCACerts))), "pkcs7", "-inform", "DER", "-print_certs")
	if n := strings.Count(cas, "BEGIN CERTIFICATE"); n != 3 { // root, devices, management
		t.Errorf("openssl finds %d CA certificates:\n%s", n, cas)
	}
	casFile := testpki.WriteFile(t, filepath.Join(dir, "cas.pem"), []byte(cas))
	key := filepath.Join(dir, "key.pem")
	openssl(t, nil, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
	csr := openssl(t, nil, "req", "-new", "-key", key, "-subj", "/CN="+id)
	answer := run([]byte(csr), "--netrc-file", netrc, "--header", "Content-Type: application/pkcs10", "--data-binary", "@-", enrollURL(s))
	cert := openssl(t, decode(answer), "pkcs7", "-inform", "DER", "-print_certs")
	certFile := testpki.WriteFile(t, filepath.Join(dir, "cert.pem"), []byte(cert))
	openssl(t, nil, "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", trust, "-untrusted", casFile, certFile)
	for _, der := range [][]byte{decode(answer)} {
		if text := openssl(t, der, "cms", "-cmsout", "-print", "-noout", "-inform", "DER"); !strings.Contains(text, "signerInfos:\n      <EMPTY>") {
			t.Errorf("openssl cms reads\n%s", text)
		}
	}
	renewed := run([]byte(csr), "--cert", certFile, "--key", key, "--header", "Content-Type: application/pkcs10", "--data-binary", "@-",
		s.URL+wire.Path("", wire.OpSimpleReenroll))
	if text := openssl(t, decode(renewed), "pkcs7", "-inform", "DER", "-print_certs"); !strings.Contains(text, id) {
		t.Errorf("renewed:\n%s", text)
	}
}

// globalsign's own client, which shares the encoder with the server but none of what stands around it, goes through a device's life.
func globalsignClient(t *testing.T, s *testserver.Server) {
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.Anchor(t))
	client := est.Client{Host: strings.TrimPrefix(s.URL, "https://"), ExplicitAnchor: pool, DisableKeepAlives: true}
	cas, err := client.CACerts(t.Context())
	if err != nil || len(cas) != 3 {
		t.Fatalf("cacerts: %d, %v", len(cas), err)
	}
	attrs, err := client.CSRAttrs(t.Context())
	if err != nil || len(attrs.Attributes) == 0 {
		t.Fatalf("csrattrs: %v, %v", attrs, err)
	}
	parse := func(key crypto.Signer) *x509.CertificateRequest {
		csr, err := x509.ParseCertificateRequest(testpki.CSR(t, key, id, nil))
		if err != nil {
			t.Fatal(err)
		}
		return csr
	}
	key := testpki.Key(t, "ec:P-256")
	wrong := client
	wrong.Username, wrong.Password = id, "wrong"
	var refused est.Error
	if _, err := wrong.Enroll(t.Context(), parse(key)); !errors.As(err, &refused) || refused.StatusCode() != http.StatusUnauthorized {
		t.Fatalf("wrong code: %v", err)
	}
	client.Username, client.Password = id, code.Code
	cert, err := client.Enroll(t.Context(), parse(key))
	if err != nil {
		t.Fatalf("enroll: %v", err)
	}
	client.Username, client.Password = "", ""
	client.PrivateKey, client.Certificates = key, []*x509.Certificate{cert}
	renewed, err := client.Reenroll(t.Context(), parse(testpki.Key(t, "ec:P-384")))
	if err != nil || renewed.Subject.CommonName != id || renewed.SerialNumber.Cmp(cert.SerialNumber) == 0 {
		t.Fatalf("reenroll: %v", err)
	}
	if _, err := renewed.Verify(x509.VerifyOptions{Roots: pool, Intermediates: poolOf(cas), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}
