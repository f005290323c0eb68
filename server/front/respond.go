// The only place where an error becomes HTTP, and the only place that writes to a device.
//
// Where RFC 7030 leaves the status open, 400, 401, 403 and 404 are preferred: some clients know no others. An answer has
// one line of text, "reason: text", and the reason word again in Est-Reason.

package front

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/server/telemetry"
)

const (
	challenge       = `Basic realm="est"` // constant: credential caches go by the realm; nothing more, because some clients stumble over it
	maxTextBytes    = 300
	unavailableWait = 30 * time.Second // Retry-After of a 503
	reasonInternal  = "internal_error"
	reasonStorage   = "storage"
	reasonUniform   = "not_authenticated"
)

// answer is what goes to the device.
type answer struct {
	status      int
	reason      string // telemetry.ReasonOK or the word in Est-Reason
	contentType string
	encoded     bool // the body is base64
	allow       string
	retryAfter  time.Duration
	body        []byte
}

// The table: every Kind that an operation can fail with, and its status. What is not in it is 500.
var (
	frontStatus = map[Kind]int{
		NoTLS:            http.StatusBadRequest,
		UnknownOperation: http.StatusNotFound,
		UnknownLabel:     http.StatusNotFound,
		Method:           http.StatusMethodNotAllowed,
		NotSupported:     http.StatusNotImplemented,
		SwitchedOff:      http.StatusNotFound,
		MediaType:        http.StatusUnsupportedMediaType,
		TooLarge:         http.StatusRequestEntityTooLarge,
		BadBody:          http.StatusBadRequest,
		BadCSR:           http.StatusBadRequest,
		BadKey:           http.StatusBadRequest,
		BadSignature:     http.StatusBadRequest,
		BadBinding:       http.StatusBadRequest,
		RateLimited:      http.StatusTooManyRequests,
		NoCA:             http.StatusServiceUnavailable,
		Stopped:          http.StatusServiceUnavailable,
	}
	registrationStatus = map[registration.Kind]int{
		registration.NotAuthenticated: http.StatusUnauthorized,
		registration.NotAuthorized:    http.StatusForbidden,
		registration.UnknownLabel:     http.StatusNotFound,
		registration.NotFound:         http.StatusForbidden, // of what the device is made of here, not of what it asked for
		registration.Conflict:         http.StatusConflict,
		registration.Invalid:          http.StatusBadRequest,
	}
	caStatus = map[ca.Kind]int{
		ca.ProfileViolation: http.StatusBadRequest,
		ca.Invalid:          http.StatusBadRequest,
		ca.Conflict:         http.StatusConflict,
		ca.NotFound:         http.StatusServiceUnavailable, // the label names a CA or profile that is not there
		ca.Unavailable:      http.StatusServiceUnavailable,
	}
)

// refusal finds the answer to err.
func refusal(x *exchange, err error) answer {
	var own *Error
	var book *registration.Error
	var authority *ca.Error
	a := answer{contentType: wire.TypeText}
	text := ""
	switch {
	case errors.As(err, &own):
		a.status, a.reason, text = frontStatus[own.Kind], string(own.Kind), own.Detail
		if own.Reason != "" {
			a.reason = own.Reason
		}
	case errors.As(err, &book):
		a.status, a.reason, text = registrationStatus[book.Kind], book.Reason, book.Detail
		if book.Reason == "" {
			a.reason = string(book.Kind)
		}
	case errors.As(err, &authority):
		a.status, a.reason, text = caStatus[authority.Kind], authority.Rule, authority.Detail
	case errors.Is(err, database.ErrFailed):
		a.status, a.reason, text = http.StatusServiceUnavailable, reasonStorage, "the server cannot store its records"
	}
	switch a.status {
	case 0:
		a.status, a.reason, text = http.StatusInternalServerError, reasonInternal, "internal error, request "+x.id
	case http.StatusUnauthorized: // whatever was wrong with the credential: one and the same answer
		a.reason, text = reasonUniform, "a valid enrollment code or client certificate is needed"
	case http.StatusMethodNotAllowed:
		a.allow = x.op.methods
	case http.StatusServiceUnavailable:
		a.retryAfter = unavailableWait
	case http.StatusTooManyRequests:
		a.retryAfter = minThrottleRetry
	}
	a.body = []byte(a.reason + ": " + plain(text) + "\n")
	return a
}

// respond writes a, or the refusal of err, and returns what was written.
func (f *Front) respond(w http.ResponseWriter, x *exchange, a answer, err error) answer {
	if err != nil {
		a = refusal(x, err)
	}
	h := w.Header()
	h["Content-Type"] = []string{a.contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(a.body))} // always: some clients refuse chunked answers
	h["Cache-Control"] = []string{"no-store"}
	if a.encoded {
		h["Content-Transfer-Encoding"] = []string{"base64"} // old clients look for it
	}
	if a.reason != telemetry.ReasonOK {
		h[wire.ReasonHeader] = []string{a.reason}
	}
	if a.allow != "" {
		h["Allow"] = []string{a.allow}
	}
	if a.retryAfter > 0 {
		h["Retry-After"] = []string{strconv.Itoa(int(a.retryAfter / time.Second))}
	}
	switch a.status {
	case http.StatusUnauthorized:
		h[wire.AuthenticateHeader] = []string{challenge} // not through Set: some clients compare this name case-sensitively
	case http.StatusRequestEntityTooLarge:
		h["Connection"] = []string{"close"}
	}
	w.WriteHeader(a.status)
	w.Write(a.body) // an error here means that the device hung up; what was issued waits for its repeat
	return a
}

// plain makes one printable ASCII line of what may quote the device.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), maxTextBytes)]
}

// Outcomes are the answers whose series start at 0.
func Outcomes() []telemetry.Outcome {
	outcomes := []telemetry.Outcome{
		{Status: "200", Reason: telemetry.ReasonOK},
		{Status: "401", Reason: reasonUniform},
		{Status: "500", Reason: reasonInternal},
		{Status: "503", Reason: reasonStorage},
	}
	for _, kind := range []Kind{MediaType, TooLarge, BadBody, BadCSR, BadKey, BadSignature, BadBinding, RateLimited} {
		outcomes = append(outcomes, telemetry.Outcome{Status: strconv.Itoa(frontStatus[kind]), Reason: string(kind)})
	}
	return outcomes
}
