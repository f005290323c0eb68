// A device's connection to the broker: mosquitto's own clients, and a bare MQTT 3.1.1 connection that shows to the millisecond when it
// is cut.

package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// subscribe starts an independent subscriber on the broker's plain listener and returns once it is subscribed. Its output is
// "TOPIC PAYLOAD" lines.
func subscribe(t *testing.T, b *harness.Broker, topic string) *harness.Process {
	t.Helper()
	harness.RequirePrograms(t, "mosquitto_sub", "mosquitto_pub")
	ready := fmt.Sprintf("ready/%d", time.Now().UnixNano())
	p := harness.Command{Path: harness.Program(t, "mosquitto_sub"), Args: []string{"-h", "127.0.0.1", "-p", harness.Port(t, b.Plain), "-v", "-t", topic, "-t", ready}}.Start(t)
	harness.Eventually(t, 10*time.Second, "the subscriber's own message", func() bool {
		harness.MustRun(t, harness.Program(t, "mosquitto_pub"), "-h", "127.0.0.1", "-p", harness.Port(t, b.Plain), "-t", ready, "-m", "x")
		return strings.Contains(p.Output(), ready)
	})
	return p
}

// publish runs mosquitto_pub with a client certificate, as a user types it.
func publish(t *testing.T, b *harness.Broker, cert, key, topic, payload string) harness.Result {
	t.Helper()
	return harness.Run(t, harness.Program(t, "mosquitto_pub"), "-h", "localhost", "-p", harness.Port(t, b.Devices), "--cafile", b.CA,
		"--cert", cert, "--key", key, "-q", "1", "-t", topic, "-m", payload)
}

// delivered waits for a line at the subscriber.
func delivered(t *testing.T, subscriber *harness.Process, topic, payload string) {
	t.Helper()
	harness.Eventually(t, 5*time.Second, "the subscriber to receive "+payload, func() bool {
		return strings.Contains(subscriber.Output(), topic+" "+payload+"\n")
	})
}

// session is an MQTT connection that stays silent.
type session struct {
	conn net.Conn
}

// connect opens a session with the certificate in bundle (key, leaf, issuing CAs). An error means that TLS or the broker refused it.
func connect(t *testing.T, b *harness.Broker, bundle string) (*session, error) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(bundle, bundle)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(b.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second},
		Config: &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(t.Context(), "tcp", b.Devices)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	id := fmt.Sprintf("e2e-%d", time.Now().UnixNano())
	packet := []byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, byte(len(id))} // CONNECT, clean session, no keep-alive
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write(append(packet, id...)); err != nil {
		return nil, err
	}
	var answer [4]byte
	if _, err := bufio.NewReader(conn).Read(answer[:]); err != nil {
		return nil, err
	}
	if answer[0] != 0x20 || answer[3] != 0 {
		return nil, fmt.Errorf("CONNACK %v", answer)
	}
	conn.SetDeadline(time.Time{})
	return &session{conn}, nil
}

// cut waits until the broker ends the session.
func (s *session) cut(t *testing.T, limit time.Duration) {
	t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(limit))
	var one [1]byte
	_, err := s.conn.Read(one[:])
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("the session is still there after %v", limit)
	}
}

// alive says whether nothing has come and nobody has hung up within a moment.
func (s *session) alive(t *testing.T) bool {
	t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	var one [1]byte
	_, err := s.conn.Read(one[:])
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// agent runs estclient-example enroll for a device with a code, and returns the directory with its bundle.pem, cert.pem and key.pem.
func agent(t *testing.T, s *harness.Server, id string, args ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), id)
	harness.MustRun(t, harness.Binary(t, "estclient-example"), append([]string{"enroll", "--server", s.URL(), "--dir", dir, "--trust", s.Trust()}, args...)...)
	return dir
}

// withCode are the agent's arguments for a device with a fresh code.
func withCode(t *testing.T, s *harness.Server, id string) []string {
	t.Helper()
	return []string{"--id", id, "--code-file", s.CodeFile(t, id)}
}
