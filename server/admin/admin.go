// Package admin is the administration API, /api/v1: REST with an OpenAPI description, the same
// on DIR/admin.sock, on the admin address and inside a command that opens the data directory itself.
//
// It translates between HTTP and the books of server/registration and ca, and decides one thing: which role may call which
// operation. An operation without a role list cannot be registered, so what is not allowed is refused. What an operator may
// act on is narrower still (scope.go).
// Everything it changes is audited by the package that keeps it, under the caller's name.
//
//	admin.go           API, New, registration of an operation
//	caller.go          who calls: the peer of the socket, the certificate of a TLS connection
//	scope.go           what an operator may act on
//	errors.go          domain errors -> problem documents (RFC 9457)
//	types.go           the objects on the wire
//	cas.go ... audit.go  the operations, one file per object
package admin

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
)

// Base is the path that every operation's path begins with.
const Base = "/api/v1"

// Page is how many devices, codes or certificates one answer lists; a full page may be followed by another.
const Page = 500

// Config is what an API works on. Every field but the last is required.
type Config struct {
	DB          *database.DB
	CA          *ca.Authorities
	Book        *registration.Book
	Clock       *clock.Clock
	Log         *slog.Logger
	PublicURL   string        // of CAs created without one
	CodeExpires time.Duration // of codes created without one

	// ServerCertificate is the EST server's current certificate, whose names are kept from operators. nil where there are none: in a command.
	ServerCertificate func() *x509.Certificate

	// Backup writes a backup in clear. nil: none is made here.
	Backup func(ctx context.Context, out io.Writer) error
}

// API answers HTTP requests. It is safe for concurrent use.
type API struct {
	cfg    Config
	router chi.Router
	huma   huma.API
}

// New registers every operation.
func New(cfg Config) *API {
	router := chi.NewRouter()
	hc := huma.DefaultConfig("Natal administration", "1")
	hc.OpenAPIPath = Base + "/openapi"
	hc.DocsPath = ""
	hc.SchemasPath = ""
	hc.CreateHooks = nil
	hc.Transformers = []huma.Transformer{asProblem}
	hc.RejectUnknownQueryParameters = true
	a := &API{cfg: cfg, router: router, huma: humachi.New(router, hc)}
	router.NotFound(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, &Problem{Status: http.StatusNotFound, Title: http.StatusText(http.StatusNotFound), Reason: "unknown_path", Detail: r.URL.Path + ": no such operation"})
	})
	router.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, &Problem{Status: http.StatusMethodNotAllowed, Title: http.StatusText(http.StatusMethodNotAllowed), Reason: "method_not_allowed", Detail: r.Method + " " + r.URL.Path + ": not an operation"})
	})
	a.registerCAs()
	a.registerCRLs()
	a.registerLabels()
	a.registerProfiles()
	a.registerBirthCAs()
	a.registerDevices()
	a.registerCodes()
	a.registerImports()
	a.registerBundles()
	a.registerCertificates()
	a.registerAdministrators()
	a.registerBridges()
	a.registerAudit()
	a.registerBackup()
	a.describe()
	return a
}

// ServeHTTP answers a request whose context carries a Caller (see WithCaller); any other is refused.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, ok := callerOf(r.Context()); !ok {
		writeProblem(w, notAuthenticated("no client certificate of an administrator"))
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	if query, err := url.QueryUnescape(r.URL.RawQuery); err != nil || !storable(r.URL.Path) || !storable(query) {
		writeProblem(w, invalid("invalid", "the address holds what is no text"))
		return
	}
	a.router.ServeHTTP(w, r)
}

// storable: PostgreSQL takes neither a NUL nor what is not UTF-8, and nothing that it stores is called so.
func storable(text string) bool { return utf8.ValidString(text) && !strings.ContainsRune(text, 0) }

// OpenAPI describes the registered operations.
func (a *API) OpenAPI() *huma.OpenAPI { return a.huma.OpenAPI() }

// reply is an answer with a JSON body.
type reply[T any] struct {
	Location string `header:"Location" doc:"of the object that was made"`
	ETag     string `header:"ETag" doc:"version of the object, for If-Match"`
	Body     T
}

// newReply adds what the object's own form says: its address where it was made, its version where it has one.
func newReply[T any](op huma.Operation, body T) *reply[T] {
	out := &reply[T]{Body: body}
	if o, ok := any(body).(interface{ self() string }); ok && op.Method == http.MethodPost && slices.Contains(created, strings.TrimPrefix(op.Path, Base)) {
		out.Location = Base + o.self()
	}
	if o, ok := any(body).(interface{ etag() string }); ok {
		out.ETag = o.etag()
	}
	return out
}

// handle registers an operation that the roles of who may call. fn's errors become problem documents.
func handle[I, O any](a *API, who []string, method, path, summary string, fn func(ctx context.Context, c Caller, in *I) (O, error)) {
	op := a.operation(who, method, path, summary)
	op.DefaultStatus = http.StatusOK
	register(a, op, fn)
}

func register[I, O any](a *API, op huma.Operation, fn func(ctx context.Context, c Caller, in *I) (O, error)) {
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*reply[O], error) {
		c, _ := callerOf(ctx)
		out, err := fn(ctx, c, in)
		if err != nil {
			return nil, a.problem(c, err)
		}
		return newReply(op, out), nil
	})
}

// handleLarge is handle for a request of up to so many bytes.
func handleLarge[I, O any](a *API, who []string, method, path, summary string, most int64, fn func(ctx context.Context, c Caller, in *I) (O, error)) {
	op := a.operation(who, method, path, summary)
	op.DefaultStatus = http.StatusOK
	op.MaxBodyBytes = most
	register(a, op, fn)
}

// handleEmpty is handle for an operation that answers 204.
func handleEmpty[I any](a *API, who []string, method, path, summary string, fn func(ctx context.Context, c Caller, in *I) error) {
	op := a.operation(who, method, path, summary)
	op.DefaultStatus = http.StatusNoContent
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*struct{}, error) {
		c, _ := callerOf(ctx)
		if err := fn(ctx, c, in); err != nil {
			return nil, a.problem(c, err)
		}
		return nil, nil
	})
}

// operation describes an operation and puts the role check in front of it, before the body is read.
func (a *API) operation(who []string, method, path, summary string) huma.Operation {
	if len(who) == 0 {
		panic(errors.New("admin: " + method + " " + path + " has no roles"))
	}
	return huma.Operation{
		OperationID:  method + path,
		Method:       method,
		Path:         Base + path,
		Summary:      summary,
		MaxBodyBytes: 1 << 20,
		Metadata:     map[string]any{"roles": who},
		Extensions:   map[string]any{"x-roles": who},
		Middlewares: huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
			c, ok := callerOf(ctx.Context())
			if !ok || !slices.Contains(who, c.Role) {
				writeProblemTo(ctx, forbidden(c, method, path))
				return
			}
			next(ctx)
		}},
	}
}

// stream registers a GET whose answer is written as it is read.
func stream[I any](a *API, who []string, path, summary, contentType string, fn func(ctx context.Context, in *I, out huma.Context) error) {
	op := a.operation(who, http.MethodGet, path, summary)
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			hc.SetHeader("Content-Type", contentType)
			if err := fn(ctx, in, hc); err != nil {
				// The status is out already: breaking the connection is the one way left to say that the answer is not whole.
				a.cfg.Log.Error("admin stream broken", "path", path, "error", err)
				panic(http.ErrAbortHandler)
			}
		}}, nil
	})
}
