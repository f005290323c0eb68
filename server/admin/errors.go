// The one place of this package where an error becomes a status: problem documents as RFC 9457 has them, with
// the stable reason word beside the sentence.

package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/registration"
)

// Problem is what every refusal answers, as application/problem+json.
type Problem struct {
	Status int            `json:"status"`
	Title  string         `json:"title"`
	Reason string         `json:"reason,omitempty"` // stable word
	Detail string         `json:"detail"`
	Errors []ProblemField `json:"errors,omitempty"` // of a request that has not the described shape
}

// ProblemField is one fault of a request's shape.
type ProblemField struct {
	Message  string `json:"message"`
	Location string `json:"location"`
}

var problemType = reflect.TypeFor[Problem]()

func (p *Problem) Error() string { return p.Detail }

// Domain marks Problem as an error that crosses a transaction unchanged.
func (p *Problem) Domain() {}

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType replaces the plain JSON type.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

func newProblem(status int, reason, detail string) *Problem {
	return &Problem{Status: status, Title: http.StatusText(status), Reason: reason, Detail: detail}
}

func notAuthenticated(detail string) *Problem {
	return newProblem(http.StatusUnauthorized, "not_authenticated", detail)
}

func forbidden(c Caller, method, path string) *Problem {
	return newProblem(http.StatusForbidden, "not_authorized", fmt.Sprintf("%s %s: role %q may not do this", method, path, c.Role))
}

func invalid(reason, format string, args ...any) *Problem {
	return newProblem(http.StatusBadRequest, reason, fmt.Sprintf(format, args...))
}

func notFound(format string, args ...any) *Problem {
	return newProblem(http.StatusNotFound, "not_found", fmt.Sprintf(format, args...))
}

func conflict(format string, args ...any) *Problem {
	return newProblem(http.StatusConflict, "conflict", fmt.Sprintf(format, args...))
}

var caStatus = map[ca.Kind]int{
	ca.ProfileViolation: http.StatusUnprocessableEntity,
	ca.Conflict:         http.StatusConflict,
	ca.NotFound:         http.StatusNotFound,
	ca.Invalid:          http.StatusBadRequest,
	ca.Unavailable:      http.StatusServiceUnavailable,
}

var registrationStatus = map[registration.Kind]int{
	registration.NotAuthenticated: http.StatusUnauthorized,
	registration.NotAuthorized:    http.StatusForbidden,
	registration.UnknownLabel:     http.StatusNotFound,
	registration.NotFound:         http.StatusNotFound,
	registration.Conflict:         http.StatusConflict,
	registration.Invalid:          http.StatusBadRequest,
}

// problem translates err. What has no kind is an internal error: logged whole, told whole only to a local caller.
func (a *API) problem(c Caller, err error) error {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var bad *registration.ImportError
	if errors.As(err, &bad) {
		return importProblem(bad)
	}
	var ce *ca.Error
	if errors.As(err, &ce) && caStatus[ce.Kind] != 0 {
		if ce.Err != nil {
			a.cfg.Log.Info("admin request failed", "actor", c.Actor, "error", err)
		}
		return newProblem(caStatus[ce.Kind], ce.Rule, ce.Detail)
	}
	var re *registration.Error
	if errors.As(err, &re) && registrationStatus[re.Kind] != 0 {
		return newProblem(registrationStatus[re.Kind], re.Reason, re.Detail)
	}
	a.cfg.Log.Error("admin request failed", "actor", c.Actor, "error", err)
	detail := "internal error: see the server's log"
	if c.Local {
		detail = err.Error()
	}
	return newProblem(http.StatusInternalServerError, "internal", detail)
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

func writeProblemTo(ctx huma.Context, p *Problem) {
	ctx.SetHeader("Content-Type", p.ContentType(""))
	ctx.SetStatus(p.Status)
	json.NewEncoder(ctx.BodyWriter()).Encode(p)
}
