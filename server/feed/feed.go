// Package feed is the server's side of internal/feedapi: what a broker bridge pulls to keep its broker in step. It is
// mounted on the EST address and answers only to a client certificate of profile "bridge", checked at every request.
//
// It reads the books of server/registration and ca and keeps one thing of its own: how far each bridge says it
// has come (acks.go).
//
//	feed.go      New, routes, who may ask
//	trustset.go  the trust set and its CRLs
//	changes.go   devices and changes
//	canary.go    certificates that prove a broker
//	acks.go      acknowledgements and lag
//	watch.go     waiting for a change
package feed

import (
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/changes"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
)

// Profile is the certificate profile that makes its holder a bridge.
const Profile = "bridge"

const (
	maxBody = 64 << 10
	maxWait = 55 * time.Second
)

// Config is what a feed works on. Identify tells which of our certificates a request's TLS connection
// proved to hold, and that it is valid now; an error means none.
type Config struct {
	DB       *database.DB
	CA       *ca.Authorities
	Book     *registration.Book
	Clock    *clock.Clock
	Log      *slog.Logger
	Identify func(r *http.Request) (ca.Certificate, error)
	Stop     <-chan struct{} // closed when the server stops: long polls are then answered at once
}

// Feed answers bridges. It is safe for concurrent use.
type Feed struct {
	cfg     Config
	changes *changes.Log
	router  chi.Router
}

// New returns a feed.
func New(cfg Config) *Feed {
	f := &Feed{cfg: cfg, changes: cfg.CA.Changes(), router: chi.NewRouter()}
	f.router.Route("/bridge/v1", func(r chi.Router) {
		r.Get("/trust-set", f.as(f.getTrustSet))
		r.Get("/crls/{sha256}", f.as(f.getCRL))
		r.Get("/devices", f.as(f.getDevices))
		r.Get("/changes", f.as(f.getChanges))
		r.Post("/ack", f.as(f.postAck))
		r.Post("/canary", f.as(f.postCanary))
	})
	return f
}

// ServeHTTP answers paths below /bridge/v1.
func (f *Feed) ServeHTTP(w http.ResponseWriter, r *http.Request) { f.router.ServeHTTP(w, r) }

// as runs do for the bridge that the request's certificate names.
func (f *Feed) as(do func(w http.ResponseWriter, r *http.Request, bridge string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		cert, err := f.cfg.Identify(r)
		switch {
		case err != nil:
			f.cfg.Log.Warn("feed refused", "remote", r.RemoteAddr, "path", r.URL.Path, "error", err)
			respond(w, refuse(http.StatusUnauthorized, "not_authenticated", "a client certificate of a bridge is needed"))
			return
		case cert.Profile != Profile:
			f.cfg.Log.Warn("feed refused", "remote", r.RemoteAddr, "path", r.URL.Path, "device", cert.Device, "profile", cert.Profile)
			respond(w, refuse(http.StatusForbidden, "not_authorized", "this certificate is not one of a bridge"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if err := do(w, r, cert.Device); err != nil && r.Context().Err() == nil {
			f.fail(w, r, cert.Device, err)
		}
	}
}

// refusal is an answer with a 4xx or 5xx status.
type refusal struct {
	status     int
	reason     string
	text       string
	retryAfter time.Duration // 0: not said
}

func (e *refusal) Error() string { return e.text }

// Domain marks refusal as an error that crosses a transaction unchanged.
func (e *refusal) Domain() {}

func badRequest(reason, text string) error { return refuse(http.StatusBadRequest, reason, text) }

func refuse(status int, reason, text string) *refusal {
	return &refusal{status: status, reason: reason, text: text}
}

func (f *Feed) fail(w http.ResponseWriter, r *http.Request, bridge string, err error) {
	var known *refusal
	var domain *ca.Error
	switch {
	case errors.As(err, &known):
	case errors.As(err, &domain) && domain.Kind == ca.NotFound:
		known = refuse(http.StatusNotFound, domain.Rule, domain.Detail)
	case errors.As(err, &domain) && domain.Kind == ca.ProfileViolation:
		known = refuse(http.StatusUnprocessableEntity, domain.Rule, domain.Detail)
	default:
		f.cfg.Log.Error("feed failed", "bridge", bridge, "path", r.URL.Path, "error", err)
		known = refuse(http.StatusServiceUnavailable, "unavailable", "not available now")
		known.retryAfter = time.Second
	}
	respond(w, known)
}

func respond(w http.ResponseWriter, e *refusal) {
	if e.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(e.retryAfter.Seconds())), 10))
	}
	answer(w, e.status, map[string]string{"error": e.text, "reason": e.reason})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// waitOf is how long the caller is willing to wait; it also lifts the server's time limits that far.
func waitOf(w http.ResponseWriter, r *http.Request) (time.Duration, error) {
	value := r.URL.Query().Get("wait")
	if value == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return 0, badRequest("invalid", "wait: "+strconv.Quote(value)+" is not a duration like 25s")
	}
	d = min(d, maxWait)
	limits := http.NewResponseController(w)
	end := time.Now().Add(d + 10*time.Second)
	if err := errors.Join(limits.SetReadDeadline(end), limits.SetWriteDeadline(end)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return d, nil
}
