// Group C: additional path segments (labels).

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

var groupC = []Case{
	{"C1", Must, "each label has its own CA", "RFC 7030 section 3.2.2", false, c1},
	{"C2", Must, "all operations under a label", "RFC 7030 section 3.2.2", false, c2},
	{"C3", Must, "the path without a label", "RFC 7030 section 3.2.2", false, c3},
	{"C4", Must, "an operation's name is no label", "RFC 7030 section 3.2.2", false, c4},
	{"C5", Must, "a label may contain an operation's name", "RFC 7030 section 3.2.2", false, c5},
	{"C6", Should, "a label of more than 128 characters", "robustness", false, c6},
	{"C7", Should, "a label of exactly 128 characters", "robustness", false, c7},
	{"C8", Security, "credentials of one label do not count under another", "RFC 7030 section 3.7", false, c8},
	{"C9", Security, "a label is its exact bytes: no unescaping, no cleaning, no folding", "robustness", false, c9},
}

func (s *Session) needLabels() error {
	if s.Target.Labels.A == "" || s.Target.Labels.B == "" {
		return skip("labels A and B")
	}
	return nil
}

func c1(ctx context.Context, s *Session) error {
	if err := s.needLabels(); err != nil {
		return err
	}
	bodies := map[string]bool{}
	for _, label := range []string{"", s.Target.Labels.A, s.Target.Labels.B} {
		certs, err := s.caCerts(ctx, label)
		if err != nil {
			return fmt.Errorf("label %q: %w", label, err)
		}
		var all [][]byte
		for _, c := range certs {
			all = append(all, c.Raw)
		}
		bodies[string(bytes.Join(all, nil))] = true
	}
	if len(bodies) != 3 {
		return fmt.Errorf("%d different answers for 3 labels", len(bodies))
	}
	return nil
}

func c2(ctx context.Context, s *Session) error {
	if err := s.needLabels(); err != nil {
		return err
	}
	label := s.Target.Labels.A
	certs, err := s.caCerts(ctx, label)
	if err != nil {
		return err
	}
	attrs, err := s.get(ctx, path(label, "csrattrs"))
	if err != nil {
		return err
	}
	if err := expect(attrs, http.StatusOK, http.StatusNoContent, http.StatusNotFound); err != nil {
		return err
	}
	device, err := s.enrolled(ctx, label)
	if err != nil {
		return err
	}
	if err := verifyWith(device.Certificate.Leaf, certs); err != nil {
		return fmt.Errorf("enrolled under %s: %w", label, err)
	}
	der, key, err := newCSR(device.Device, nil, nil)
	if err != nil {
		return err
	}
	again := reenrollment(der, &device.Certificate)
	again.path = path(label, "simplereenroll")
	renewed, err := s.issue(ctx, again, key.Public())
	if err != nil {
		return err
	}
	return verifyWith(renewed, certs)
}

func c3(ctx context.Context, s *Session) error { return b1(ctx, s) }

func c4(ctx context.Context, s *Session) error {
	return each([]string{"simpleenroll", "cacerts", "csrattrs", "simplereenroll", "serverkeygen", "fullcmc"}, func(label string) error {
		return notFound(ctx, s, http.MethodGet, path(label, "cacerts"))
	})
}

func c5(ctx context.Context, s *Session) error {
	if s.Target.Labels.LikeOperation == "" {
		return skip("label that contains an operation's name")
	}
	_, err := s.caCerts(ctx, s.Target.Labels.LikeOperation)
	return err
}

func c6(ctx context.Context, s *Session) error {
	return each([]int{129, 1000, 8000}, func(length int) error {
		r, err := s.get(ctx, path(strings.Repeat("a", length), "cacerts"))
		if err != nil {
			return err
		}
		return expect(r, http.StatusNotFound, http.StatusBadRequest, http.StatusRequestURITooLong)
	})
}

func c7(ctx context.Context, s *Session) error {
	if len(s.Target.Labels.Long) != 128 {
		return skip("label of 128 characters")
	}
	_, err := s.caCerts(ctx, s.Target.Labels.Long)
	return err
}

func c8(ctx context.Context, s *Session) error {
	if err := s.needLabels(); err != nil {
		return err
	}
	a, b := s.Target.Labels.A, s.Target.Labels.B
	code, err := s.freshCode(ctx, a)
	if err != nil {
		return err
	}
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	wrong, right := enrollment(b, der), enrollment(a, der)
	wrong.code, right.code = &code, &code
	if err := s.refused(ctx, wrong); err != nil {
		return fmt.Errorf("code of the other label: %w", err)
	}
	if _, err := s.issue(ctx, right, key.Public()); err != nil {
		return fmt.Errorf("the refused attempt used the code up: %w", err)
	}
	device, err := s.enrolled(ctx, a)
	if err != nil {
		return err
	}
	return each([]string{"simpleenroll", "simplereenroll"}, func(operation string) error {
		return each([]string{b, ""}, func(label string) error {
			der, _, err := newCSR(device.Device, nil, nil)
			if err != nil {
				return err
			}
			r := reenrollment(der, &device.Certificate)
			r.path = path(label, operation)
			return s.refused(ctx, r)
		})
	})
}

func c9(ctx context.Context, s *Session) error {
	paths := []string{
		"/.well-known/est/default/cacerts", "/.well-known/est/%64efault/cacerts", "/.well-known/est/%63acerts", "/.well-known/est/./cacerts",
		"/.well-known/est/../est/cacerts", "/.well-known/est//cacerts", "//.well-known/est/cacerts", "/.well-known/est/a%2fb/cacerts",
		"/.well-known/est/%2e%2e/cacerts", "/.well-known/est/%00/cacerts", "/.WELL-KNOWN/est/cacerts", "/.well-known/est/CACERTS", "/.well-known/est/a/b/cacerts",
		"/.well-known/est/no-such-label/cacerts", "/.well-known/est/%20/cacerts",
	}
	if a := s.Target.Labels.A; a != "" {
		paths = append(paths, path(fmt.Sprintf("%%%02x%s", a[0], a[1:]), "cacerts"), path(a+"/", "cacerts"), path(a+"%00", "cacerts"), path(a+"%20", "cacerts"))
		if swapped := strings.ToUpper(a); swapped != a {
			paths = append(paths, path(swapped, "cacerts"))
		}
	}
	var failed error
	for _, p := range paths {
		r, err := s.do(ctx, request{method: http.MethodGet, path: p})
		if err == nil {
			err = expect(r, http.StatusNotFound, http.StatusBadRequest)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}
