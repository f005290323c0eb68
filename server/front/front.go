// Package front is the EST server as a device sees it: RFC 7030 over HTTP.
//
// It routes, checks what it was sent from the cheapest check to the dearest, finds out who asks (server/auth), lets the
// registration authority decide and the CA sign (server/registration), and answers. The order of checks is that of the
// files in this list. The wire encoding of answers is github.com/globalsign/est's, run on a buffer: an answer leaves
// only when it is whole, and what that package says about an error is thrown away. front stores nothing and knows no SQL.
//
//	front.go      Config, routes
//	exchange.go   one request from its header to its log record
//	label.go      path -> label
//	body.go       media type, size, base64
//	csr.go        the shape of a PKCS#10 request, before its signature is looked at
//	key.go        which public keys are looked at at all
//	est.go        the way through globalsign/est: signature, encoding
//	binding.go    RFC 7030 section 3.5, RFC 9266: linking identity and proof-of-possession
//	throttle.go   wrong codes, by address
//	refusal.go    refused enrollments in the audit log
//	cacerts.go csrattrs.go simpleenroll.go simplereenroll.go unsupported.go    one operation each
//	errors.go respond.go    what can go wrong, and the only place where it becomes HTTP
//	tls.go        TLS settings and the http.Server with every timeout
package front

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/globalsign/est"
	"github.com/go-chi/chi/v5"
	"golang.org/x/time/rate"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/auth"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/server/telemetry"
)

// Config is what New needs. Every field is required.
type Config struct {
	Book    *registration.Book
	CA      *ca.Authorities
	Anchors func(ctx context.Context) ([]*x509.Certificate, error) // what verifies the EST server's own certificate: in every /cacerts
	Clock   *clock.Clock
	Log     *slog.Logger
	Metrics *telemetry.Metrics // made by telemetry.New(front.Outcomes())
}

// Front is the EST handler. It is safe for concurrent use.
type Front struct {
	book      *registration.Book
	ca        *ca.Authorities
	anchors   func(ctx context.Context) ([]*x509.Certificate, error)
	clock     *clock.Clock
	log       *slog.Logger
	metrics   *telemetry.Metrics
	auth      *auth.Authenticator
	encoder   http.Handler  // globalsign/est
	failures  *throttle     // wrong codes
	audited   *throttle     // refusals in the audit log, by address
	strangers *rate.Limiter // ... and of all who did not authenticate together
	router    http.Handler
}

// operation is one EST operation: its name in the path, the methods that it answers to, and what it does.
type operation struct {
	name    string
	methods string // as in the Allow header
	run     func(f *Front, ctx context.Context, x *exchange) (answer, error)
}

func operations() []operation {
	return []operation{
		{wire.OpCACerts, "GET, HEAD", (*Front).caCerts},
		{wire.OpCSRAttrs, "GET, HEAD", (*Front).csrAttrs},
		{wire.OpSimpleEnroll, "POST", (*Front).simpleEnroll},
		{wire.OpSimpleReenroll, "POST", (*Front).simpleReenroll},
		{wire.OpServerKeyGen, "POST", (*Front).serverKeyGen},
		{wire.OpFullCMC, "POST", (*Front).fullCMC},
	}
}

// New returns the handler for everything under /.well-known/est. Other paths are 404.
func New(cfg Config) (*Front, error) {
	f := &Front{
		book: cfg.Book, ca: cfg.CA, anchors: cfg.Anchors, clock: cfg.Clock, log: cfg.Log, metrics: cfg.Metrics,
		auth:      auth.New(cfg.Book),
		failures:  newThrottle(cfg.Clock),
		audited:   newThrottle(cfg.Clock),
		strangers: rate.NewLimiter(rate.Every(strangerInterval), strangerBurst),
	}
	encoder, err := est.NewRouter(&est.ServerConfig{CA: estCA{f}})
	if err != nil {
		return nil, fmt.Errorf("EST encoder: %w", err)
	}
	f.encoder = encoder
	f.router = f.routes()
	return f, nil
}

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.router.ServeHTTP(w, r)
}

func (f *Front) routes() http.Handler {
	mux := chi.NewRouter()
	allow := map[string]string{}
	for _, op := range operations() {
		h := f.handler(op)
		mux.Handle(wire.Path("", op.name), h)
		mux.Handle(wire.PathPrefix+"/{label}/"+op.name, h)
		allow[op.name] = op.methods
	}
	nowhere := operation{name: "other", run: func(*Front, context.Context, *exchange) (answer, error) {
		return answer{}, &Error{Kind: UnknownOperation, Detail: "no such EST operation"}
	}}
	mux.NotFound(f.handler(nowhere))
	// chi calls this for methods that it has never heard of, before it looks at the path.
	mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		op := nowhere
		if name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; strings.HasPrefix(r.URL.Path, wire.PathPrefix+"/") && allow[name] != "" {
			op = operation{name: name, methods: allow[name]}
		}
		f.handler(op)(w, r)
	})
	return mux
}
