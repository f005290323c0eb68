// A bare MQTT 3.1.1 connection that shows to the millisecond when the broker ends it; mosquitto's own clients try again by themselves.

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// session is a connection that keeps silent.
type session struct {
	device string // directory of the device
	conn   net.Conn
	ended  chan struct{} // closed when the broker has ended the connection
	at     time.Time     // when that was
}

var sessions atomic.Int64

// connect opens a session with a device's files; an error means that the broker refused it.
func (b *broker) connect(t *testing.T, dir string, version uint16) (*session, error) {
	t.Helper()
	return dialMQTT(t, b.devices, b.tlsConfig(t, dir, version), nil)
}

// mustConnect is connect that has to succeed.
func (b *broker) mustConnect(t *testing.T, dir string) *session {
	t.Helper()
	s, err := b.connect(t, dir, tls.VersionTLS13)
	if err != nil {
		t.Fatalf("connect with %s: %v", dir, err)
	}
	s.device = dir
	return s
}

// tlsConfig presents a device's bundle and speaks one version of TLS.
func (b *broker) tlsConfig(t *testing.T, dir string, version uint16) *tls.Config {
	t.Helper()
	bundle := filepath.Join(dir, "bundle.pem")
	pair, err := tls.LoadX509KeyPair(bundle, bundle)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(readText(t, b.server.Trust()))) {
		t.Fatal("no trust anchor")
	}
	return &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}, MinVersion: version, MaxVersion: version}
}

// dialMQTT connects as a client with a name of its own; login is user name and password, or nothing.
func dialMQTT(t *testing.T, address string, config *tls.Config, login []string) (*session, error) {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", address, config)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(connectPacket(login)); err != nil {
		return nil, err
	}
	var answer [4]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return nil, err
	}
	if answer[0] != 0x20 || answer[3] != 0 {
		return nil, fmt.Errorf("CONNACK (%d)", answer[3])
	}
	conn.SetDeadline(time.Time{})
	s := &session{conn: conn, ended: make(chan struct{})}
	go func() {
		io.Copy(io.Discard, conn)
		s.at = time.Now()
		close(s.ended)
	}()
	return s, nil
}

// connectPacket asks for a clean session without keep-alive.
func connectPacket(login []string) []byte {
	field := func(text string) []byte { return append([]byte{byte(len(text) >> 8), byte(len(text))}, text...) }
	flags := byte(0x02)
	payload := field(fmt.Sprintf("e2e-%d-%d", os.Getpid(), sessions.Add(1)))
	if len(login) == 2 {
		flags |= 0xc0
		payload = append(append(payload, field(login[0])...), field(login[1])...)
	}
	body := append(append(field("MQTT"), 4, flags, 0, 0), payload...)
	return append([]byte{0x10, byte(len(body))}, body...) // one byte of length: less than 128
}

// waitEnd waits until the broker has ended the session, and returns how long after began that was.
func (s *session) waitEnd(t *testing.T, began time.Time) time.Duration {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatalf("the session with %s is still there after %v", s.device, time.Since(began))
	}
	return s.at.Sub(began)
}

// alive sends a PING and says whether the session bears it.
func (s *session) alive() bool {
	if _, err := s.conn.Write([]byte{0xc0, 0}); err != nil {
		return false
	}
	select {
	case <-s.ended:
		return false
	case <-time.After(200 * time.Millisecond):
		return true
	}
}

// alertOf is the number of the TLS alert that the peer sent; 0 if the error is another one.
func alertOf(err error) int {
	var alert tls.AlertError
	var op *net.OpError
	switch {
	case errors.As(err, &alert):
		return int(alert)
	case errors.As(err, &op) && op.Op == "remote error":
		// The type of the alert is not exported; its text is fixed.
		return map[string]int{"tls: revoked certificate": 44, "tls: expired certificate": 45, "tls: unknown certificate authority": 48, "tls: bad certificate": 42,
			"tls: certificate required": 116, "tls: handshake failure": 40}[op.Err.Error()]
	}
	return 0
}

// sclient is openssl's opinion of a connection with a device's files: its whole output.
func (b *broker) sclient(t *testing.T, dir, address string, args ...string) string {
	t.Helper()
	return harness.Command{Path: harness.Program(t, "openssl"), Dir: dir, Args: append([]string{"s_client", "-connect", address, "-CAfile", b.server.Trust(),
		"-cert", "cert.pem", "-cert_chain", "cert.pem", "-key", "key.pem"}, args...)}.Run(t).Output()
}
