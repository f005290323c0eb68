// Group D: /csrattrs.

package conformance

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
)

var groupD = []Case{
	{"D1", Must, "no authentication needed; a valid answer", "RFC 7030 sections 4.5, 4.5.2", false, d1},
	{"D2", Must, "media type and encoding", "RFC 7030 section 4.5.2, RFC 8951 section 4", false, d2},
	{"D5", Should, "channel binding is not asked for where it is optional", "RFC 7030 section 4.5.2", false, d5},
	{"D10", Should, "unknown attributes of a request are ignored", "RFC 7030 section 4.5.2", false, d10},
}

// attributes fetches and decodes /csrattrs; nil when the server has none to give.
func (s *Session) attributes(ctx context.Context) ([]attrOrOID, *response, error) {
	r, err := s.get(ctx, path("", "csrattrs"))
	if err != nil {
		return nil, nil, err
	}
	if err := expect(r, http.StatusOK, http.StatusNoContent, http.StatusNotFound); err != nil || r.status != http.StatusOK {
		return nil, r, err
	}
	der, err := decode64(r.body)
	if err != nil {
		return nil, nil, err
	}
	attrs, err := csrAttributes(der)
	return attrs, r, err
}

func d1(ctx context.Context, s *Session) error {
	_, _, err := s.attributes(ctx)
	return err
}

func d2(ctx context.Context, s *Session) error {
	attrs, r, err := s.attributes(ctx)
	if err != nil || r.status != http.StatusOK {
		return err
	}
	if err := mediaType(r, "application/csrattrs", nil); err != nil {
		return err
	}
	for _, a := range attrs { // RFC 9908 section 3.2: at most one extension request, with exactly one value
		if a.OID.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}) && len(a.Values) != 1 {
			return fmt.Errorf("extension request with %d values", len(a.Values))
		}
	}
	return nil
}

func d5(ctx context.Context, s *Session) error {
	attrs, _, err := s.attributes(ctx)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if a.OID.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}) {
			return errors.New("challengePassword is asked for")
		}
	}
	return nil
}

func d10(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	for i := range 50 {
		value, err := asn1.Marshal(fmt.Sprint("value ", i))
		if err != nil {
			return err
		}
		if der, err = withAttribute(der, key, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, i}, value); err != nil {
			return err
		}
	}
	r := enrollment("", der)
	r.code = &code
	_, err = s.issue(ctx, r, key.Public())
	return err
}
