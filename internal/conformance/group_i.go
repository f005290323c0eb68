// Group I: linking identity and proof-of-possession where it is optional.

package conformance

import (
	"context"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"net/http"
)

var groupI = []Case{
	{"I1", Must, "the right tls-unique on TLS 1.2", "RFC 7030 section 3.5", false, i1},
	{"I2", Must, "a wrong challengePassword", "RFC 7030 section 3.5", false, i2},
	{"I7", Security, "TLS 1.3: tls-exporter and nothing else", "RFC 9266 section 2", false, i7},
}

var oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

// boundEnrollment enrolls with challengePassword made from the connection.
func (s *Session) boundEnrollment(ctx context.Context, version uint16, value func(tls.ConnectionState) ([]byte, error)) (*response, Code, error) {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return nil, code, err
	}
	c, err := s.dial(ctx, nil, version)
	if err != nil {
		return nil, code, err
	}
	defer c.Close()
	if c.state.Version != version {
		return nil, code, skip(tls.VersionName(version))
	}
	binding, err := value(c.state)
	if err != nil {
		return nil, code, err
	}
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return nil, code, err
	}
	text, err := asn1.MarshalWithParams(base64.StdEncoding.EncodeToString(binding), "utf8")
	if err != nil {
		return nil, code, err
	}
	if der, err = withAttribute(der, key, oidChallengePassword, text); err != nil {
		return nil, code, err
	}
	r := enrollment("", der)
	r.code = &code
	answer, err := s.doOn(c, r)
	return answer, code, err
}

func tlsUnique(state tls.ConnectionState) ([]byte, error) {
	if len(state.TLSUnique) == 0 {
		return nil, errors.New("no tls-unique on this connection")
	}
	return state.TLSUnique, nil
}

func tlsExporter(state tls.ConnectionState) ([]byte, error) {
	return state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
}

func nonsense(tls.ConnectionState) ([]byte, error) { return []byte("not this one"), nil }

func nothing(tls.ConnectionState) ([]byte, error) { return nil, nil }

func i1(ctx context.Context, s *Session) error {
	answer, _, err := s.boundEnrollment(ctx, tls.VersionTLS12, tlsUnique)
	if err != nil {
		return err
	}
	return expect(answer, http.StatusOK)
}

// bindingRefused wants a 4xx and the code to be good afterwards.
func (s *Session) bindingRefused(ctx context.Context, version uint16, value func(tls.ConnectionState) ([]byte, error)) error {
	answer, code, err := s.boundEnrollment(ctx, version, value)
	if err != nil {
		return err
	}
	if err := expect4xx(answer); err != nil {
		return err
	}
	return s.stillGood(ctx, code)
}

func i2(ctx context.Context, s *Session) error {
	return errors.Join(s.bindingRefused(ctx, tls.VersionTLS12, nonsense), s.bindingRefused(ctx, tls.VersionTLS12, nothing))
}

func i7(ctx context.Context, s *Session) error {
	answer, _, err := s.boundEnrollment(ctx, tls.VersionTLS13, tlsExporter)
	if err != nil {
		return err
	}
	if answer.status != http.StatusOK {
		if err := expect4xx(answer); err != nil {
			return err
		}
	}
	return errors.Join(s.bindingRefused(ctx, tls.VersionTLS13, nonsense), s.bindingRefused(ctx, tls.VersionTLS13, nothing))
}
