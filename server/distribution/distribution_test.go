// What anybody may fetch, and how caches are told.

package distribution

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func newHandler(t *testing.T) (http.Handler, *installation.Installation) {
	t.Helper()
	i := installation.New(t, storage.Open(t, database.SQLite))
	return Handler(Config{CA: i.CA, Clock: i.Clock.Clock(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}), i
}

func ask(h http.Handler, method, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for n := 0; n+1 < len(header); n += 2 {
		r.Header.Set(header[n], header[n+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	h, i := newHandler(t)
	info, err := i.CA.Get(t.Context(), "devices")
	if err != nil {
		t.Fatal(err)
	}
	want := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: info.Certificate.Raw})
	for path, c := range map[string]struct {
		content     []byte
		contentType string
	}{
		"/ca/devices.pem": {want, "application/x-pem-file"},
		"/ca/devices.crt": {want, "application/x-pem-file"},
		"/ca/devices.der": {info.Certificate.Raw, "application/pkix-cert"},
	} {
		w := ask(h, "GET", path)
		if w.Code != 200 || !bytes.Equal(w.Body.Bytes(), c.content) || w.Header().Get("Content-Type") != c.contentType {
			t.Errorf("%s: %d %s %d bytes", path, w.Code, w.Header().Get("Content-Type"), w.Body.Len())
		}
		if w.Header().Get("Cache-Control") != "public, max-age=3600" || w.Header().Get("ETag") == "" {
			t.Errorf("%s: %v", path, w.Header())
		}
		head := ask(h, "HEAD", path)
		if head.Code != 200 || head.Body.Len() != 0 || head.Header().Get("Content-Length") != w.Header().Get("Content-Length") || head.Header().Get("ETag") != w.Header().Get("ETag") {
			t.Errorf("HEAD %s: %d %v", path, head.Code, head.Header())
		}
		if again := ask(h, "GET", path, "If-None-Match", w.Header().Get("ETag")); again.Code != 304 || again.Body.Len() != 0 {
			t.Errorf("%s with its ETag: %d", path, again.Code)
		}
	}
}

func TestCRL(t *testing.T) {
	t.Parallel()
	h, i := newHandler(t)
	device := i.EnrollByCode(t, "SN-1", installation.Key(t))
	first := ask(h, "GET", "/crl/devices.crl")
	crl, err := x509.ParseRevocationList(first.Body.Bytes())
	if first.Code != 200 || err != nil || first.Header().Get("Content-Type") != "application/pkix-crl" || first.Header().Get("Cache-Control") != "public, max-age=60" {
		t.Fatalf("%d %v %v", first.Code, first.Header(), err)
	}
	if w := ask(h, "GET", "/crl/devices.crl", "If-None-Match", first.Header().Get("ETag")); w.Code != 304 {
		t.Errorf("unchanged: %d", w.Code)
	}
	if _, err := i.CA.Revoke(t.Context(), "test", device.Serial, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	second := ask(h, "GET", "/crl/devices.crl", "If-None-Match", first.Header().Get("ETag"))
	next, err := x509.ParseRevocationList(second.Body.Bytes())
	if err != nil || second.Code != 200 || next.Number.Cmp(crl.Number) <= 0 || len(next.RevokedCertificateEntries) != 1 {
		t.Errorf("after the revocation: %d, %v", second.Code, err)
	}
	// Near its end a CRL must not sit in caches beyond it.
	i.Clock.Advance(next.NextUpdate.Sub(i.Clock.Clock().Now()) - 20*time.Second)
	if w := ask(h, "GET", "/crl/devices.crl"); w.Header().Get("Cache-Control") != "public, max-age=20" {
		t.Errorf("20 s before its end: %s", w.Header().Get("Cache-Control"))
	}
	i.Clock.Advance(time.Minute)
	if w := ask(h, "GET", "/crl/devices.crl"); w.Header().Get("Cache-Control") != "public, max-age=0" {
		t.Errorf("after its end: %s", w.Header().Get("Cache-Control"))
	}
}

func TestNothingElse(t *testing.T) {
	t.Parallel()
	h, i := newHandler(t)
	if _, err := i.CA.Create(t.Context(), "test", ca.CreateRequest{Name: "waiting", External: true, PublicURL: "http://x"}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/", "/ca", "/ca/", "/ca/devices", "/ca/devices.p12", "/ca/devices.key", "/ca/nope.pem", "/ca/waiting.pem", "/crl/waiting.crl", "/crl/devices", "/crl/devices.pem", "/crl/nope.crl",
		"/ca/..%2Fkeys%2Fdevices.pem", "/ca/../keys/devices.pem", "/ca/.pem", "/crl/.crl", "/CA/devices.pem", "/ca/devices.pem/", "/ca//devices.pem", "/keys/devices.pem", "/metrics",
	} {
		if w := ask(h, "GET", path); w.Code != 404 {
			t.Errorf("GET %s: %d", path, w.Code)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		if w := ask(h, method, "/ca/devices.pem"); w.Code != 405 {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
}

// When the database does not answer, the answer is 503 with Retry-After, not an empty list.
func TestFailClosed(t *testing.T) {
	t.Parallel()
	h, i := newHandler(t)
	if err := i.DB.Write(t.Context(), "test", func(tx *database.Tx) error {
		_, err := tx.Exec("DROP TABLE counters")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w := ask(h, "GET", "/crl/devices.crl")
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("Cache-Control") != "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}
