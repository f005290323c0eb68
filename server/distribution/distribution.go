// Package distribution is the public HTTP side: CA certificates and CRLs for whoever checks a certificate.
//
//	/ca/NAME.pem, /ca/NAME.crt   the CA's certificate, PEM, always the same bytes
//	/ca/NAME.der                 the same, DER
//	/crl/NAME.crl                the CA's current CRL, DER
//	/crl/NAME/N.crl              of a CA with several CRLs, the current one of shard N, DER
//	/ocsp/NAME                   OCSP, POST and GET (ocsp.go)
//
// GET and HEAD, with ETag and Cache-Control; nothing here needs or reveals anything else. Plain HTTP, because
// what is fetched carries its own signature and fetching it must not need a certificate (RFC 5280 section 8).
package distribution

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
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

type handler struct{ cfg Config }

// Handler serves the paths of the package comment.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg: cfg}
	r := chi.NewRouter()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		r.MethodFunc(method, "/ca/{file}", h.certificate)
		r.MethodFunc(method, "/crl/{file}", h.crl)
		r.MethodFunc(method, "/crl/{name}/{file}", h.shard)
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
	serve(w, r, bytes.NewReader(content), time.Time{}, contentType, hex.EncodeToString(sum[:]), certMaxAge)
}

func (h *handler) crl(w http.ResponseWriter, r *http.Request) {
	name, suffix, _ := cutLast(chi.URLParam(r, "file"), ".")
	if suffix != "crl" {
		http.NotFound(w, r)
		return
	}
	shards, err := h.cfg.CA.Shards(r.Context(), name)
	if err == nil && shards > 1 {
		http.Error(w, fmt.Sprintf("this CA has %d CRLs: /crl/%s/0.crl to %d.crl", shards, name, shards-1), http.StatusNotFound)
		return
	}
	h.published(w, r, name, 0, err)
}

func (h *handler) shard(w http.ResponseWriter, r *http.Request) {
	name, file := chi.URLParam(r, "name"), chi.URLParam(r, "file")
	digits, suffix, _ := cutLast(file, ".")
	shard, err := strconv.Atoi(digits)
	if suffix != "crl" || err != nil || strconv.Itoa(shard) != digits { // one address for each CRL
		http.NotFound(w, r)
		return
	}
	shards, err := h.cfg.CA.Shards(r.Context(), name)
	if err == nil && (shards == 1 || shard < 0 || shard >= shards) {
		http.NotFound(w, r)
		return
	}
	h.published(w, r, name, shard, err)
}

// settledAfter is how old a CRL is before it is given out with Last-Modified: that counts in seconds, and a CRL that follows within the same one must
// not look like it.
const settledAfter = 2 * time.Second

// published answers with the CRL that the database names now; its bytes are in memory.
func (h *handler) published(w http.ResponseWriter, r *http.Request, name string, shard int, err error) {
	if err != nil {
		h.fail(w, r, err)
		return
	}
	crl, err := h.cfg.CA.Published(r.Context(), name, shard)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	now, modified := h.cfg.Clock.Now(), crl.IssuedAt
	if now.Sub(modified) < settledAfter {
		modified = time.Time{}
	}
	maxAge := min(crlMaxAge, max(0, crl.NextUpdate.Sub(now)))
	serve(w, r, crl.Reader(), modified, "application/pkix-crl", crl.SHA256, maxAge)
}

// serve answers with the whole content, a part of it or 304.
func serve(w http.ResponseWriter, r *http.Request, content io.ReadSeeker, modified time.Time, contentType, etag string, maxAge time.Duration) {
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("ETag", `"`+etag+`"`)
	header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(maxAge.Seconds())))
	header.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", modified, content)
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
