// Group H: client certificates.

package conformance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
)

var groupH = []Case{
	{"H1", Must, "a certificate of the EST CA on /simpleenroll", "RFC 7030 section 3.3.2", false, h1},
	{"H2", Must, "self-signed and unknown certificates", "RFC 7030 section 3.3.2", false, h2},
	{"H3", Must, "a revoked certificate, at once and on an open connection", "RFC 7030 section 3.3.2", false, h3},
	{"H4", Must, "an expired certificate", "RFC 7030 section 3.3.2", false, h4},
	{"H5", Must, "a birth certificate on /simpleenroll, once", "RFC 7030 sections 2.2.1, 3.3.2", false, h5},
	{"H6", Security, "a request that did not come over TLS", "robustness", false, h6},
	{"H7", Security, "a birth certificate for another device's name", "RFC 7030 section 3.7", false, h7},
	{"H8", Security, "the server's own and the CAs' certificates authorise nothing without their keys", "RFC 7030 section 3.3.2", false, h8},
}

// handshakeRefused tells a TLS alert from other errors.
func handshakeRefused(err error) bool {
	var alert tls.AlertError
	var op *net.OpError
	return errors.As(err, &alert) || (errors.As(err, &op) && op.Op == "remote error")
}

// certificateRefused enrolls with a client certificate and wants a TLS alert or 401 or 403.
func (s *Session) certificateRefused(ctx context.Context, name string, certificate tls.Certificate) error {
	return each([]string{"simpleenroll", "simplereenroll"}, func(operation string) error {
		der, _, err := newCSR(name, nil, nil)
		if err != nil {
			return err
		}
		r := reenrollment(der, &certificate)
		r.path = path("", operation)
		answer, err := s.do(ctx, r)
		if err != nil {
			if handshakeRefused(err) {
				return nil
			}
			return err
		}
		return errors.Join(expect(answer, http.StatusUnauthorized, http.StatusForbidden), answer.readableError())
	})
}

func h1(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	der, key, err := newCSR(device.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.certificate = &device.Certificate
	_, err = s.issue(ctx, r, key.Public())
	return err
}

func h2(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	return each([]bool{true, false}, func(selfSigned bool) error {
		bad, err := stranger(device.Device, selfSigned)
		if err != nil {
			return err
		}
		return s.certificateRefused(ctx, device.Device, bad)
	})
}

func h3(ctx context.Context, s *Session) error {
	if s.Target.Revoke == nil {
		return skip("way to revoke")
	}
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	open, err := s.dial(ctx, &device.Certificate, 0) // from before the revocation
	if err != nil {
		return err
	}
	defer open.Close()
	if err := s.Target.Revoke(ctx, device.Certificate.Leaf); err != nil {
		return err
	}
	der, _, err := newCSR(device.Device, nil, nil)
	if err != nil {
		return err
	}
	r := reenrollment(der, nil)
	r.connection = open
	answer, err := s.doOn(open, r)
	if err != nil {
		return err
	}
	if err := expect(answer, http.StatusUnauthorized, http.StatusForbidden); err != nil {
		return fmt.Errorf("connection from before: %w", err)
	}
	return s.certificateRefused(ctx, device.Device, device.Certificate)
}

func h4(ctx context.Context, s *Session) error {
	if s.Target.ExpiredBirth == nil {
		return skip("expired birth certificate")
	}
	device, err := s.Target.ExpiredBirth(ctx)
	if err != nil {
		return err
	}
	return s.certificateRefused(ctx, device.Device, device.Certificate)
}

func h5(ctx context.Context, s *Session) error {
	device, err := s.freshBirth(ctx)
	if err != nil {
		return err
	}
	der, key, err := newCSR(device.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.certificate = &device.Certificate
	cert, err := s.issue(ctx, r, key.Public())
	if err != nil {
		return err
	}
	if cert.Subject.CommonName != device.Device {
		return fmt.Errorf("issued to %q, want %q", cert.Subject.CommonName, device.Device)
	}
	other, _, err := newCSR(device.Device, nil, nil) // another key: a second certificate
	if err != nil {
		return err
	}
	r = enrollment("", other)
	r.certificate = &device.Certificate
	return s.refused(ctx, r)
}

func h6(ctx context.Context, s *Session) error {
	if s.Target.PlainURL == "" {
		return skip("plain HTTP address")
	}
	u, err := url.Parse(s.Target.PlainURL)
	if err != nil {
		return err
	}
	return each([]string{"simpleenroll", "simplereenroll"}, func(operation string) error {
		conn, err := (&net.Dialer{Timeout: exchangeTimeout}).DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return err
		}
		c := newConnection(conn, tls.ConnectionState{})
		defer c.Close()
		der, _, err := newCSR("nobody", nil, nil)
		if err != nil {
			return err
		}
		r := enrollment("", der)
		r.path = path("", operation)
		answer, err := s.doOn(c, r)
		if err != nil {
			return err
		}
		return expect4xx(answer)
	})
}

func h7(ctx context.Context, s *Session) error {
	device, err := s.freshBirth(ctx)
	if err != nil {
		return err
	}
	victim, err := s.freshBirth(ctx)
	if err != nil {
		return err
	}
	der, _, err := newCSR(victim.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.certificate = &device.Certificate
	if err := s.refused(ctx, r); err != nil {
		return err
	}
	for _, d := range []Identity{device, victim} { // neither birth certificate was used up
		der, key, err := newCSR(d.Device, nil, nil)
		if err != nil {
			return err
		}
		r := enrollment("", der)
		r.certificate = &d.Certificate
		if _, err := s.issue(ctx, r, key.Public()); err != nil {
			return err
		}
	}
	return nil
}

// h8 presents public certificates with a key that is not theirs: the handshake must fail.
func h8(ctx context.Context, s *Session) error {
	c, err := s.dial(ctx, nil, 0)
	if err != nil {
		return err
	}
	c.Close()
	certs, err := s.caCerts(ctx, "")
	if err != nil {
		return err
	}
	for _, cert := range append(certs, c.state.PeerCertificates[0]) {
		key, err := newKey()
		if err != nil {
			return err
		}
		stolen := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
		der, _, err := newCSR("nobody", nil, nil)
		if err != nil {
			return err
		}
		r := enrollment("", der)
		r.certificate = &stolen
		answer, err := s.do(ctx, r)
		if err == nil {
			return fmt.Errorf("%s: status %d without the key", cert.Subject, answer.status)
		}
	}
	return nil
}
