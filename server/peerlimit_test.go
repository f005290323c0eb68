// One remote address gets its share of connections and no more; loopback and the neighbours do not notice.

package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
)

// fakeListener hands out connections from the addresses that are sent to it.
type fakeListener struct {
	net.Listener
	from chan string
}

type fakeConn struct {
	net.Conn
	remote net.Addr
}

func (c fakeConn) RemoteAddr() net.Addr { return c.remote }

func (l fakeListener) Accept() (net.Conn, error) {
	address, open := <-l.from
	if !open {
		return nil, net.ErrClosed
	}
	near, far := net.Pipe()
	far.Close()
	remote, err := net.ResolveTCPAddr("tcp", address)
	return fakeConn{near, remote}, err
}

func TestPeerLimit(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	inner := fakeListener{from: make(chan string, 16)}
	l := limitPeers(inner, 2, slog.New(slog.NewTextHandler(&log, nil)))
	next := func(want string) net.Conn {
		t.Helper()
		conn, err := l.Accept()
		if err != nil || conn.RemoteAddr().String() != want {
			t.Fatalf("accepted %v, %v; want %s", conn, err, want)
		}
		return conn
	}
	var first net.Conn
	for _, c := range []struct {
		from     string
		accepted bool
	}{
		{"192.0.2.1:1", true}, {"192.0.2.1:2", true}, {"192.0.2.1:3", false}, {"[::ffff:192.0.2.1]:4", false}, {"192.0.2.2:1", true},
		{"[2001:db8:0:1::1]:1", true}, {"[2001:db8:0:1::2]:1", true}, {"[2001:db8:0:1:ffff::3]:1", false}, {"[2001:db8:0:2::1]:1", true},
		{"127.0.0.1:1", true}, {"127.0.0.1:2", true}, {"127.0.0.1:3", true}, {"[::1]:1", true}, {"[::1]:2", true}, {"[::1]:3", true},
	} {
		inner.from <- c.from
		if !c.accepted {
			continue // closed on the way to the next
		}
		if conn := next(c.from); first == nil {
			first = conn
		}
	}
	if n := strings.Count(log.String(), "too many from one address"); n != 2 {
		t.Errorf("told %d times:\n%s", n, &log)
	}
	first.Close()
	first.Close() // http.Server closes more than once
	inner.from <- "192.0.2.1:5"
	last := next("192.0.2.1:5")
	inner.from <- "192.0.2.1:6"
	close(inner.from)
	if conn, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepted %v, %v: the second Close made room", conn, err)
	}
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	if n := len(l.(*peerLimit).peers); n != 4 {
		t.Errorf("%d networks remembered", n)
	}
}
