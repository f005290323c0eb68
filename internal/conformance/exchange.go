// One HTTP exchange over a connection of its own. net/http's client would tidy up what the cases want to send and see:
// header spelling, framing, malformed requests.

package conformance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

const (
	exchangeTimeout = 15 * time.Second
	maxAnswerBytes  = 4 << 20
	prefix          = "/.well-known/est"
)

// request is what is written to the server.
type request struct {
	method      string
	path        string // as it goes on the request line
	header      []string
	contentType string
	body        []byte
	chunked     bool
	certificate *tls.Certificate
	code        *Code
	maxVersion  uint16
	connection  *connection // nil: a new one, closed afterwards
}

// response is what came back.
type response struct {
	method, path string
	status       int
	head         string // status line and headers as they were sent
	header       http.Header
	body         []byte
	chunked      bool
	interim      int // number of 1xx answers before
}

type connection struct {
	net.Conn
	reader *bufio.Reader
	raw    *bytes.Buffer
	state  tls.ConnectionState
}

// path returns the path of an operation under a label; "" is the path without one.
func path(label, operation string) string {
	if label == "" {
		return prefix + "/" + operation
	}
	return prefix + "/" + label + "/" + operation
}

// host is the address of the target.
func (s *Session) host() (string, error) {
	u, err := url.Parse(s.Target.URL)
	if err != nil {
		return "", err
	}
	if u.Port() == "" {
		return u.Host + ":443", nil
	}
	return u.Host, nil
}

func (s *Session) tlsConfig() *tls.Config {
	roots := x509.NewCertPool()
	for _, c := range s.Target.Anchors {
		roots.AddCert(c)
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// dial opens a TLS connection that offers certificate (nil: none). maxVersion 0 is the newest.
func (s *Session) dial(ctx context.Context, certificate *tls.Certificate, maxVersion uint16) (*connection, error) {
	config := s.tlsConfig()
	config.MaxVersion = maxVersion
	if certificate != nil {
		// Whatever CAs the server hints at: a case decides what is presented.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	return s.dialConfig(ctx, config)
}

func (s *Session) dialConfig(ctx context.Context, config *tls.Config) (*connection, error) {
	address, err := s.host()
	if err != nil {
		return nil, err
	}
	config.ServerName, _, _ = net.SplitHostPort(address)
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	state := conn.(*tls.Conn).ConnectionState()
	return newConnection(conn, state), nil
}

func newConnection(conn net.Conn, state tls.ConnectionState) *connection {
	raw := &bytes.Buffer{}
	return &connection{Conn: conn, reader: bufio.NewReader(io.TeeReader(conn, raw)), raw: raw, state: state}
}

// do writes r and reads the answer. A 5xx other than 501 and an empty 200 are errors whatever the case expects.
func (s *Session) do(ctx context.Context, r request) (*response, error) {
	c := r.connection
	if c == nil {
		var err error
		if c, err = s.dial(ctx, r.certificate, r.maxVersion); err != nil {
			return nil, err
		}
		defer c.Close()
	}
	return s.doOn(c, r)
}

func (s *Session) doOn(c *connection, r request) (*response, error) {
	c.SetDeadline(time.Now().Add(exchangeTimeout))
	written := make(chan error, 1)
	go func() { // a server may answer and close before it has read everything
		_, err := c.Write(s.encode(r))
		written <- err
	}()
	answer, err := c.read(r)
	if err != nil {
		c.Close()
		return nil, errors.Join(fmt.Errorf("%s %s: no answer: %w", r.method, r.path, err), <-written)
	}
	switch {
	case answer.status >= 500 && answer.status != http.StatusNotImplemented:
		return nil, fmt.Errorf("%s %s: status %d (%.200q)", r.method, r.path, answer.status, answer.body)
	case answer.status == http.StatusOK && len(answer.body) == 0 && r.method != http.MethodHead:
		return nil, fmt.Errorf("%s %s: 200 with an empty body", r.method, r.path)
	}
	return answer, nil
}

func (s *Session) encode(r request) []byte {
	host, _ := s.host()
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.method, r.path, host)
	if r.contentType != "" {
		fmt.Fprintf(&b, "Content-Type: %s\r\n", r.contentType)
	}
	if r.code != nil {
		fmt.Fprintf(&b, "Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(r.code.Device+":"+r.code.Code)))
	}
	for _, h := range r.header {
		b.WriteString(h + "\r\n")
	}
	switch {
	case r.chunked:
		fmt.Fprintf(&b, "Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(r.body), r.body)
	case r.method == http.MethodPost || len(r.body) > 0:
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(r.body), r.body)
	default:
		b.WriteString("\r\n")
	}
	return b.Bytes()
}

func (c *connection) read(r request) (*response, error) {
	out := &response{method: r.method, path: r.path}
	for {
		c.raw.Reset()
		buffered, _ := c.reader.Peek(c.reader.Buffered())
		c.raw.Write(buffered)
		answer, err := http.ReadResponse(c.reader, &http.Request{Method: r.method})
		if err != nil {
			return nil, err
		}
		head, _, _ := strings.Cut(c.raw.String(), "\r\n\r\n")
		body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswerBytes))
		answer.Body.Close()
		if err != nil {
			return nil, err
		}
		if answer.StatusCode >= 100 && answer.StatusCode < 200 {
			out.interim++
			continue
		}
		out.status, out.head, out.header, out.body = answer.StatusCode, head, answer.Header, body
		out.chunked = len(answer.TransferEncoding) > 0
		return out, nil
	}
}

// get is a GET without credentials.
func (s *Session) get(ctx context.Context, p string) (*response, error) {
	return s.do(ctx, request{method: http.MethodGet, path: p})
}

// readableError wants a short plain text without traces of the server's inside (RFC 7030 section 4.2.3).
func (r *response) readableError() error {
	if ct := r.header.Get("Content-Type"); ct != "" && !strings.HasPrefix(ct, "text/plain") {
		return fmt.Errorf("%s %s: error of type %q", r.method, r.path, ct)
	}
	text := string(r.body)
	if r.method != http.MethodHead && (strings.TrimSpace(text) == "" || len(text) > 1000) {
		return fmt.Errorf("%s %s: error text of %d bytes", r.method, r.path, len(text))
	}
	for _, c := range text {
		if !unicode.IsPrint(c) && c != '\n' && c != '\r' {
			return fmt.Errorf("%s %s: unprintable error text %q", r.method, r.path, text)
		}
	}
	for _, leak := range []string{"goroutine", ".go:", "SELECT", "INSERT", "PRIVATE KEY", "sqlite", "/etc/", "/home/", "/var/"} {
		if strings.Contains(text, leak) {
			return fmt.Errorf("%s %s: the error text shows the server's inside: %q", r.method, r.path, text)
		}
	}
	return nil
}
