// Errors that a device acts upon: what the server said, when it wants to be asked again, and what a TLS alert means.

package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/wire"
)

// maxRetryAfter bounds what a server can ask for: a mistyped Retry-After must not put a device to sleep for years.
const maxRetryAfter = 24 * time.Hour

// Error is what went wrong with one operation.
//
// Status is the HTTP status, 0 when there was no answer to speak of. Reason is one word that stays the same between versions: the server's
// own (from its header Est-Reason: not_authenticated, ...), or when Status is 0 or the answer itself was bad, one of
//
//	connect             the server cannot be reached, or the connection broke
//	tls                 the handshake failed; untrusted_server, server_name and server_expired are its frequent cases
//	tls_alert           the server refused the handshake; Message explains the alert
//	fingerprint         /cacerts has no root with the fingerprint
//	too_large           the answer exceeds a limit
//	bad_answer          the answer is not what the RFC asks for, or fails a check
//	redirect            a redirect to another origin, or too many
//	challenge           a 401 that asks for something other than HTTP Basic
//	csrattrs            the server wants another key than the one given
//	no_certificate      Reenroll without a certificate
//	request             the certificate request could not be made or signed
//
// A 202 is an Error too: the request waits for an operator and is to be repeated, with the same key, after RetryAfter.
type Error struct {
	Operation  string        // "cacerts", "csrattrs", "simpleenroll" or "simplereenroll"
	Status     int           // HTTP status or 0
	Reason     string        // one word, or empty if the server named none
	Message    string        // for people, one line, no secrets
	RetryAfter time.Duration // what the server asked for, at most 24 h; 0 if it did not
	Err        error         // the cause, if it is another error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Operation)
	if e.Status != 0 {
		fmt.Fprintf(&b, ": %d", e.Status)
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	if e.Message != "" && e.Message != e.Reason {
		b.WriteString(": " + e.Message)
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, " (retry after %s)", e.RetryAfter)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Refused reports whether the server refused who is asking (401, 403): asking again soon does not help.
func Refused(err error) bool {
	e := new(Error)
	return errors.As(err, &e) && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden)
}

func badAnswer(operation string, status int, err error) *Error {
	reason := "bad_answer"
	if errors.Is(err, errTooLarge) {
		reason = "too_large"
	}
	return &Error{Operation: operation, Status: status, Reason: reason, Message: err.Error(), Err: err}
}

var reasonWord = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// statusError reads an answer that is not a success. Only the first line of a text body is kept, and of that only what prints.
func statusError(operation string, resp *http.Response, body []byte, now time.Time) *Error {
	e := &Error{Operation: operation, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"), now)}
	if word := resp.Header.Get(wire.ReasonHeader); reasonWord.MatchString(word) {
		e.Reason = word
	}
	if mediaType(resp.Header) == "text/plain" || resp.Header.Get("Content-Type") == "" {
		e.Message = oneLine(body)
		e.Message = strings.TrimPrefix(e.Message, e.Reason+": ")
	}
	if resp.StatusCode == http.StatusAccepted && e.Reason == "" {
		e.Reason = "pending"
	}
	if e.Message == "" {
		e.Message = strings.ToLower(http.StatusText(resp.StatusCode))
	}
	return e
}

func oneLine(body []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(body[:min(len(body), 512)])), "\n")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return -1
		}
		return r
	}, line)
}

// retryAfter reads the header's two forms, seconds and HTTP date (RFC 9110 section 10.2.3). Anything else, the past included, is 0.
func retryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	if header == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(header, 10, 64); err == nil {
		if seconds > uint64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	} else if errors.Is(err, strconv.ErrRange) && header[0] != '-' {
		return maxRetryAfter
	}
	at, err := http.ParseTime(header)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// connectionError gives a failure below HTTP its Reason. own is the certificate that was presented, nil if none was.
func connectionError(operation string, err error, own *x509.Certificate, now time.Time) *Error {
	e := new(Error)
	if errors.As(err, &e) {
		return e
	}
	e = &Error{Operation: operation, Reason: "connect", Message: err.Error(), Err: err}
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		verify  *tls.CertificateVerificationError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, errTooLarge):
		e.Reason = "too_large"
	case errors.As(err, &unknown):
		e.Reason = "untrusted_server"
	case errors.As(err, &name):
		e.Reason = "server_name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Reason = "server_expired"
	case errors.As(err, &verify), errors.As(err, &invalid):
		e.Reason = "tls"
	case errors.As(err, &record):
		e.Reason = "tls"
		e.Message = "the server does not speak TLS at this address"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.Message = "the server closed the connection without an answer"
	}
	if text := ExplainAlert(err, own, now); text != "" {
		e.Reason, e.Message = "tls_alert", text
	}
	return e
}

// Alert returns the number of the TLS alert with which the peer ended a connection. With TLS 1.3 a server judges the client's
// certificate after the client's handshake is over: the alert is then the error of the first read.
func Alert(err error) (number uint8, ok bool) {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" || remote.Err == nil {
		return 0, false
	}
	text := remote.Err.Error()
	for n := range 256 {
		if tls.AlertError(n).Error() == text {
			return uint8(n), true
		}
	}
	return 0, false
}

// alerts says what a server means that verifies with OpenSSL, as most brokers do.
var alerts = map[uint8]string{
	40:  "no agreement with the server: it misses a client certificate, or has lost its own (handshake_failure)",
	42:  "the server does not accept our certificate, or its CRL is not valid yet: compare the clocks (bad_certificate)",
	43:  "the server does not accept this kind of certificate: it may lack clientAuth (unsupported_certificate)",
	44:  "our certificate is revoked (certificate_revoked)",
	46:  "the server cannot judge our certificate; its CRL may not cover it (certificate_unknown)",
	48:  "the server does not trust our CA, or has no CRL of it, or did not get the issuing CA's certificate (unknown_ca)",
	49:  "the server knows us and denies access (access_denied)",
	51:  "the server failed to verify a signature; its CRL may be damaged (decrypt_error)",
	70:  "the server does not speak TLS 1.2 or 1.3 (protocol_version)",
	80:  "internal error of the server (internal_error)",
	112: "the server does not know the name that we ask for (unrecognized_name)",
	116: "the server demands a client certificate (certificate_required)",
}

// ExplainAlert says in one line what the TLS alert in err means, and is empty if there is none. Alert 45 (certificate_expired) means
// two things, since brokers send it too when their CRL is out of date: own, the certificate that we presented, decides.
func ExplainAlert(err error, own *x509.Certificate, now time.Time) string {
	number, ok := Alert(err)
	if !ok {
		return ""
	}
	if number == 45 {
		if own != nil && now.After(own.NotAfter) {
			return fmt.Sprintf("alert 45: our certificate expired at %s (certificate_expired)", own.NotAfter.Format(time.RFC3339))
		}
		return "alert 45: our certificate has not expired, so the server's CRL has, or the clocks differ; renewing would not help (certificate_expired)"
	}
	if text, ok := alerts[number]; ok {
		return fmt.Sprintf("alert %d: %s", number, text)
	}
	return fmt.Sprintf("alert %d: %s", number, strings.TrimPrefix(tls.AlertError(number).Error(), "tls: "))
}
