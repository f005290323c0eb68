// OCSP over HTTP: both methods, what caches are told, and nothing but an OCSP response to whoever sends nonsense.

package distribution

import (
	"bytes"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	xocsp "golang.org/x/crypto/ocsp"

	"crypto/x509"
)

func post(h http.Handler, path, contentType string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", path, bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestOCSPOverHTTP(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	metrics := NewOCSPMetrics(prometheus.NewRegistry())
	metrics.CA("devices")
	h := Handler(Config{CA: i.CA, Clock: i.Clock.Clock(), Log: slog.New(slog.DiscardHandler), OCSPMetrics: metrics})
	if err := i.CA.RenewOCSPSigners(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := i.CA.Get(t.Context(), "devices")
	if err != nil {
		t.Fatal(err)
	}
	// Certificates until the base64 of a request holds a slash, a plus and two slashes in a row: what paths and proxies trip over.
	var der []byte
	var record ca.Certificate
	var leaf *x509.Certificate
	for n := 0; ; n++ {
		record = i.EnrollByCode(t, "SN-"+string(rune('a'+n%26))+strings.Repeat("x", n/26), installation.Key(t))
		if leaf, err = x509.ParseCertificate(record.DER); err != nil {
			t.Fatal(err)
		}
		if der, err = xocsp.CreateRequest(leaf, info.Certificate, nil); err != nil {
			t.Fatal(err)
		}
		if text := base64.StdEncoding.EncodeToString(der); strings.Contains(text, "+") && strings.Contains(text, "/") || n > 60 {
			break
		}
	}
	text := base64.StdEncoding.EncodeToString(der)
	answered := func(w *httptest.ResponseRecorder) *xocsp.Response {
		t.Helper()
		answer, err := xocsp.ParseResponseForCert(w.Body.Bytes(), leaf, info.Certificate)
		if w.Code != 200 || w.Header().Get("Content-Type") != "application/ocsp-response" || err != nil {
			t.Fatalf("%d %v: %v", w.Code, w.Header(), err)
		}
		return answer
	}
	first := ask(h, "GET", "/ocsp/devices/"+url.PathEscape(text))
	answer := answered(first)
	if answer.Status != xocsp.Good {
		t.Errorf("status %d", answer.Status)
	}
	header := first.Header()
	now := i.Clock.Clock().Now()
	if header.Get("Cache-Control") != "public, max-age=60, no-transform, must-revalidate" || header.Get("Expires") != now.Add(time.Minute).Format(http.TimeFormat) ||
		header.Get("Last-Modified") != answer.ThisUpdate.Format(http.TimeFormat) || header.Get("ETag") == "" {
		t.Errorf("%v", header)
	}
	for name, path := range map[string]string{
		"as it is": text, "every octet escaped": everyOctet(text), "without padding": strings.TrimRight(text, "="),
	} {
		if w := ask(h, "GET", "/ocsp/devices/"+path); !bytes.Equal(w.Body.Bytes(), first.Body.Bytes()) {
			t.Errorf("%s: %d, another answer", name, w.Code)
		}
	}
	if w := ask(h, "GET", "/ocsp/devices/"+url.PathEscape(text), "If-None-Match", header.Get("ETag")); w.Code != 304 || w.Body.Len() > 0 {
		t.Errorf("with its ETag: %d", w.Code)
	}
	if w := ask(h, "HEAD", "/ocsp/devices/"+url.PathEscape(text)); w.Code != 200 || w.Body.Len() > 0 || w.Header().Get("Content-Length") == "" {
		t.Errorf("HEAD: %d %v", w.Code, w.Header())
	}
	if w := post(h, "/ocsp/devices", "application/ocsp-request", der); answered(w).Status != xocsp.Good || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("POST: %v", w.Header())
	}
	if n := testutil.ToFloat64(metrics.requests.WithLabelValues("devices", "good")); n != 7 {
		t.Errorf("%v answers counted", n)
	}
	if n := testutil.ToFloat64(metrics.signatures.WithLabelValues("devices")); n != 1 {
		t.Errorf("%v signatures for the same answer", n)
	}
	if _, err := i.CA.Revoke(t.Context(), "test", record.Serial, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	w := ask(h, "GET", "/ocsp/devices/"+url.PathEscape(text), "If-None-Match", header.Get("ETag"))
	if got := answered(w); got.Status != xocsp.Revoked || got.RevocationReason != xocsp.KeyCompromise {
		t.Errorf("after the revocation: %+v", got)
	}
	// A failure is for nobody's cache.
	i.DB.Close()
	w = ask(h, "GET", "/ocsp/devices/"+url.PathEscape(text))
	if w.Code != 200 || !bytes.Equal(w.Body.Bytes(), ocsp.Failure(ocsp.OutcomeTryLater).DER) || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Retry-After") == "" {
		t.Errorf("without a database: %d %v %x", w.Code, w.Header(), w.Body.Bytes())
	}
}

func everyOctet(s string) string {
	var b strings.Builder
	for n := range len(s) {
		const digits = "0123456789ABCDEF"
		b.WriteByte('%')
		b.WriteByte(digits[s[n]>>4])
		b.WriteByte(digits[s[n]&15])
	}
	return b.String()
}

func TestOCSPNonsense(t *testing.T) {
	t.Parallel()
	h, i := newHandler(t)
	if err := i.CA.RenewOCSPSigners(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := i.CA.Create(t.Context(), "test", ca.CreateRequest{Name: "waiting", External: true, PublicURL: "http://x"}); err != nil {
		t.Fatal(err)
	}
	malformed := ocsp.Failure(ocsp.OutcomeMalformed).DER
	const want = "application/ocsp-request"
	for name, w := range map[string]*httptest.ResponseRecorder{
		"text":               post(h, "/ocsp/devices", want, []byte("nonsense")),
		"nothing":            post(h, "/ocsp/devices", want+"; charset=utf-8", nil),
		"no base64":          ask(h, "GET", "/ocsp/devices/!!!"),
		"base64 of nothing":  ask(h, "GET", "/ocsp/devices/"),
		"base64 of nonsense": ask(h, "GET", "/ocsp/devices/bm9uc2Vuc2U="),
		"dots":               ask(h, "GET", "/ocsp/devices/../../keys/devices.pem"),
	} {
		if w.Code != 200 || !bytes.Equal(w.Body.Bytes(), malformed) || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %x", name, w.Code, w.Body.Bytes())
		}
	}
	for name, c := range map[string]struct {
		w    *httptest.ResponseRecorder
		code int
	}{
		"too large":          {post(h, "/ocsp/devices", want, make([]byte, ocsp.MaxRequestBytes+1)), 413},
		"another media type": {post(h, "/ocsp/devices", "text/plain", nil), 415},
		"no media type":      {post(h, "/ocsp/devices", "", nil), 415},
		"GET, no request":    {ask(h, "GET", "/ocsp/devices"), 405},
		"POST to a request":  {post(h, "/ocsp/devices/AAAA", want, nil), 405},
		"PUT":                {ask(h, "PUT", "/ocsp/devices"), 405},
		"no such CA":         {post(h, "/ocsp/nobody", want, []byte("x")), 404},
		"a CA that waits":    {post(h, "/ocsp/waiting", want, []byte("x")), 404},
		"no CA":              {post(h, "/ocsp/", want, []byte("x")), 404},
		"no path":            {ask(h, "GET", "/ocsp"), 404},
		"another case":       {post(h, "/OCSP/devices", want, []byte("x")), 404},
	} {
		if c.w.Code != c.code {
			t.Errorf("%s: %d, want %d", name, c.w.Code, c.code)
		}
	}
}
