// A share of the EST address's connections for each remote address, so that one address cannot use them all up.

package main

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
)

// connectionsPerPeer is more than a site behind one address needs at a time; devices stay for a few requests.
const connectionsPerPeer = 256

// peerLimit closes at once what comes from a remote address (of IPv6: a /64 network) that has most connections open. Loopback has no limit.
type peerLimit struct {
	net.Listener
	most int
	log  *slog.Logger

	mu    sync.Mutex
	peers map[netip.Prefix]*peer
}

type peer struct {
	open int
	told bool // logged already; forgotten when the last connection closes
}

func limitPeers(l net.Listener, most int, log *slog.Logger) net.Listener {
	return &peerLimit{Listener: l, most: most, log: log, peers: map[netip.Prefix]*peer{}}
}

func (l *peerLimit) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		network, limited := networkOf(conn.RemoteAddr())
		if !limited {
			return conn, nil
		}
		if l.enter(network) {
			return &peerConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(network) })}, nil
		}
		conn.Close()
	}
}

func (l *peerLimit) enter(network netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[network]
	if p == nil {
		p = &peer{}
		l.peers[network] = p
	}
	if p.open < l.most {
		p.open++
		return true
	}
	if !p.told {
		p.told = true
		l.log.Warn("connections refused: too many from one address", "network", network, "open", p.open)
	}
	return false
}

func (l *peerLimit) leave(network netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[network]
	if p.open--; p.open == 0 {
		delete(l.peers, network)
	}
}

// networkOf is what counts as one remote address.
func networkOf(remote net.Addr) (network netip.Prefix, limited bool) {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}, false
	}
	address := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if address.Is6() {
		bits = 64
	}
	network, err := address.Prefix(bits)
	return network, err == nil && !address.IsLoopback()
}

type peerConn struct {
	net.Conn
	leave func()
}

func (c *peerConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
