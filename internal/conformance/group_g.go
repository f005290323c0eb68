// Group G: HTTP authentication.

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

var groupG = []Case{
	{"G1", Must, "no credential: 401 with a challenge", "RFC 7030 section 3.2.3", false, g1},
	{"G2", Should, "the challenge's spelling and constant realm", "peers compare case-sensitively", false, g2},
	{"G3", Must, "a good code over HTTP Basic", "RFC 7030 section 3.2.3", false, g3},
	{"G4", Must, "wrong code and unknown device: one and the same 401", "RFC 9110 section 15.5.2", false, g4},
	{"G5", Security, "an empty password", "RFC 7617", false, g5},
	{"G13", Should, "a code after its use", "RFC 7030 section 6", false, g13},
	{"G14", Security, "malformed and repeated Authorization", "RFC 7617", false, g14},
	{"G15", Security, "identities in headers do not count", "proxies' headers", false, g15},
}

// unauthorized does r and wants a 401 with a challenge.
func (s *Session) unauthorized(ctx context.Context, r request) (*response, error) {
	answer, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := expect(answer, http.StatusUnauthorized); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(answer.header.Get("WWW-Authenticate"), "Basic realm=") {
		return nil, fmt.Errorf("%s: WWW-Authenticate is %q", r.path, answer.header.Get("WWW-Authenticate"))
	}
	return answer, answer.readableError()
}

func g1(ctx context.Context, s *Session) error {
	der, _, err := newCSR("nobody", nil, nil)
	if err != nil {
		return err
	}
	_, err = s.unauthorized(ctx, enrollment("", der))
	return err
}

func g2(ctx context.Context, s *Session) error {
	der, _, err := newCSR("nobody", nil, nil)
	if err != nil {
		return err
	}
	answer, err := s.unauthorized(ctx, enrollment("", der))
	if err != nil {
		return err
	}
	if !strings.Contains(answer.head, "\r\nWWW-Authenticate: ") {
		return errors.New("the header is not spelled WWW-Authenticate")
	}
	host, _ := s.host()
	name, _, _ := strings.Cut(host, ":")
	if strings.Contains(answer.header.Get("WWW-Authenticate"), name) {
		return fmt.Errorf("the realm names the host: %s", answer.header.Get("WWW-Authenticate"))
	}
	return nil
}

func g3(ctx context.Context, s *Session) error {
	_, err := s.enrolled(ctx, "")
	return err
}

// wrongCodes are refused alike; none of them uses code up.
func wrongCodes(code Code) []Code {
	other := code.Code[:len(code.Code)-1] + "x"
	if other == code.Code {
		other = code.Code[:len(code.Code)-1] + "y"
	}
	return []Code{
		{code.Device, other}, {"no-such-device", code.Code}, {"no-such-device", "wrong"}, {code.Device, code.Code + " "}, {code.Device, " " + code.Code},
		{code.Device, code.Code + "x"}, {code.Device, code.Code[1:]}, {"", code.Code}, {"../" + code.Device, code.Code}, {code.Device + "\x00", code.Code},
	}
}

func g4(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	der, _, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	var first []byte
	for _, wrong := range wrongCodes(code) {
		r := enrollment("", der)
		r.code = &wrong
		answer, err := s.unauthorized(ctx, r)
		if err != nil {
			return fmt.Errorf("%q: %w", wrong.Device, err)
		}
		if first == nil {
			first = answer.body
		}
		if !bytes.Equal(first, answer.body) {
			return fmt.Errorf("two texts: %q and %q", first, answer.body)
		}
	}
	return s.stillGood(ctx, code)
}

func g5(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	der, _, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.code = &Code{Device: code.Device}
	if _, err := s.unauthorized(ctx, r); err != nil {
		return err
	}
	return s.stillGood(ctx, code)
}

func g13(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	if err := s.stillGood(ctx, code); err != nil {
		return err
	}
	der, _, err := newCSR(code.Device, nil, nil) // another key
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.code = &code
	_, err = s.unauthorized(ctx, r)
	return err
}

func g14(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	der, _, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	err = each([][]string{
		{"Authorization: Basic"}, {"Authorization: Basic !!!!"}, {"Authorization: Basic bm9jb2xvbg=="}, {"Authorization: Bearer abc"},
		{"Authorization: Digest username=\"a\""}, {"Authorization: Basic YTpi", "Authorization: Basic YTpi"}, {"Authorization: "},
	}, func(header []string) error {
		r := enrollment("", der)
		r.header = header
		_, err := s.unauthorized(ctx, r)
		return err
	})
	return errors.Join(err, s.stillGood(ctx, code))
}

func g15(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	pemText := strings.ReplaceAll(string(pemCertificate(device.Certificate.Leaf)), "\n", "%0A")
	der, _, err := newCSR(device.Device, nil, nil)
	if err != nil {
		return err
	}
	return each([]string{
		"X-Forwarded-Client-Cert", "X-SSL-Client-Cert", "SSL-Client-Cert", "X-Client-Cert", "X-Amzn-Mtls-Clientcert", "X-Client-Certificate",
		"X_SSL_Client_Cert", "X-SSL-Client-Verify", "X-Forwarded-User", "X-Remote-User", "X-ARR-ClientCert", "Client-Cert",
	}, func(name string) error {
		return each([]string{"simpleenroll", "simplereenroll"}, func(operation string) error {
			r := enrollment("", der)
			r.path, r.header = path("", operation), []string{name + ": " + pemText}
			_, err := s.unauthorized(ctx, r)
			return err
		})
	})
}
