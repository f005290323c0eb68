// A connection that remembers why it ended: the MQTT library reports that a packet could not be read, not the TLS alert behind it.

package main

import (
	"net"
	"sync"
)

type connTrace struct {
	mu  sync.Mutex
	err error
}

func (t *connTrace) note(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

func (t *connTrace) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = nil
}

// last is the first error of the connection made last; nil while it is well.
func (t *connTrace) last() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

type tracedConn struct {
	net.Conn
	trace *connTrace
}

func (c *tracedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.trace.note(err)
	}
	return n, err
}
