// The way to the administration API: an address elsewhere, the socket of a running server, or the same handlers in this
// process, on the data directory that this process has locked.

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/instance"
)

// api is a connection to the administration API.
type api struct {
	ctx   context.Context
	http  *http.Client
	base  string
	close func() error
}

// connect finds the API. Close it.
func (a *app) connect() (*api, error) {
	if a.Server != "" {
		return a.connectRemote()
	}
	if a.Cert != "" || a.Key != "" || a.Trust != "" {
		return nil, wrongUsage("--cert, --key and --trust go with --server")
	}
	if conn, err := a.dir().DialSocket(a.ctx); err == nil {
		conn.Close()
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return a.dir().DialSocket(ctx) }
		client := &http.Client{Transport: &http.Transport{DialContext: dial}}
		return &api{ctx: a.ctx, http: client, base: "http://admin.sock", close: func() error { return nil }}, nil
	}
	return a.connectInProcess()
}

func (a *app) connectInProcess() (*api, error) {
	if _, err := a.dir().ReadSettings(a.Config); err != nil {
		return nil, err
	}
	lock, err := a.dir().Lock()
	if errors.Is(err, instance.ErrLocked) {
		return nil, fmt.Errorf("%w, which does not answer on %s: is a server starting or stopping?", err, a.dir().Socket())
	}
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	i, err := instance.Open(a.ctx, instance.Options{Dir: a.dir(), ConfigFile: a.Config, PassphraseFile: a.PassphraseFile, Clock: a.clock, Log: log})
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	out := inProcess(a.ctx, newAdminAPI(i, nil))
	wait := out.close
	out.close = func() error { return errors.Join(wait(), i.Close(), lock.Release()) }
	return out, nil
}

// inProcess is the API of handler, called as the local user.
func inProcess(ctx context.Context, handler http.Handler) *api {
	running := &sync.WaitGroup{}
	transport := roundTripper(func(r *http.Request) (*http.Response, error) {
		r = r.WithContext(admin.WithCaller(r.Context(), admin.LocalCaller(os.Getuid())))
		w := newPipedResponse()
		running.Go(func() { w.run(handler, r) })
		<-w.begun
		return &http.Response{StatusCode: w.status, Header: w.sent, Body: w.body, Request: r}, nil
	})
	return &api{ctx: ctx, http: &http.Client{Transport: transport}, base: "http://in-process", close: func() error { running.Wait(); return nil }}
}

func newAdminAPI(i *instance.Instance, serverCertificate func() *x509.Certificate) *admin.API {
	return admin.New(admin.Config{
		DB: i.DB, CA: i.CA, Book: i.Book, Clock: i.Clock, Log: i.Log, PublicURL: i.Settings.PublicURL, CodeExpires: i.Settings.CodeExpires,
		ServerCertificate: serverCertificate, Backup: i.WriteBackup,
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// pipedResponse hands an answer on as it is written.
type pipedResponse struct {
	header http.Header
	begun  chan struct{} // closed when status and sent are known
	status int
	sent   http.Header
	body   *io.PipeReader
	out    *io.PipeWriter
}

func newPipedResponse() *pipedResponse {
	w := &pipedResponse{header: http.Header{}, begun: make(chan struct{})}
	w.body, w.out = io.Pipe()
	return w
}

func (w *pipedResponse) Header() http.Header { return w.header }

func (w *pipedResponse) WriteHeader(status int) {
	if w.status == 0 {
		w.status, w.sent = status, w.header.Clone()
		close(w.begun)
	}
}

func (w *pipedResponse) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.out.Write(p)
}

func (w *pipedResponse) run(h http.Handler, r *http.Request) {
	defer func() {
		p := recover()
		w.WriteHeader(http.StatusOK)
		if p == http.ErrAbortHandler {
			w.out.CloseWithError(errors.New("the answer was broken off"))
		} else if p != nil {
			panic(p)
		}
		w.out.Close()
	}()
	h.ServeHTTP(w, r)
}

func (a *app) connectRemote() (*api, error) {
	u, err := url.Parse(a.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, wrongUsage("--server %s: want https://HOST:PORT", a.Server)
	}
	if a.Cert == "" {
		return nil, wrongUsage("--server needs --cert and --key of an administrator")
	}
	key := a.Key
	if key == "" {
		key = filepath.Join(filepath.Dir(a.Cert), "key.pem")
	}
	identity, err := tls.LoadX509KeyPair(a.Cert, key)
	if err != nil {
		return nil, fmt.Errorf("--cert %s: %w", a.Cert, err)
	}
	trust := a.Trust
	if trust == "" {
		trust = filepath.Join(filepath.Dir(a.Cert), "trust.pem")
	}
	anchors, err := os.ReadFile(trust)
	if err != nil {
		return nil, fmt.Errorf("--trust: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(anchors) {
		return nil, fmt.Errorf("--trust %s: no certificate in it", trust)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{identity}, Time: a.clock.Now,
	}}}
	return &api{ctx: a.ctx, http: client, base: "https://" + u.Host, close: func() error { return nil }}, nil
}

// call sends in (nil: no body) and reads the answer into out (nil: none expected).
func (c *api) call(method, path string, in, out any) error {
	response, err := c.send(method, path, in)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(out); err != nil {
		return fmt.Errorf("the server's answer cannot be read: %w", err)
	}
	return nil
}

// send returns a 2xx answer; others are errors that tell the server's reason.
func (c *api) send(method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		content, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(content)
	}
	request, err := http.NewRequestWithContext(c.ctx, method, c.base+admin.Base+path, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	if response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	var problem admin.Problem
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&problem); err != nil || problem.Detail == "" {
		return nil, fmt.Errorf("the server answered %s", response.Status)
	}
	return nil, &apiError{&problem}
}

// apiError is a refusal by the server.
type apiError struct{ problem *admin.Problem }

// Error makes one line of a problem document.
func (e *apiError) Error() string {
	p := e.problem
	text := p.Detail
	for _, e := range p.Errors {
		text += "; " + strings.TrimPrefix(e.Location, "body.") + ": " + e.Message
	}
	if p.Reason != "" {
		text += " (" + p.Reason + ")"
	}
	return text
}

// with connects, runs do and closes.
func (a *app) with(do func(c *api) error) (err error) {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return do(c)
}

// path escapes the parts of an API path: path("cas", name, "csr").
func path(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}
