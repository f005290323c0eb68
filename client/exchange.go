// One EST operation as HTTP: the challenge, the redirect and the connection that has gone stale are settled here, so
// that the operations see an answer of success or an *Error.

package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/wire"
)

const maxRedirects = 3

// request is one operation. Its body depends on the connection that carries it (channel binding); nil is a GET.
type request struct {
	operation       string
	mediaType       string // of a successful answer
	body            func(tls.ConnectionState) ([]byte, error)
	unauthenticated bool // to a server that is not known yet
}

type answer struct {
	status    int
	body      []byte
	state     tls.ConnectionState
	presented *x509.Certificate // what the connection showed of us, nil if nothing
}

// attempt is the changing part of an exchange.
type attempt struct {
	url       string
	authorize bool
	redirects int
}

func (c *Client) exchange(ctx context.Context, r request) (*answer, error) {
	select {
	case c.busy <- struct{}{}:
		defer func() { <-c.busy }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	defer func() {
		if r.unauthenticated {
			c.dropConnection()
		}
	}()
	target := *c.origin
	target.Path = wire.Path(c.Label, r.operation)
	a := attempt{url: target.String()}
	for {
		resp, body, conn, err := c.roundTrip(ctx, r, a)
		if err != nil {
			return nil, err
		}
		again, err := c.next(r, &a, resp)
		if err != nil {
			return nil, err
		}
		if again {
			continue
		}
		return c.finish(r, resp, body, conn)
	}
}

// finish turns the last response into an answer or an Error.
func (c *Client) finish(r request, resp *http.Response, body []byte, conn *connection) (*answer, error) {
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return nil, statusError(r.operation, resp, body, c.now())
	}
	if got := mediaType(resp.Header); got != r.mediaType {
		return nil, badAnswer(r.operation, resp.StatusCode, fmt.Errorf("content type %q instead of %s", got, r.mediaType))
	}
	return &answer{status: resp.StatusCode, body: body, state: conn.tls.ConnectionState(), presented: conn.presented}, nil
}

// next decides whether a response asks for another request: a challenge that can be answered, or a redirect.
func (c *Client) next(r request, a *attempt, resp *http.Response) (again bool, err error) {
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		// "the EST client MUST NOT respond to the server's HTTP authentication request unless the client has
		// authorized the EST server" (RFC 7030 section 3.2.3).
		if a.authorize || r.unauthenticated || c.User == "" {
			return false, nil
		}
		if !offersBasic(resp.Header) {
			return false, &Error{Operation: r.operation, Status: resp.StatusCode, Reason: "challenge", Message: "the server does not offer HTTP Basic"}
		}
		a.authorize = true
		return true, nil
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true, c.redirect(r, a, resp)
	}
	return false, nil
}

// redirect follows within the origin only; the method stays. Leaving the origin needs a user's consent (RFC 7030 section
// 3.2.1), and a device has no user.
func (c *Client) redirect(r request, a *attempt, resp *http.Response) error {
	refuse := func(text string) error {
		return &Error{Operation: r.operation, Status: resp.StatusCode, Reason: "redirect", Message: text}
	}
	a.redirects++
	if a.redirects > maxRedirects {
		return refuse(fmt.Sprintf("more than %d redirects", maxRedirects))
	}
	base, err := url.Parse(a.url)
	if err != nil {
		return err
	}
	target, err := base.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		return refuse("without a readable Location")
	}
	if !strings.EqualFold(target.Scheme, c.origin.Scheme) || !strings.EqualFold(target.Host, c.origin.Host) || target.User != nil {
		return refuse("to another origin: " + target.Redacted())
	}
	target.Fragment = ""
	a.url = target.String()
	return nil
}

// roundTrip sends one request. A connection that was open already may have been closed by the server meanwhile: if it
// fails before the first byte of an answer, a new one is tried, once. Repeating is safe: the key is the same.
func (c *Client) roundTrip(ctx context.Context, r request, a attempt) (*http.Response, []byte, *connection, error) {
	for {
		conn, err := c.openConnection(ctx, !r.unauthenticated)
		if err != nil {
			return nil, nil, nil, c.failed(ctx, r.operation, err)
		}
		stale := conn.used
		conn.used = true
		resp, body, started, err := c.sendOn(ctx, conn, r, a)
		if err == nil {
			if !conn.reusable(resp) {
				c.dropConnection()
			}
			return resp, body, conn, nil
		}
		c.dropConnection()
		if started || !stale || ctx.Err() != nil {
			return nil, nil, nil, c.failedOn(ctx, r.operation, err, conn)
		}
	}
}

func (c *Client) sendOn(ctx context.Context, conn *connection, r request, a attempt) (*http.Response, []byte, bool, error) {
	deadline, _ := ctx.Deadline()
	release := conn.until(ctx, deadline)
	defer release()
	var body []byte
	method := http.MethodGet
	if r.body != nil {
		var err error
		if body, err = r.body(conn.tls.ConnectionState()); err != nil {
			return nil, nil, true, &Error{Operation: r.operation, Reason: "request", Message: err.Error(), Err: err}
		}
		method = http.MethodPost
	}
	req, err := newHTTPRequest(ctx, method, a.url, body)
	if err != nil {
		return nil, nil, true, err
	}
	req.Header.Set("User-Agent", c.userAgent())
	req.Header.Set("Accept", r.mediaType)
	if body != nil {
		req.Header.Set("Content-Type", wire.TypePKCS10)
		req.Header.Set("Content-Transfer-Encoding", "base64") // ignored since RFC 8951, demanded by servers before it
	}
	if a.authorize {
		req.SetBasicAuth(c.User, c.Password)
	}
	resp, answer, started, err := conn.send(req)
	return resp, answer, started, err
}

func (c *Client) failed(ctx context.Context, operation string, err error) error {
	return c.failedOn(ctx, operation, err, &connection{})
}

func (c *Client) failedOn(ctx context.Context, operation string, err error, conn *connection) error {
	if cause := ctx.Err(); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	var own *x509.Certificate
	if own = conn.presented; own == nil {
		if cert, certErr := c.certificate(); certErr == nil && cert != nil {
			own = cert.Leaf
		}
	}
	e := connectionError(operation, err, own, c.now())
	if e.Reason == "connect" && ctx.Err() != nil {
		e.Message = fmt.Sprintf("no answer from %s within %s", c.origin.Host, c.timeout().Round(time.Millisecond))
	}
	return e
}

func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		return ""
	}
	return t
}

var (
	quoted = regexp.MustCompile(`"(\\.|[^"\\])*"`)
	basic  = regexp.MustCompile(`(?i)(^|,)\s*basic(\s|,|$)`)
)

// offersBasic looks for the scheme among the challenges, outside quoted parameters.
func offersBasic(h http.Header) bool {
	for _, challenge := range h.Values("WWW-Authenticate") {
		if basic.MatchString(quoted.ReplaceAllString(challenge, `""`)) {
			return true
		}
	}
	return false
}
