// Group A: TLS and HTTP basics.

package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

var groupA = []Case{
	{"A1", Must, "TLS 1.2 and TLS 1.3", "RFC 7030 section 3.3", false, a1},
	{"A2", Must, "TLS 1.0 and 1.1 are refused", "RFC 8996", false, a2},
	{"A3", Must, "plain HTTP on the TLS port gets no EST answer", "RFC 7030 section 3.3", false, a3},
	{"A4", Must, "the server's chain: name, intermediates", "RFC 7030 sections 3.3.1, 3.6.1", false, a4},
	{"A5", Must, "a client without a certificate completes the handshake", "RFC 7030 section 3.3.2", false, a5},
	{"A6", Should, "two requests on one connection", "RFC 7030 section 3.2", false, a6},
	{"A7", Should, "Expect: 100-continue", "RFC 7030 appendix A.4", false, a7},
	{"A8", Should, "Content-Length, never chunked", "peers refuse chunked answers", false, a8},
	{"A9", Must, "POST on the GET operations: 405 with Allow", "RFC 9110 section 15.5.6", false, a9},
	{"A10", Must, "other methods on the POST operations: 405 with Allow", "RFC 9110 section 15.5.6", false, a10},
	{"A11", Must, "unknown operation: 404 in plain text", "RFC 7030 section 3.2.2", false, a11},
	{"A12", Security, "nothing but EST is served", "leftovers of libraries", false, a12},
	{"A13", Security, "oversized request line and headers", "robustness", false, a13},
	{"A14", Security, "headers that trickle in are given up", "robustness", true, a14},
}

func a1(ctx context.Context, s *Session) error {
	return each([]uint16{tls.VersionTLS12, tls.VersionTLS13}, func(version uint16) error {
		config := s.tlsConfig()
		config.MinVersion, config.MaxVersion = version, version
		c, err := s.dialConfig(ctx, config)
		if err != nil {
			return err
		}
		defer c.Close()
		r, err := s.doOn(c, request{method: http.MethodGet, path: path("", "cacerts")})
		if err != nil {
			return err
		}
		return expect(r, http.StatusOK)
	})
}

func a2(ctx context.Context, s *Session) error {
	return each([]uint16{tls.VersionTLS10, tls.VersionTLS11}, func(version uint16) error {
		config := s.tlsConfig()
		config.MinVersion, config.MaxVersion = version, version
		c, err := s.dialConfig(ctx, config)
		if err == nil {
			c.Close()
			return errors.New("the handshake succeeded")
		}
		return nil
	})
}

func a3(ctx context.Context, s *Session) error {
	address, err := s.host()
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{Timeout: exchangeTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	c := newConnection(conn, tls.ConnectionState{})
	defer c.Close()
	r, err := s.doOn(c, request{method: http.MethodGet, path: path("", "cacerts")})
	if err != nil {
		return nil // closed
	}
	return expect(r, http.StatusBadRequest)
}

func a4(ctx context.Context, s *Session) error {
	c, err := s.dial(ctx, nil, 0)
	if err != nil {
		return fmt.Errorf("chain to the anchors, or the name: %w", err)
	}
	defer c.Close()
	chain := c.state.PeerCertificates
	address, _ := s.host()
	name, _, _ := net.SplitHostPort(address)
	if err := chain[0].VerifyHostname(name); err != nil {
		return err
	}
	for _, anchor := range s.Target.Anchors {
		if bytes.Equal(chain[len(chain)-1].RawIssuer, anchor.RawSubject) {
			return nil
		}
	}
	return errors.New("the server does not send the intermediates up to an anchor")
}

func a5(ctx context.Context, s *Session) error {
	requested := false
	config := s.tlsConfig()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		requested = true
		return &tls.Certificate{}, nil
	}
	c, err := s.dialConfig(ctx, config)
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := s.doOn(c, request{method: http.MethodGet, path: path("", "cacerts")})
	if err != nil {
		return err
	}
	if !requested {
		return errors.New("the server does not ask for a client certificate")
	}
	return expect(r, http.StatusOK)
}

func a6(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	c, err := s.dial(ctx, nil, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	first, err := s.doOn(c, request{method: http.MethodGet, path: path("", "cacerts")})
	if err != nil {
		return err
	}
	if err := expect(first, http.StatusOK); err != nil {
		return err
	}
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.code, r.connection = &code, c
	_, err = s.issue(ctx, r, key.Public())
	return err
}

func a7(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.code, r.header = &code, []string{"Expect: 100-continue"}
	_, err = s.issue(ctx, r, key.Public())
	return err
}

func a8(ctx context.Context, s *Session) error {
	for _, p := range []string{path("", "cacerts"), path("", "csrattrs"), path("", "nosuchop")} {
		r, err := s.get(ctx, p)
		if err != nil {
			return err
		}
		if r.chunked || r.header.Get("Content-Length") == "" {
			return fmt.Errorf("%s: no Content-Length", p)
		}
	}
	return nil
}

// methodRefused wants 405 with an Allow header that has allowed in it (or the tolerated 400).
func methodRefused(ctx context.Context, s *Session, method, operation, allowed string) error {
	r, err := s.do(ctx, request{method: method, path: path("", operation)})
	if err != nil {
		return err
	}
	if r.status == http.StatusBadRequest {
		return r.readableError()
	}
	if err := expect(r, http.StatusMethodNotAllowed); err != nil {
		return err
	}
	if !strings.Contains(r.header.Get("Allow"), allowed) {
		return fmt.Errorf("%s %s: Allow is %q, want %s", method, operation, r.header.Get("Allow"), allowed)
	}
	return r.readableError()
}

func a9(ctx context.Context, s *Session) error {
	return each([]string{"cacerts", "csrattrs"}, func(operation string) error {
		return each([]string{"POST", "PUT", "DELETE", "PROPFIND", "BREW"}, func(method string) error {
			return methodRefused(ctx, s, method, operation, "GET")
		})
	})
}

func a10(ctx context.Context, s *Session) error {
	return each([]string{"simpleenroll", "simplereenroll", "serverkeygen"}, func(operation string) error {
		return each([]string{"GET", "PUT", "DELETE", "PATCH", "BREW"}, func(method string) error {
			return methodRefused(ctx, s, method, operation, "POST")
		})
	})
}

func notFound(ctx context.Context, s *Session, method, p string) error {
	r, err := s.do(ctx, request{method: method, path: p})
	if err != nil {
		return err
	}
	if err := expect(r, http.StatusNotFound); err != nil {
		return err
	}
	return r.readableError()
}

func a11(ctx context.Context, s *Session) error {
	return each([]string{"/.well-known/est/nosuchop", "/.well-known/est", "/.well-known/est/", "/.well-known/est/cacerts/", "/.well-known", "/cacerts"},
		func(p string) error { return notFound(ctx, s, http.MethodGet, p) })
}

func a12(ctx context.Context, s *Session) error {
	err := each([]string{"/.well-known/est/tpmenroll", "/.well-known/est/a/tpmenroll", "/tpmenroll"}, func(p string) error {
		return notFound(ctx, s, http.MethodPost, p)
	})
	return errors.Join(err, each([]string{"/healthcheck", "/debug/pprof/", "/metrics", "/"}, func(p string) error {
		return notFound(ctx, s, http.MethodGet, p)
	}))
}

func a13(ctx context.Context, s *Session) error {
	long := request{method: http.MethodGet, path: path("", "cacerts") + "?" + strings.Repeat("a", 16<<10)}
	wide := request{method: http.MethodGet, path: path("", "cacerts"), header: []string{"X-Filler: " + strings.Repeat("b", 2<<20)}}
	return each([]request{long, wide}, func(r request) error {
		answer, err := s.do(ctx, r)
		if err != nil {
			return nil // closed; Run checks that the server is up
		}
		return expect(answer, http.StatusOK, http.StatusBadRequest, http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge)
	})
}

// a14 sends a header one byte per half second and wants to be cut off within a minute.
func a14(ctx context.Context, s *Session) error {
	c, err := s.dial(ctx, nil, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	start := time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.SetReadDeadline(start.Add(70 * time.Second))
		c.reader.ReadByte()
	}()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	text := "GET /.well-known/est/cacerts HTTP/1.1\r\nX-Slow: " + strings.Repeat("z", 200)
	for i := range text {
		select {
		case <-ended:
			if took := time.Since(start); took > time.Minute {
				return fmt.Errorf("cut off after %s", took)
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			c.SetWriteDeadline(time.Now().Add(time.Second))
			c.Write([]byte{text[i]}) // a failing write shows in ended, too
		}
	}
	return errors.New("the connection was never cut off")
}
