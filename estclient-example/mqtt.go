// The loop that uses the certificate: telemetry over MQTT 5. A session lasts until the certificate is renewed; then a new one
// is made with the new certificate. The broker is trusted by roots of its own, not by those of the EST server.

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/natal-pki/natal/client"
)

const (
	connectTimeout = 15 * time.Second
	publishTimeout = 15 * time.Second
	keepAlive      = 30 // seconds
)

type publisher struct {
	*agent
	host     string
	roots    *x509.CertPool // nil is the system's
	started  time.Time
	sequence int64
}

// newPublisher is nil without --mqtt.
func (a *agent) newPublisher() (*publisher, error) {
	if a.MQTT == "" {
		return nil, nil
	}
	host, _, err := net.SplitHostPort(a.MQTT)
	if err != nil {
		return nil, fmt.Errorf("--mqtt: %w", err)
	}
	p := &publisher{agent: a, host: host, started: time.Now()}
	if a.MQTTCA != "system" {
		certs, err := readCertificates(a.MQTTCA)
		if err != nil {
			return nil, fmt.Errorf("--mqtt-ca: %w", err)
		}
		p.roots = x509.NewCertPool()
		for _, cert := range certs {
			p.roots.AddCert(cert)
		}
	}
	return p, nil
}

// session publishes until the certificate is renewed (again is true), ctx ends, or with --once the first message is acknowledged.
func (p *publisher) session(ctx context.Context, renewed <-chan struct{}) (again bool, err error) {
	id, err := p.store.Load()
	if err != nil {
		return false, err
	}
	device := id.Certificate.Subject.CommonName
	var presented atomic.Pointer[x509.Certificate] // of the latest connection; somebody else may have renewed the store
	presented.Store(id.Certificate)
	manager, err := autopaho.NewConnection(ctx, p.config(device, &presented))
	if err != nil {
		return false, fmt.Errorf("--mqtt: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = manager.Disconnect(closing) // a broker that does not answer is left all the same
	}()
	topic := strings.ReplaceAll(p.MQTTTopic, "{id}", device)
	for {
		wait := p.Interval
		if p.publish(ctx, manager, topic, &presented) {
			if p.Once {
				return false, nil
			}
		} else if ctx.Err() == nil {
			wait = min(wait, 5*time.Second)
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-renewed:
			return true, nil
		case <-time.After(wait):
		}
	}
}

func (p *publisher) config(device string, presented *atomic.Pointer[x509.Certificate]) autopaho.ClientConfig {
	trace := new(connTrace)
	config := autopaho.ClientConfig{
		ServerUrls:                    []*url.URL{{Scheme: "mqtts", Host: p.MQTT}},
		KeepAlive:                     keepAlive,
		CleanStartOnInitialConnection: true,
		ConnectTimeout:                connectTimeout,
		ReconnectBackoff:              p.reconnectBackoff(),
		ClientConfig:                  paho.ClientConfig{ClientID: device, PacketTimeout: publishTimeout},
		AttemptConnection: func(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
			return p.dial(ctx, u.Host, presented, trace)
		},
		OnConnectionUp: func(*autopaho.ConnectionManager, *paho.Connack) {
			p.log.Info("connected to the broker", "broker", p.MQTT, "device", device)
			if cert := presented.Load(); cert != nil {
				if err := p.store.Confirm(cert); err != nil {
					p.log.Warn("certificate could not be marked as proven", "error", err)
				}
			}
		},
		OnConnectionDown: func() bool {
			p.log.Warn("connection to the broker lost", "broker", p.MQTT, "error", trace.last())
			return true
		},
		OnConnectError: func(err error) {
			p.log.Warn("broker not reached", "broker", p.MQTT, "error", p.explain(err, trace, presented.Load()))
		},
	}
	return config
}

// reconnectBackoff waits 1 s to 1 min with full jitter; the first connection of a session is made at once.
func (p *publisher) reconnectBackoff() func(int) time.Duration {
	first := true
	return func(attempt int) time.Duration {
		if first {
			first = false
			return 0
		}
		backoff := client.Backoff{Max: time.Minute}
		wait := backoff.Next(nil)
		for range attempt {
			wait = backoff.Next(nil)
		}
		return wait
	}
}

// dial makes the TLS connection itself, to know which certificate was presented and why a connection ended.
func (p *publisher) dial(ctx context.Context, address string, presented *atomic.Pointer[x509.Certificate], trace *connTrace) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	presented.Store(nil)
	trace.reset()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	config := p.store.TLSConfig(p.host, p.roots)
	config.Time = p.clock.Now
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := p.store.TLSCertificate()
		if err == nil {
			presented.Store(cert.Leaf)
		}
		return cert, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return packets.NewThreadSafeConn(&tracedConn{Conn: conn, trace: trace}), nil
}

// explain prefers what the broker said in TLS: with TLS 1.3 its refusal arrives as the first read.
func (p *publisher) explain(err error, trace *connTrace, presented *x509.Certificate) string {
	for _, candidate := range []error{err, trace.last()} {
		if text := client.ExplainAlert(candidate, presented, p.clock.Now()); text != "" {
			return text
		}
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Sprintf("the broker's certificate does not chain to --mqtt-ca %s: %v", p.MQTTCA, err)
	}
	var refused *autopaho.ConnackError
	if last := trace.last(); last != nil && !errors.As(err, &refused) {
		return fmt.Sprintf("%v (%v)", err, last)
	}
	return err.Error()
}

// telemetry is flat, as ThingsBoard and most others take it.
type telemetry struct {
	Time                string `json:"time"`
	Sequence            int64  `json:"sequence"`
	UptimeSeconds       int64  `json:"uptime_seconds"`
	CertificateSerial   string `json:"certificate_serial"`
	CertificateDaysLeft int64  `json:"certificate_days_left"`
}

// publish reports whether the broker acknowledged one message (QoS 1).
func (p *publisher) publish(ctx context.Context, manager *autopaho.ConnectionManager, topic string, presented *atomic.Pointer[x509.Certificate]) bool {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if err := manager.AwaitConnection(ctx); err != nil {
		return false // why it is down has been logged
	}
	cert := presented.Load()
	if cert == nil {
		return false // the connection has just gone
	}
	now := p.clock.Now()
	p.sequence++
	payload, err := json.Marshal(telemetry{Time: stamp(now), Sequence: p.sequence, UptimeSeconds: int64(time.Since(p.started).Seconds()),
		CertificateSerial: serialHex(cert), CertificateDaysLeft: int64(cert.NotAfter.Sub(now).Hours() / 24)})
	if err != nil {
		p.log.Error("telemetry cannot be written", "error", err)
		return false
	}
	response, err := manager.Publish(ctx, &paho.Publish{QoS: 1, Topic: topic, Payload: payload})
	if err != nil {
		attributes := []any{"topic", topic, "error", err}
		if response != nil {
			attributes = append(attributes, "reason_code", fmt.Sprintf("0x%02x", response.ReasonCode))
			if response.ReasonCode == packets.PubackNotAuthorized {
				attributes = append(attributes, "cause", "the broker's access list does not allow this topic to this device")
			}
		}
		p.log.Warn("telemetry not accepted", attributes...)
		return false
	}
	p.log.Info("telemetry published", "topic", topic, "sequence", p.sequence)
	return true
}
