// Package distribution is the public HTTP side: CA certificates and CRLs for whoever checks a certificate.
//
//	/ca/NAME.pem, /ca/NAME.crt   the CA's certificate, PEM, always the same bytes
//	/ca/NAME.der                 the same, DER
//	/crl/NAME.crl                the CA's current CRL, DER
//	/ocsp/NAME                   OCSP, POST and GET (ocsp.go)
//
// GET and HEAD, with ETag and Cache-Control; nothing here needs or reveals anything else. Plain HTTP, because
// what is fetched carries its own signature and fetching it must not need a certificate (RFC 5280 section 8).
package distribution

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/clock"
)

const (
	certMaxAge = time.Hour
	crlMaxAge  = time.Minute // a cache may hide a revocation for this long
)

// Config is what the handler reads from.
type Config struct {
	CA    *ca.Authorities
	Clock *clock.Clock
	Log   *slog.Logger

	OCSP        Responder    // default: CA
	OCSPMetrics *OCSPMetrics // may be nil
}

type handler struct {
	cfg Config

	mu   sync.Mutex
	crls map[string]ca.CRL // newest seen of each CA: a large CRL is read from the database once
}

// Handler serves the paths of the package comment.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg: cfg, crls: map[string]ca.CRL{}}
	r := chi.NewRouter()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		r.MethodFunc(method, "/ca/{file}", h.certificate)
		r.MethodFunc(method, "/crl/{file}", h.crl)
	}
	if cfg.OCSP == nil {
		cfg.OCSP = cfg.CA
	}
	r.Handle("/ocsp/*", OCSP(cfg.OCSP, cfg.Clock, cfg.OCSPMetrics))
	return r
}

func (h *handler) certificate(w http.ResponseWriter, r *http.Request) {
	name, suffix, _ := cutLast(chi.URLParam(r, "file"), ".")
	var contentType string
	switch suffix {
	case "pem", "crt":
		contentType = "application/x-pem-file"
	case "der":
		contentType = "application/pkix-cert"
	default:
		http.NotFound(w, r)
		return
	}
	info, err := h.cfg.CA.Get(r.Context(), name)
	if err == nil && info.Certificate == nil {
		http.Error(w, "this CA waits for its certificate", http.StatusNotFound)
		return
	}
	if err != nil {
		h.fail(w, r, err)
		return
	}
	content := info.Certificate.Raw
	if suffix != "der" {
		content = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: content})
	}
	sum := sha256.Sum256(content)
	serve(w, r, content, contentType, hex.EncodeToString(sum[:]), certMaxAge)
}

func (h *handler) crl(w http.ResponseWriter, r *http.Request) {
	name, suffix, _ := cutLast(chi.URLParam(r, "file"), ".")
	if suffix != "crl" {
		http.NotFound(w, r)
		return
	}
	crl, err := h.current(r.Context(), name)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	maxAge := min(crlMaxAge, max(0, crl.NextUpdate.Sub(h.cfg.Clock.Now())))
	serve(w, r, crl.DER, "application/pkix-crl", crl.SHA256, maxAge)
}

// current is the CA's CRL of the number that the database names now.
func (h *handler) current(ctx context.Context, name string) (ca.CRL, error) {
	info, err := h.cfg.CA.Get(ctx, name)
	if err != nil {
		return ca.CRL{}, err
	}
	h.mu.Lock()
	crl, ok := h.crls[name]
	h.mu.Unlock()
	if ok && crl.Number == info.CRLNumber {
		return crl, nil
	}
	crl, err = h.cfg.CA.CurrentCRL(ctx, name)
	if err != nil {
		return ca.CRL{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.crls[name].Number < crl.Number {
		h.crls[name] = crl
	}
	return crl, nil
}

// serve answers with the whole content, a part of it or 304.
func serve(w http.ResponseWriter, r *http.Request, content []byte, contentType, etag string, maxAge time.Duration) {
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("ETag", `"`+etag+`"`)
	header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(maxAge.Seconds())))
	header.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *ca.Error
	if errors.As(err, &e) && e.Kind == ca.NotFound {
		http.NotFound(w, r)
		return
	}
	h.cfg.Log.Error("distribution failed", "path", r.URL.Path, "error", err)
	w.Header().Set("Retry-After", "5")
	http.Error(w, "not available now", http.StatusServiceUnavailable)
}

// cutLast splits s at the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
