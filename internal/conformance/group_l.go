// Groups L and M: optional operations that are off.

package conformance

import (
	"context"
	"net/http"
)

var groupL = []Case{
	{"L1", Should, "/serverkeygen when it is off", "RFC 7030 section 4.4", false, l1},
	{"M1", Must, "/fullcmc when there is none", "RFC 7030 section 4.3.2", false, m1},
}

func l1(ctx context.Context, s *Session) error {
	return s.notOffered(ctx, "serverkeygen", typePKCS10)
}

func m1(ctx context.Context, s *Session) error {
	return s.notOffered(ctx, "fullcmc", "application/pkcs7-mime")
}

func (s *Session) notOffered(ctx context.Context, operation, contentType string) error {
	der, _, err := newCSR("nobody", nil, nil)
	if err != nil {
		return err
	}
	answer, err := s.do(ctx, request{method: http.MethodPost, path: path("", operation), contentType: contentType, body: encode64(der)})
	if err != nil {
		return err
	}
	if err := expect(answer, http.StatusNotFound, http.StatusNotImplemented, http.StatusForbidden); err != nil {
		return err
	}
	return answer.readableError()
}
