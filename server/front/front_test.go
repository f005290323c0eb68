// The front on a running server: what the numbered cases of internal/conformance do not look at.

package front_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/front"
	"github.com/natal-pki/natal/server/registration"
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
		{"RefusalIsAudited", refusalIsAudited},
		{"ExplainAgrees", explainAgrees},
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
