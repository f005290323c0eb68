package client

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

func TestRedirects(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 307, 308} {
		t.Run(fmt.Sprint("same origin ", status), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/elsewhere/moved")
				w.WriteHeader(status)
			})
			p.on("moved", p.requireCode(p.issue))
			if _, err := p.client().Enroll(testContext(t), newKey(t), Request{}); err != nil {
				t.Fatal(err)
			}
			for _, r := range p.saw("moved") {
				if r.method != http.MethodPost || len(r.body) == 0 {
					t.Errorf("%s with %d bytes", r.method, len(r.body))
				}
			}
		})
	}
	other := newPeer(t)
	for name, location := range map[string]string{
		"another origin": other.server.URL + wire.Path("", wire.OpSimpleEnroll),
		"another port":   "https://127.0.0.1:1/x",
		"plain HTTP":     "http://127.0.0.1/x",
		"no Location":    "",
		"a loop":         wire.Path("", wire.OpSimpleEnroll),
		"a user":         "https://a:b@HOST/x",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, r *http.Request) {
				if location != "" {
					w.Header().Set("Location", strings.ReplaceAll(location, "HOST", r.Host))
				}
				w.WriteHeader(http.StatusFound)
			})
			_, err := p.client().Enroll(testContext(t), newKey(t), Request{})
			var e *Error
			if !errors.As(err, &e) || e.Reason != "redirect" {
				t.Errorf("got %v", err)
			}
			if n := len(p.saw(wire.OpSimpleEnroll)); n > maxRedirects+1 {
				t.Errorf("%d requests", n)
			}
		})
	}
	t.Cleanup(func() {
		if n := len(other.saw("")); n != 0 {
			t.Errorf("the other origin got %d requests", n)
		}
	})
}

// TestHostileServers: a server that hangs, resets or floods costs a bounded time and gives a typed error.
func TestHostileServers(t *testing.T) {
	t.Parallel()
	hijack := func(talk func(net.Conn)) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			talk(conn)
		}
	}
	send := func(text string) http.HandlerFunc {
		return hijack(func(c net.Conn) { c.Write([]byte(text)) })
	}
	flood := func(head, piece string) http.HandlerFunc {
		return hijack(func(c net.Conn) {
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.Write([]byte(head))
			for range 1 << 16 {
				if _, err := c.Write([]byte(piece)); err != nil {
					return
				}
			}
		})
	}
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	ok := "HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime\r\n"
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		reason  string
	}{
		"hangs":             {hijack(func(net.Conn) { <-stop }), "connect"},
		"hangs in the body": {hijack(func(c net.Conn) { c.Write([]byte(ok + "Content-Length: 10\r\n\r\nMAA")); <-stop }), "connect"},
		"closes":            {hijack(func(net.Conn) {}), "connect"},
		"half an answer":    {send(ok + "Content-Length: 100\r\n\r\nMAA="), "connect"},
		"not HTTP":          {send("220 mail.example ESMTP\r\n"), "connect"},
		"endless header":    {flood(ok, "X-Filler: "+strings.Repeat("x", 1000)+"\r\n"), "too_large"},
		"endless body":      {flood(ok+"Transfer-Encoding: chunked\r\n\r\n", "400\r\n"+strings.Repeat("A", 1024)+"\r\n"), "too_large"},
		"endless error":     {flood("HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\n\r\n", strings.Repeat("A", 1024)), ""},
		"endless 100":       {flood("", "HTTP/1.1 100 Continue\r\n\r\n"), "connect"},
		"huge length":       {send(ok + "Content-Length: 9223372036854775807\r\n\r\nMAA="), "connect"},
		"two lengths":       {send(ok + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nMAA=\n"), "connect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			p.on(wire.OpCACerts, c.handler)
			device := p.client()
			if strings.HasPrefix(name, "hangs") {
				device.Timeout = time.Second
			}
			begin := time.Now()
			_, err := device.CACerts(testContext(t))
			var e *Error
			if !errors.As(err, &e) || e.Reason != c.reason {
				t.Errorf("got %v, want reason %q", err, c.reason)
			}
			if took := time.Since(begin); took > 9*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	c := &Client{Server: "https://" + closedAddress(t), TrustAnchors: []*x509.Certificate{testpki.Root(t, "Root").Certificate}}
	var e *Error
	if _, err := c.CACerts(testContext(t)); !errors.As(err, &e) || e.Reason != "connect" || e.Status != 0 {
		t.Errorf("got %v", err)
	}
}

func TestPlainHTTPServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: quiet()}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	c := &Client{Server: "https://" + l.Addr().String(), TrustAnchors: []*x509.Certificate{testpki.Root(t, "Root").Certificate}}
	var e *Error
	if _, err := c.CACerts(testContext(t)); !errors.As(err, &e) || e.Reason != "tls" || !strings.Contains(e.Message, "does not speak TLS") {
		t.Errorf("got %v", err)
	}
}
