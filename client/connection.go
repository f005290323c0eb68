// One TLS connection to the server. Not net/http's pool: channel binding needs a request that is made for the
// very connection that carries it, and a device has one server.

package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Limits on one answer. A chain of 64 certificates stays below the first.
const (
	maxBodyBytes   = 1 << 20
	maxHeaderBytes = 64 << 10
	maxErrorBytes  = 4 << 10
	maxInformal    = 5 // answers of status 1xx before the real one
)

var errTooLarge = errors.New("answer larger than allowed")

type connection struct {
	tls           *tls.Conn
	limit         *io.LimitedReader
	reader        *bufio.Reader
	authenticated bool
	presented     *x509.Certificate // own certificate, if the server asked for one and there was one
	used          bool              // it has carried an exchange: the server may have closed it since
}

// dial opens a connection. Without authenticated the server is anybody, and nothing of the device is shown to it.
func (c *Client) dial(ctx context.Context, authenticated bool) (*connection, error) {
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	address := c.origin.Host
	if c.origin.Port() == "" {
		address = net.JoinHostPort(c.origin.Hostname(), "443")
	}
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn := &connection{authenticated: authenticated}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		ServerName: c.origin.Hostname(),
		RootCAs:    pool(c.Anchors()),
		Time:       c.now,
	}
	if authenticated {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.present(conn)
		}
	} else {
		config.InsecureSkipVerify = true // bootstrap: the answer is checked against the fingerprint
	}
	conn.tls = tls.Client(raw, config)
	if err := conn.tls.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	conn.limit = &io.LimitedReader{R: conn.tls}
	conn.reader = bufio.NewReader(conn.limit)
	return conn, nil
}

func (c *Client) present(conn *connection) (*tls.Certificate, error) {
	cert, err := c.certificate()
	if err != nil {
		return nil, err
	}
	if cert == nil {
		return &tls.Certificate{}, nil
	}
	if conn.presented = cert.Leaf; conn.presented == nil {
		if conn.presented, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return cert, nil
}

// send writes one request and reads the answer to it. started tells whether any byte of an answer came.
func (conn *connection) send(req *http.Request) (resp *http.Response, body []byte, started bool, err error) {
	conn.limit.N = maxHeaderBytes
	if err := req.Write(conn.tls); err != nil {
		// A server that refuses early, as with a TLS 1.3 alert, has written why: that is worth more than "broken pipe".
		if _, readErr := conn.reader.Peek(1); readErr != nil && !errors.Is(readErr, io.EOF) {
			err = readErr
		}
		return nil, nil, false, err
	}
	if _, err := conn.reader.Peek(1); err != nil {
		return nil, nil, false, err
	}
	for range maxInformal {
		resp, err = http.ReadResponse(conn.reader, req)
		if err != nil {
			return nil, nil, true, conn.limited(err)
		}
		if resp.StatusCode >= 200 {
			body, err = conn.readBody(resp)
			return resp, body, true, err
		}
	}
	return nil, nil, true, errors.New("no answer after several of status 1xx")
}

func (conn *connection) readBody(resp *http.Response) ([]byte, error) {
	limit := int64(maxBodyBytes)
	if resp.StatusCode >= 300 {
		limit = maxErrorBytes
	}
	conn.limit.N = limit + maxHeaderBytes // chunk headers and trailers count too
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, conn.limited(err)
	}
	if int64(len(body)) > limit {
		if resp.StatusCode >= 300 {
			resp.Close = true // an error text is not worth reading to its end
			return body[:limit], nil
		}
		return nil, errTooLarge
	}
	return body, nil
}

// limited turns the end that the limit makes into an error that says so.
func (conn *connection) limited(err error) error {
	if conn.limit.N <= 0 {
		return errTooLarge
	}
	return err
}

// reusable tells whether another exchange may follow on this connection.
func (conn *connection) reusable(resp *http.Response) bool {
	return !resp.Close && conn.authenticated && conn.reader.Buffered() == 0
}

// until makes every read and write fail at the deadline, or at once when ctx ends. Call the result when done.
func (conn *connection) until(ctx context.Context, deadline time.Time) (release func() bool) {
	conn.tls.SetDeadline(deadline)
	return context.AfterFunc(ctx, func() { conn.tls.SetDeadline(time.Unix(1, 0)) })
}

// openConnection returns the open connection, or a new one. The caller holds c.busy.
func (c *Client) openConnection(ctx context.Context, authenticated bool) (*connection, error) {
	if c.conn != nil && c.conn.authenticated == authenticated {
		return c.conn, nil
	}
	c.dropConnection()
	conn, err := c.dial(ctx, authenticated)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return conn, nil
}

func (c *Client) dropConnection() {
	if c.conn != nil {
		c.conn.tls.SetDeadline(time.Now().Add(time.Second)) // the closing alert must not wait for a dead peer
		c.conn.tls.Close()
		c.conn = nil
	}
}

func newHTTPRequest(ctx context.Context, method, url string, body []byte) (*http.Request, error) {
	if body == nil {
		return http.NewRequestWithContext(ctx, method, url, nil)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err == nil && req.ContentLength != int64(len(body)) {
		err = fmt.Errorf("content length %d for %d bytes", req.ContentLength, len(body))
	}
	return req, err
}
