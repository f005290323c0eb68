// Every Kind of every package that an operation can fail with has a status; nothing else does.

package front

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/registration"
)

// kindsIn returns the values of all constants of type Kind that the package in dir declares.
func kindsIn(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || fmt.Sprint(spec.Type) != "Kind" || len(spec.Values) != 1 {
				return true
			}
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			kinds = append(kinds, value)
			return true
		})
	}
	if len(kinds) < 3 {
		t.Fatalf("found only %v in %s", kinds, dir)
	}
	return kinds
}

func TestEveryKindHasAStatus(t *testing.T) {
	t.Parallel()
	f := &Front{}
	for _, pkg := range []struct {
		dir  string
		make func(kind string) error
	}{
		{".", func(k string) error { return &Error{Kind: Kind(k), Detail: "detail"} }},
		{"../registration", func(k string) error {
			return &registration.Error{Kind: registration.Kind(k), Reason: "reason_word", Detail: "detail"}
		}},
		{"../../ca", func(k string) error { return &ca.Error{Kind: ca.Kind(k), Rule: "rule_word", Detail: "detail"} }},
	} {
		for _, kind := range kindsIn(t, pkg.dir) {
			x := &exchange{id: "0123", op: operation{name: "simpleenroll", methods: "POST"}}
			w := httptest.NewRecorder()
			f.respond(w, x, answer{}, fmt.Errorf("wrapped: %w", pkg.make(kind)))
			r := w.Result()
			if r.StatusCode == http.StatusInternalServerError || r.StatusCode < 400 {
				t.Errorf("%s %s: status %d", pkg.dir, kind, r.StatusCode)
			}
			if r.Header.Get(wire.ReasonHeader) == "" || !strings.HasPrefix(w.Body.String(), r.Header.Get(wire.ReasonHeader)+": ") {
				t.Errorf("%s %s: reason %q, text %q", pkg.dir, kind, r.Header.Get(wire.ReasonHeader), w.Body)
			}
			if r.Header.Get("Content-Length") != strconv.Itoa(w.Body.Len()) {
				t.Errorf("%s %s: Content-Length %q of %d", pkg.dir, kind, r.Header.Get("Content-Length"), w.Body.Len())
			}
			retry := r.StatusCode == http.StatusServiceUnavailable || r.StatusCode == http.StatusTooManyRequests
			if (r.Header.Get("Retry-After") != "") != retry {
				t.Errorf("%s %s: status %d with Retry-After %q", pkg.dir, kind, r.StatusCode, r.Header.Get("Retry-After"))
			}
			if (len(header(r, "www-authenticate")) > 0) != (r.StatusCode == http.StatusUnauthorized) {
				t.Errorf("%s %s: status %d with header %v", pkg.dir, kind, r.StatusCode, r.Header)
			}
		}
	}
}

// header finds a header whatever the case it was written in.
func header(r *http.Response, name string) []string {
	for key, values := range r.Header {
		if strings.EqualFold(key, name) {
			return values
		}
	}
	return nil
}

func TestUntypedErrors(t *testing.T) {
	t.Parallel()
	x := &exchange{id: "0123abcd"}
	a := refusal(x, errors.New("password=secret at /var/lib/x.go:12"))
	if a.status != 500 || a.reason != reasonInternal || string(a.body) != "internal_error: internal error, request 0123abcd\n" {
		t.Errorf("untyped: %d %s", a.status, a.body)
	}
	a = refusal(x, fmt.Errorf("write: %w", database.ErrFailed))
	if a.status != 503 || a.retryAfter == 0 {
		t.Errorf("failed storage: %d, Retry-After %s", a.status, a.retryAfter)
	}
}

// Whatever is wrong with a credential, the device reads the same.
func TestUniform401(t *testing.T) {
	t.Parallel()
	var first string
	for _, err := range []error{
		&registration.Error{Kind: registration.NotAuthenticated, Reason: "code_expired", Detail: "the code of SN-1 has expired", Err: errors.New("x")},
		&registration.Error{Kind: registration.NotAuthenticated},
	} {
		a := refusal(&exchange{}, err)
		if got := fmt.Sprint(a.status, a.reason, string(a.body)); first == "" {
			first = got
		} else if got != first {
			t.Errorf("%q and %q", first, got)
		}
	}
}

// What quotes a device stays one printable line.
func TestPlain(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"name \"a\"": "name \"a\"", "two\nlines": "two?lines", "\x1b[31mred": "?[31mred", "caf\u00e9 \u202e": "caf? ?", "\x00": "?",
		strings.Repeat("a", 5000): strings.Repeat("a", maxTextBytes),
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%.40q) = %.40q", in, got)
		}
	}
}
