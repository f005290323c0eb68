// The front on a running server: what the numbered cases of internal/conformance do not look at.

package front_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/globalsign/est"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/front"
	"github.com/natal-pki/natal/server/instance"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// post sends a CSR.
func post(t testing.TB, c *http.Client, url string, der []byte, edit func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(wire.EncodeBase64(der)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", wire.TypePKCS10)
	if edit != nil {
		edit(r)
	}
	return do(t, c, r)
}

func do(t testing.TB, c *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

func issued(t testing.TB, body string) *x509.Certificate {
	t.Helper()
	der, err := wire.DecodeBase64([]byte(body))
	if err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	certs, err := wire.ParseCertsOnly(der)
	if err != nil || len(certs) != 1 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	return certs[0]
}

func enrollURL(s *testserver.Server) string { return s.URL + wire.Path("", wire.OpSimpleEnroll) }

func authorizationDecidesBeforeTheCertificate(t *testing.T, s *testserver.Server) {
	id := s.NewID()
	client := s.Client(t, s.Factory.Birth(t, id).TLS())
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
	for name, credentials := range map[string][2]string{"wrong code": {id, "wrong"}, "empty": {"", ""}} {
		answer, body := post(t, client, enrollURL(s), csr, func(r *http.Request) { r.SetBasicAuth(credentials[0], credentials[1]) })
		if answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s beside a good birth certificate: %d %s", name, answer.StatusCode, body)
		}
	}
	answer, body := post(t, client, enrollURL(s), csr, nil)
	if answer.StatusCode != http.StatusOK || issued(t, body).Subject.CommonName != id {
		t.Fatalf("birth certificate alone: %d %s", answer.StatusCode, body)
	}
}

// TestFront runs everything on one instance. What moves the clock comes first and alone.
func TestFront(t *testing.T) {
	t.Parallel()
	s := testserver.Start(t, nil)
	t.Run("RepeatGetsTheSameCertificate", func(t *testing.T) { repeatGetsTheSameCertificate(t, s) })
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, s *testserver.Server)
	}{
		{"AuthorizationDecidesBeforeTheCertificate", authorizationDecidesBeforeTheCertificate},
		{"OneCodeManyKeys", oneCodeManyKeys},
		{"WaitingCA", issuanceWaits},
		{"DeviceHangsUp", deviceHangsUp},
		{"CSRAttributes", csrAttributes},
		{"CurlAndOpenSSL", curlAndOpenSSL},
		{"BridgeLabel", bridgeLabel},
		{"OwnCertificatesAreNoBirthCertificates", ownCertificatesAreNoBirthCertificates},
		{"Methods", methods},
		{"Mutants", mutants},
		{"GlobalsignClient", globalsignClient},
		{"WrongCodesAreThrottled", wrongCodesAreThrottled},
		{"OneRecordPerRequest", oneRecordPerRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.run(t, s)
		})
	}
}

// A repeat after a lost answer gets the same certificate, by code and by birth certificate; it is counted once.
func repeatGetsTheSameCertificate(t *testing.T, s *testserver.Server) {
	s = s.Another(t, nil)
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := testpki.Key(t, "ec:P-256")
	var serials []string
	for range 3 {
		s.Manual.Advance(time.Minute)
		_, body := post(t, s.Client(t), enrollURL(s), testpki.CSR(t, key, id, nil), func(r *http.Request) { r.SetBasicAuth(id, code.Code) })
		serials = append(serials, issued(t, body).SerialNumber.String())
	}
	if serials[0] != serials[1] || serials[0] != serials[2] {
		t.Fatalf("serial numbers %v", serials)
	}
	page := metrics(t, s)
	want := `est_certificates_issued_total{label="default",profile="iot-device",requester="code"} 1`
	if !strings.Contains(page, want+"\n") {
		t.Errorf("no line %q in\n%s", want, grep(page, "est_certificates_issued_total"))
	}
}

func metrics(t testing.TB, s *testserver.Server) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.Metrics.Handler(emptyChecks).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

func grep(text, word string) string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		if strings.Contains(line, word) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// 60 devices at once, one code and 60 keys: one certificate.
func oneCodeManyKeys(t *testing.T, s *testserver.Server) {
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	const devices = 60
	client := s.Client(t)
	statuses := make([]int, devices)
	var wg sync.WaitGroup
	for i := range devices {
		csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
		wg.Go(func() {
			answer, _ := post(t, client, enrollURL(s), csr, func(r *http.Request) { r.SetBasicAuth(id, code.Code) })
			statuses[i] = answer.StatusCode
		})
	}
	wg.Wait()
	good := 0
	for _, status := range statuses {
		switch status {
		case http.StatusOK:
			good++
		case http.StatusUnauthorized:
		default:
			t.Errorf("status %d", status)
		}
	}
	if good != 1 {
		t.Errorf("%d certificates from one code", good)
	}
}

// Too many wrong codes of an address are answered with 429, under whatever address it claims to have; the right code still works.
func wrongCodesAreThrottled(t *testing.T, s *testserver.Server) {
	s = s.Another(t, nil)
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, csr := s.Client(t), testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
	limited := 0
	for i := range 150 {
		answer, _ := post(t, client, enrollURL(s), csr, func(r *http.Request) {
			r.SetBasicAuth(id, "wrong")
			r.Header.Set("X-Forwarded-For", "192.0.2."+string(rune('0'+i%10)))
			r.Header.Set("X-Real-IP", "192.0.2.1")
		})
		switch answer.StatusCode {
		case http.StatusUnauthorized:
			if limited > 0 {
				t.Fatalf("attempt %d: 401 after 429, with a clock that stands still", i)
			}
		case http.StatusTooManyRequests:
			limited++
			if answer.Header.Get("Retry-After") == "" {
				t.Fatal("429 without Retry-After")
			}
		default:
			t.Fatalf("attempt %d: %d", i, answer.StatusCode)
		}
	}
	if limited == 0 {
		t.Error("never throttled")
	}
	answer, body := post(t, client, enrollURL(s), csr, func(r *http.Request) { r.SetBasicAuth(id, code.Code) })
	if answer.StatusCode != http.StatusOK {
		t.Errorf("the right code from a throttled address: %d %s", answer.StatusCode, body)
	}
}

// While a CA waits for its certificate every issuance under its label is refused with 503; /cacerts still has the server's chain, and nothing is used up.
func issuanceWaits(t *testing.T, s *testserver.Server) {
	waitingCA(t, s)
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, "waiting", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
	answer, body := post(t, s.Client(t), s.URL+wire.Path("waiting", wire.OpSimpleEnroll), csr, func(r *http.Request) { r.SetBasicAuth(id, code.Code) })
	if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" || answer.Header.Get(wire.ReasonHeader) == "" {
		t.Errorf("enroll: %d %v %s", answer.StatusCode, answer.Header, body)
	}
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+wire.Path("waiting", wire.OpCACerts), nil)
	if answer, body := do(t, s.Client(t), r); answer.StatusCode != http.StatusOK {
		t.Errorf("cacerts: %d %s", answer.StatusCode, body)
	}
	codes, err := s.Book.Codes(t.Context(), registration.Filter{Device: id})
	if err != nil || len(codes) != 1 || codes[0].State != registration.CodeActive {
		t.Errorf("codes %+v, %v", codes, err)
	}
}

// A device that hangs up in the middle gets its certificate at its repeat: what was begun is carried to its end.
func deviceHangsUp(t *testing.T, s *testserver.Server) {
	leaf := s.Factory.Birth(t, s.NewID())
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), leaf.Certificate.Subject.CommonName, nil)
	for _, cancelled := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		if cancelled {
			cancel()
		}
		w := httptest.NewRecorder()
		s.Front.ServeHTTP(w, request(ctx, leaf.Certificate, csr))
		cancel()
		want := http.StatusOK
		if cancelled {
			want = http.StatusServiceUnavailable
		}
		if w.Code != want {
			t.Errorf("cancelled %t: %d %s", cancelled, w.Code, w.Body)
		}
	}
}

// request is an enrollment as net/http would hand it over.
func request(ctx context.Context, certificate *x509.Certificate, csr []byte) *http.Request {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, wire.Path("", wire.OpSimpleEnroll), bytes.NewReader(wire.EncodeBase64(csr)))
	r.Header.Set("Content-Type", wire.TypePKCS10)
	r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true}
	if certificate != nil {
		r.TLS.PeerCertificates = []*x509.Certificate{certificate}
	}
	return r
}

// The log has one record for each request, with what an operator looks for and without secrets.
func oneRecordPerRequest(t *testing.T, s *testserver.Server) {
	var out lockedBuffer
	s = s.Another(t, slog.New(slog.NewJSONHandler(&out, nil)))
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
	client := s.Client(t)
	forged := func(r *http.Request) {
		r.Header.Set("X-Request-Id", "forged")
		r.Header.Set("X-Forwarded-For", "192.0.2.99")
	}
	post(t, client, enrollURL(s), csr, func(r *http.Request) { forged(r); r.SetBasicAuth(id, code.Code) })
	post(t, client, enrollURL(s), csr, func(r *http.Request) { forged(r); r.SetBasicAuth(id, "wrong-code-\x1b[31m") })
	post(t, client, s.URL+wire.Path("no\"such", wire.OpSimpleEnroll), csr, forged)
	var records []map[string]any
	for line := range strings.SplitSeq(strings.TrimSpace(out.String()), "\n") {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if record["msg"] == "est request" {
			records = append(records, record)
		}
	}
	if len(records) != 3 {
		t.Fatalf("%d records:\n%s", len(records), out.String())
	}
	for i, want := range []map[string]any{
		{"operation": "simpleenroll", "label": "default", "status": 200., "reason": "ok", "device": id, "requester": "code", "tls": "TLS 1.3"},
		{"operation": "simpleenroll", "label": "default", "status": 401., "reason": "not_authenticated"},
		{"operation": "simpleenroll", "label": "unknown", "status": 404., "reason": "unknown_label"},
	} {
		for key, value := range want {
			if records[i][key] != value {
				t.Errorf("record %d: %s is %v, want %v", i, key, records[i][key], value)
			}
		}
	}
	for _, secret := range []string{code.Code, "wrong-code", "forged", "192.0.2.99", base64.StdEncoding.EncodeToString([]byte(id + ":" + code.Code))} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

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

// A request for the bridge's own host name at label mqtt-server needs a bridge certificate.
func bridgeLabel(t *testing.T, s *testserver.Server) {
	host := "mqtt.example.com"
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, host, "bridge", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := testpki.Key(t, "ec:P-256")
	answer, body := post(t, s.Client(t), s.URL+wire.Path("bridge", wire.OpSimpleEnroll), testpki.CSR(t, key, host, nil), func(r *http.Request) { r.SetBasicAuth(host, code.Code) })
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("bridge: %d %s", answer.StatusCode, body)
	}
	bridge := s.Client(t, tls.Certificate{Certificate: [][]byte{issued(t, body).Raw}, PrivateKey: key})
	serverCSR := func(name string) []byte {
		return testpki.CSR(t, testpki.Key(t, "ec:P-256"), name, func(r *x509.CertificateRequest) { r.DNSNames = []string{name} })
	}
	url := s.URL + wire.Path("mqtt-server", wire.OpSimpleEnroll)
	answer, body = post(t, bridge, url, serverCSR(host), nil)
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("server certificate: %d %s", answer.StatusCode, body)
	}
	serverCertificate := issued(t, body)
	if err := serverCertificate.VerifyHostname(host); err != nil {
		t.Error(err)
	}
	if answer, body := post(t, bridge, url, serverCSR("other.example.com"), nil); answer.StatusCode < 400 || answer.StatusCode > 499 {
		t.Errorf("another host: %d %s", answer.StatusCode, body)
	}
	// a device's certificate, and the server certificate itself, authorise nothing there
	device := s.Factory.Birth(t, s.NewID())
	if answer, body := post(t, s.Client(t, device.TLS()), url, serverCSR(host), nil); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("birth certificate: %d %s", answer.StatusCode, body)
	}
	w := httptest.NewRecorder()
	r := request(t.Context(), serverCertificate, serverCSR(host))
	r.URL.Path = wire.Path("mqtt-server", wire.OpSimpleEnroll)
	if s.Front.ServeHTTP(w, r); w.Code != http.StatusUnauthorized {
		t.Errorf("server certificate as client: %d %s", w.Code, w.Body)
	}
}

// A revoked certificate of ours gets no second chance as a birth certificate.
func ownCertificatesAreNoBirthCertificates(t *testing.T, s *testserver.Server) {
	id := s.NewID()
	birth := s.Factory.Birth(t, id)
	key := testpki.Key(t, "ec:P-256")
	_, body := post(t, s.Client(t, birth.TLS()), enrollURL(s), testpki.CSR(t, key, id, nil), nil)
	cert := issued(t, body)
	root, err := s.CA.Get(t.Context(), instance.RootCA)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Book.AddBirthCA(t.Context(), testserver.Actor, registration.Default, testpki.CertPEM(root.Certificate)); err == nil {
		t.Error("the installation's own root became a birth CA")
	}
	if _, err := s.CA.Revoke(t.Context(), testserver.Actor, cert.SerialNumber.Text(16), "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	client := s.Client(t, tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key})
	if answer, body := post(t, client, enrollURL(s), testpki.CSR(t, key, id, nil), nil); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
}

// HEAD answers as GET does, without the body; OPTIONS and unknown methods are refused with the allowed ones.
func methods(t *testing.T, s *testserver.Server) {
	client := s.Client(t)
	for _, tt := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"HEAD", wire.Path("", wire.OpCACerts), 200, ""},
		{"HEAD", wire.Path("", wire.OpCSRAttrs), 200, ""},
		{"HEAD", wire.Path("nosuch", wire.OpCACerts), 404, ""},
		{"HEAD", wire.Path("", wire.OpSimpleEnroll), 405, "POST"},
		{"OPTIONS", wire.Path("", wire.OpCACerts), 405, "GET, HEAD"},
		{"OPTIONS", "/.well-known/est/nosuch", 404, ""},
		{"BREW", wire.Path("", wire.OpSimpleReenroll), 405, "POST"},
		{"BREW", wire.Path("bridge", wire.OpCACerts), 405, "GET, HEAD"},
		{"BREW", "/.well-known/est/nosuch", 404, ""},
		{"BREW", "/elsewhere/cacerts", 404, ""},
		{"POST", wire.Path("", wire.OpFullCMC), 501, ""},
		{"POST", wire.Path("", wire.OpServerKeyGen), 404, ""},
		{"GET", wire.Path("", wire.OpServerKeyGen), 405, "POST"},
		{"GET", wire.Path("default", wire.OpCACerts), 404, ""},
		{"GET", wire.Path("Bridge", wire.OpCACerts), 404, ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, s.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, body := do(t, client, r)
		if answer.StatusCode != tt.status || answer.Header.Get("Allow") != tt.allow || answer.ContentLength < 1 {
			t.Errorf("%s %s: %d, Allow %q, Content-Length %d", tt.method, tt.path, answer.StatusCode, answer.Header.Get("Allow"), answer.ContentLength)
		}
		if (tt.method == "HEAD") != (body == "") {
			t.Errorf("%s %s: body %q", tt.method, tt.path, body)
		}
		for _, name := range []string{"Server", "Strict-Transport-Security", "X-Content-Type-Options"} {
			if answer.Header.Get(name) != "" {
				t.Errorf("%s %s: header %s leaks from the encoder", tt.method, tt.path, name)
			}
		}
	}
}

// 5,000 mutants of a good request: 4xx, or a certificate for exactly this device.
func mutants(t *testing.T, s *testserver.Server) {
	leaf := s.Factory.Birth(t, s.NewID())
	id := leaf.Certificate.Subject.CommonName
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
	for i := range csr {
		for _, mutate := range []func([]byte) []byte{
			func(b []byte) []byte { b[i] ^= 1; return b },
			func(b []byte) []byte { b[i] ^= 0x80; return b },
			func(b []byte) []byte { b[i] = 0xff; return b },
			func(b []byte) []byte { return b[:i] },
			func(b []byte) []byte { return append(b[:i:i], append([]byte{0}, b[i:]...)...) },
			func(b []byte) []byte { return append(b[:i:i], b[i+1:]...) },
		} {
			w := httptest.NewRecorder()
			mutant := mutate(bytes.Clone(csr))
			s.Front.ServeHTTP(w, request(t.Context(), leaf.Certificate, mutant))
			if bytes.Equal(mutant, csr) {
				continue
			}
			if w.Code == http.StatusOK {
				if got := issued(t, w.Body.String()); got.Subject.CommonName != id {
					t.Fatalf("mutant at %d: certificate for %s", i, got.Subject)
				}
				continue
			}
			if w.Code < 400 || w.Code > 499 {
				t.Fatalf("mutant at %d: %d %s", i, w.Code, w.Body)
			}
		}
	}
}

// The server's timeouts are all set; a forgotten one is a slow loris's way in.
func TestServerHasEveryTimeout(t *testing.T) {
	t.Parallel()
	srv := front.Server(http.NotFoundHandler(), &tls.Config{MinVersion: tls.VersionTLS12}, slog.New(slog.DiscardHandler))
	if srv.ReadHeaderTimeout <= 0 || srv.ReadTimeout <= 0 || srv.WriteTimeout < 30*time.Second || srv.IdleTimeout <= 0 || srv.MaxHeaderBytes > 64<<10 {
		t.Errorf("%+v", srv)
	}
	if srv.Protocols.HTTP2() || srv.Protocols.UnencryptedHTTP2() {
		t.Error("HTTP/2 is on")
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
