// One connection as a canary: TCP, a full TLS handshake, MQTT CONNECT, CONNACK. Less proves nothing: in TLS 1.3 the client's
// handshake ends before the server has looked at its certificate.

package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"syscall"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

const (
	alertRevoked = 44 // certificate_revoked
	quietTime    = 250 * time.Millisecond
)

// connector opens probe connections to one listener.
type connector struct {
	address string
	tls     *tls.Config // server trust and name; no client certificate, no session cache
}

// probe connects once. An alert can be lost when our CONNECT meets a connection that the broker has closed; a probe that is
// to be refused therefore listens first, and tries once more after a reset without alert.
func (c *connector) probe(ctx context.Context, p Probe, cache tls.ClientSessionCache) Outcome {
	o := c.once(ctx, p, cache)
	if p.Want == Refused && o.Verdict == Refused && o.Alert == 0 && ctx.Err() == nil {
		o = c.once(ctx, p, cache)
	}
	return o
}

func (c *connector) once(ctx context.Context, p Probe, cache tls.ClientSessionCache) Outcome {
	o := Outcome{Probe: p}
	dialer := net.Dialer{}
	raw, err := dialer.DialContext(ctx, "tcp", c.address)
	if err != nil {
		o.Down = errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
		o.Err = err
		return o
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	conf := c.tls.Clone()
	conf.ClientSessionCache = cache
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if p.Certificate == nil {
			return &tls.Certificate{}, nil
		}
		return p.Certificate, nil
	}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		return o.failed(ctx, err)
	}
	o.resumed = conn.ConnectionState().DidResume
	if p.Want == Refused {
		if err := awaitAlert(ctx, conn); err != nil {
			return o.failed(ctx, err)
		}
	}
	return o.connect(ctx, conn)
}

// awaitAlert gives the broker time to refuse; nil means that it stayed quiet.
func awaitAlert(ctx context.Context, conn net.Conn) error {
	conn.SetReadDeadline(time.Now().Add(quietTime))
	_, err := conn.Read(make([]byte, 1))
	var t net.Error
	if errors.As(err, &t) && t.Timeout() && ctx.Err() == nil {
		return conn.SetReadDeadline(time.Time{})
	}
	if err == nil {
		return errors.New("data before CONNECT")
	}
	return err
}

func (o Outcome) connect(ctx context.Context, conn net.Conn) Outcome {
	cp := packets.NewControlPacket(packets.CONNECT)
	c := cp.Content.(*packets.Connect)
	c.CleanStart, c.KeepAlive = true, 10
	if p := o.Probe.Certificate; p != nil && p.Leaf != nil {
		c.ClientID = fmt.Sprintf("%s-%d", p.Leaf.Subject.CommonName, time.Now().UnixNano())
	}
	var b bytes.Buffer
	if _, err := cp.WriteTo(&b); err != nil {
		return o.failed(ctx, err)
	}
	if _, err := conn.Write(b.Bytes()); err != nil {
		return o.failed(ctx, err)
	}
	answer, err := packets.ReadPacket(conn)
	if err != nil {
		return o.failed(ctx, err)
	}
	ack, ok := answer.Content.(*packets.Connack)
	if !ok || ack.ReasonCode != 0 {
		o.Verdict, o.Err = Refused, fmt.Errorf("CONNACK: %v", answer)
		return o
	}
	o.Verdict = Accepted
	packets.NewControlPacket(packets.DISCONNECT).WriteTo(conn)
	return o
}

// failed sorts an error: the broker's own refusal, a problem on this side, or silence.
func (o Outcome) failed(ctx context.Context, err error) Outcome {
	o.Err = err
	var op *net.OpError
	var timeout net.Error
	switch {
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		o.Verdict = Unknown
	case errors.As(err, &op) && op.Op == "remote error":
		o.Verdict, o.Alert = Refused, alertNumber(op.Err)
	case errors.As(err, &op) && op.Op == "local error", isCertificateError(err):
		o.Verdict = Unknown
	default:
		o.Verdict = Refused // closed or reset: the alert got lost
	}
	return o
}

func isCertificateError(err error) bool {
	var v *tls.CertificateVerificationError
	return errors.As(err, &v)
}

// alertNumber digs the number out of crypto/tls's unexported alert type, an integer of eight bits.
func alertNumber(err error) uint8 {
	if v := reflect.ValueOf(err); v.Kind() == reflect.Uint8 {
		return uint8(v.Uint())
	}
	return 0
}

// ticketBox is a session cache that hands out nothing until it is told to, and keeps the last session it
// was given. A broker makes new ticket keys when it loads a new TLS context, so a session from before a reload that is no longer
// resumed proves that the reload has happened.
type ticketBox struct {
	mu      sync.Mutex
	session *tls.ClientSessionState
	offer   bool
}

func (t *ticketBox) Get(string) (*tls.ClientSessionState, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.session, t.offer && t.session != nil
}

func (t *ticketBox) Put(_ string, s *tls.ClientSessionState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s != nil && !t.offer {
		t.session = s
	}
}
