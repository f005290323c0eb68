// The server's feed, over TLS with the bridge's own certificate. Everything is pulled: the bridge has no inbound port.

package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/feedapi"
)

const (
	maxAnswerBytes = 64 << 20 // a device list or a CRL of a million entries
	feedTimeout    = 15 * time.Second
	longPoll       = 25 * time.Second
)

// Feed reads the server's feed. It is safe for concurrent use.
type Feed struct {
	base string
	http *http.Client
	link *link
}

// link is a transport that can be exchanged while requests are under way. A connection speaks for ever with the certificate that it was
// made with, and that of a long poll is never idle: closing idle connections would leave it until the old certificate has ended.
type link struct {
	dial    func() *http.Transport
	current atomic.Pointer[http.Transport]
}

// RoundTrip implements http.RoundTripper.
func (l *link) RoundTrip(r *http.Request) (*http.Response, error) {
	return l.current.Load().RoundTrip(r)
}

func (l *link) renew() {
	if old := l.current.Swap(l.dial()); old != nil {
		old.CloseIdleConnections() // the others close after their request, once they have been idle
	}
}

// FeedError is an answer of the server that is not the one asked for.
type FeedError struct {
	Status int
	Reason string // the server's word, may be empty
	Detail string
}

func (e *FeedError) Error() string {
	return fmt.Sprintf("server answered %d %s %s", e.Status, e.Reason, e.Detail)
}

// NewFeed talks to server ("https://host:8443"), whose certificate must chain to anchors, which are asked for at each Reconnect; identity is asked
// for the bridge's certificate at each new connection, so a renewed one needs no restart.
func NewFeed(server string, anchors func() []*x509.Certificate, identity func() (*tls.Certificate, error), clk *clock.Clock) *Feed {
	l := &link{dial: func() *http.Transport {
		roots := x509.NewCertPool()
		for _, a := range anchors() {
			roots.AddCert(a)
		}
		return &http.Transport{
			TLSClientConfig: &tls.Config{
				RootCAs:    roots,
				MinVersion: tls.VersionTLS12,
				Time:       clk.Now,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					return identity()
				},
			},
			TLSHandshakeTimeout: feedTimeout,
			MaxIdleConnsPerHost: 4,
			IdleConnTimeout:     90 * time.Second,
		}
	}}
	l.renew()
	return &Feed{base: strings.TrimSuffix(server, "/") + "/bridge/v1/", link: l, http: &http.Client{
		Transport:     l,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the feed does not redirect") },
	}}
}

// Reconnect makes the next request open a connection, and with it present the current certificate.
func (f *Feed) Reconnect() { f.link.renew() }

// TrustSet returns the set if its sequence number is not have (0 for none), else nil.
func (f *Feed) TrustSet(ctx context.Context, have int64) (*feedapi.TrustSet, error) {
	var set feedapi.TrustSet
	header := http.Header{}
	if have != 0 {
		header.Set("If-None-Match", strconv.Quote(strconv.FormatInt(have, 10)))
	}
	err := f.call(ctx, http.MethodGet, "trust-set", header, nil, &set)
	if err == errNotModified {
		return nil, nil
	}
	return &set, err
}

// CRL returns the DER with that SHA-256.
func (f *Feed) CRL(ctx context.Context, sum string) ([]byte, error) {
	var der []byte
	err := f.call(ctx, http.MethodGet, "crls/"+url.PathEscape(sum), nil, nil, &der)
	return der, err
}

// Devices returns all devices that may use the broker.
func (f *Feed) Devices(ctx context.Context) (feedapi.Devices, error) {
	var d feedapi.Devices
	return d, f.call(ctx, http.MethodGet, "devices", nil, nil, &d)
}

// Changes returns what came after since, waiting for it up to wait.
func (f *Feed) Changes(ctx context.Context, since int64, wait time.Duration) (feedapi.Changes, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+feedTimeout)
	defer cancel()
	var c feedapi.Changes
	path := fmt.Sprintf("changes?since=%d&wait=%s", since, wait)
	return c, f.call(ctx, http.MethodGet, path, nil, nil, &c)
}

// Ack tells the server how far the broker is.
func (f *Feed) Ack(ctx context.Context, a feedapi.Ack) error {
	return f.call(ctx, http.MethodPost, "ack", nil, a, nil)
}

// Canary asks for a certificate to prove the broker with.
func (f *Feed) Canary(ctx context.Context, r feedapi.CanaryRequest) (feedapi.Canary, error) {
	var c feedapi.Canary
	return c, f.call(ctx, http.MethodPost, "canary", nil, r, &c)
}

var errNotModified = errors.New("not modified")

// call sends in as JSON and fills out: JSON, or the bytes themselves for a *[]byte.
func (f *Feed) call(ctx context.Context, method, path string, header http.Header, in, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, feedTimeout)
		defer cancel()
	}
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, f.base+path, body)
	if err != nil {
		return err
	}
	if header != nil {
		req.Header = header
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := f.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusUnauthorized {
		f.Reconnect() // it may be the connection's certificate that does not count any more
	}
	return readAnswer(res, out)
}

func readAnswer(res *http.Response, out any) error {
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return err
	case res.StatusCode == http.StatusNotModified:
		return errNotModified
	case res.StatusCode/100 != 2:
		var e struct{ Error, Reason string }
		if json.Unmarshal(data, &e) != nil {
			e.Error = fmt.Sprintf("%.200q", data)
		}
		return &FeedError{Status: res.StatusCode, Reason: e.Reason, Detail: e.Error}
	case len(data) > maxAnswerBytes:
		return fmt.Errorf("answer is longer than %d bytes", maxAnswerBytes)
	case out == nil:
		return nil
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = data
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("answer of the server: %w", err)
	}
	return nil
}
