// OCSP over HTTP (RFC 6960 appendix A): POST with the request as the body, GET with the request in the path.
//
// Every answer but a wrong address is 200 with an OCSP response, errors included. What was asked by GET without a nonce is for caches, for a
// minute: so long a cache between here and a client may hide a revocation.

package distribution

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/prometheus/client_golang/prometheus"
)

const ocspMaxAge = time.Minute

// Responder answers OCSP requests about the certificates of a CA. The error is for a CA that does not exist.
type Responder interface {
	OCSP(ctx context.Context, ca string, request []byte) (ocsp.Response, error)
}

// OCSPMetrics counts what was asked and what was signed.
type OCSPMetrics struct {
	requests   *prometheus.CounterVec
	signatures *prometheus.CounterVec
}

// NewOCSPMetrics registers the series.
func NewOCSPMetrics(registry prometheus.Registerer) *OCSPMetrics {
	m := &OCSPMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "est_ocsp_requests_total",
			Help: "OCSP requests answered, by CA and status (good, revoked, unknown, or the error).",
		}, []string{"ca", "status"}),
		signatures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "est_ocsp_signatures_total",
			Help: "OCSP answers that were signed anew, by CA.",
		}, []string{"ca"}),
	}
	registry.MustRegister(m.requests, m.signatures)
	return m
}

// CA makes the series of a CA start at 0.
func (m *OCSPMetrics) CA(name string) {
	m.signatures.WithLabelValues(name)
	for _, outcome := range ocsp.Outcomes {
		m.requests.WithLabelValues(name, outcome)
	}
}

type ocspHandler struct {
	responder Responder
	clock     *clock.Clock
	metrics   *OCSPMetrics // nil: nobody counts
}

// OCSP serves /ocsp/NAME and /ocsp/NAME/REQUEST.
func OCSP(responder Responder, c *clock.Clock, metrics *OCSPMetrics) http.Handler {
	return &ocspHandler{responder: responder, clock: c, metrics: metrics}
}

func (h *ocspHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, encoded, hasRequest := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/ocsp/"), "/")
	name, err := url.PathUnescape(name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	var der []byte
	switch {
	case get && hasRequest:
		der = decodePath(encoded)
	case r.Method == http.MethodPost && !hasRequest:
		var ok bool
		if der, ok = readPost(w, r); !ok {
			return
		}
	case hasRequest:
		refuseMethod(w, "GET, HEAD")
		return
	default:
		refuseMethod(w, "POST")
		return
	}
	response, err := h.responder.OCSP(r.Context(), name, der)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if h.metrics != nil {
		h.metrics.requests.WithLabelValues(name, response.Outcome).Inc()
		if response.Signed {
			h.metrics.signatures.WithLabelValues(name).Inc()
		}
	}
	h.send(w, r, response, get)
}

func refuseMethod(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	http.Error(w, "POST application/ocsp-request to /ocsp/NAME, or GET /ocsp/NAME/REQUEST", http.StatusMethodNotAllowed)
}

// decodePath reads base64 as it stands in a path: with or without escapes, with or without its padding. What is not base64 is no request, and
// the answer to that is malformedRequest as for any other.
func decodePath(encoded string) []byte {
	if len(encoded) > 2*ocsp.MaxRequestBytes {
		return nil
	}
	text, err := url.PathUnescape(encoded)
	if err != nil {
		return nil
	}
	der, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return nil
	}
	return der
}

func readPost(w http.ResponseWriter, r *http.Request) (der []byte, ok bool) {
	mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(mediaType), "application/ocsp-request") {
		http.Error(w, "want Content-Type: application/ocsp-request", http.StatusUnsupportedMediaType)
		return nil, false
	}
	der, err := io.ReadAll(http.MaxBytesReader(w, r.Body, ocsp.MaxRequestBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(w, fmt.Sprintf("a request has at most %d octets", ocsp.MaxRequestBytes), http.StatusRequestEntityTooLarge)
		return nil, false
	case err != nil:
		http.Error(w, "the request could not be read", http.StatusBadRequest)
		return nil, false
	}
	return der, true
}

func (h *ocspHandler) send(w http.ResponseWriter, r *http.Request, response ocsp.Response, get bool) {
	header := w.Header()
	header.Set("Content-Type", "application/ocsp-response")
	header.Set("X-Content-Type-Options", "nosniff")
	if response.Outcome == ocsp.OutcomeTryLater {
		header.Set("Retry-After", "5")
	}
	now := h.clock.Now()
	age := min(ocspMaxAge, response.NextUpdate.Sub(now)).Truncate(time.Second)
	if !get || !response.Shared || age <= 0 {
		header.Set("Cache-Control", "no-store")
	} else {
		header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d, no-transform, must-revalidate", int(age.Seconds())))
		header.Set("ETag", `"`+response.ETag+`"`)
		header.Set("Expires", now.Add(age).Format(http.TimeFormat))
		header.Set("Last-Modified", response.ThisUpdate.Format(http.TimeFormat))
		if strings.Contains(r.Header.Get("If-None-Match"), `"`+response.ETag+`"`) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	header.Set("Content-Length", fmt.Sprint(len(response.DER)))
	if r.Method != http.MethodHead {
		w.Write(response.DER)
	}
}
