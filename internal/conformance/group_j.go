// Group J: /simplereenroll.

package conformance

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"
	"time"
)

var groupJ = []Case{
	{"J1", Must, "same name, same key: renewed with a new serial number", "RFC 7030 section 4.2.2", false, j1},
	{"J2", Must, "same name, new key", "RFC 7030 section 4.2.2", false, j2},
	{"J3", Must, "another subject", "RFC 7030 section 4.2.2", false, j3},
	{"J4", Should, "odd subjects: consistently, never 5xx", "RFC 7030 section 4.2.2", false, j4},
	{"J5", Must, "no client certificate", "RFC 7030 sections 2.3, 4.2", false, j5},
	{"J6", Should, "a certificate of somebody else as TLS identity", "RFC 7030 section 4.2.2", false, j6},
	{"J7", Must, "a broken request", "RFC 7030 section 3.4", false, j7},
	{"J8", Should, "a certificate that was renewed before", "RFC 7030 section 3.7", false, j8},
	{"J10", Should, "a wrong code beside a valid certificate: by policy, never 5xx", "RFC 7030 section 3.2.3", false, j10},
}

// renew re-enrolls device with csr's edit and a new key, and returns its new identity.
func (s *Session) renew(ctx context.Context, device Identity, edit func(*x509.CertificateRequest)) (Identity, error) {
	der, key, err := newCSR(device.Device, nil, edit)
	if err != nil {
		return Identity{}, err
	}
	cert, err := s.issue(ctx, reenrollment(der, &device.Certificate), key.Public())
	if err != nil {
		return Identity{}, err
	}
	return Identity{Device: device.Device, Certificate: identity(cert, key)}, nil
}

func checkRenewed(old, renewed *x509.Certificate) error {
	switch {
	case renewed.SerialNumber.Cmp(old.SerialNumber) == 0:
		return errors.New("the serial number is the old one")
	case renewed.Subject.String() != old.Subject.String():
		return fmt.Errorf("the subject changed from %q to %q", old.Subject, renewed.Subject)
	}
	return nil
}

func j1(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	key, err := keyOf(device)
	if err != nil {
		return err
	}
	der, _, err := newCSR(device.Device, key, nil)
	if err != nil {
		return err
	}
	cert, err := s.issue(ctx, reenrollment(der, &device.Certificate), key.Public())
	if err != nil {
		return err
	}
	return checkRenewed(device.Certificate.Leaf, cert)
}

func j2(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	renewed, err := s.renew(ctx, device, nil)
	if err != nil {
		return err
	}
	return checkRenewed(device.Certificate.Leaf, renewed.Certificate.Leaf)
}

func j3(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	return each([]string{"somebody-else", device.Device + "x", device.Device + ",CN=admin"}, func(name string) error {
		der, _, err := newCSR(name, nil, nil)
		if err != nil {
			return err
		}
		return s.refused(ctx, reenrollment(der, &device.Certificate))
	})
}

func j4(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	for what, edit := range map[string]func(*x509.CertificateRequest){
		"empty subject": func(r *x509.CertificateRequest) { r.Subject = pkix.Name{} },
		"empty name": func(r *x509.CertificateRequest) {
			r.Subject.CommonName, r.Subject.ExtraNames = "", []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: ""}}
		},
		"more in the name": func(r *x509.CertificateRequest) { r.Subject.OrganizationalUnit = []string{"b", "a"} },
		"empty SAN": func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 17}, Value: []byte{0x30, 0}}}
		},
	} {
		der, key, err := newCSR(device.Device, nil, edit)
		if err != nil {
			return err
		}
		answer, err := s.do(ctx, reenrollment(der, &device.Certificate))
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if answer.status != http.StatusOK {
			err = expect4xx(answer)
		} else if cert, e := issuedCertificate(answer, key.Public()); e != nil {
			err = e
		} else {
			err = checkRenewed(device.Certificate.Leaf, cert)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

func j5(ctx context.Context, s *Session) error {
	der, _, err := newCSR("nobody", nil, nil)
	if err != nil {
		return err
	}
	answer, err := s.do(ctx, reenrollment(der, nil))
	if err != nil {
		return err
	}
	return errors.Join(expect(answer, http.StatusUnauthorized, http.StatusForbidden), answer.readableError())
}

func j6(ctx context.Context, s *Session) error {
	victim, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	other, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	der, _, err := newCSR(victim.Device, nil, nil)
	if err != nil {
		return err
	}
	if err := s.refused(ctx, reenrollment(der, &other.Certificate)); err != nil {
		return err
	}
	if s.Target.Birth == nil {
		return nil
	}
	birth, err := s.freshBirth(ctx)
	if err != nil {
		return err
	}
	der, _, err = newCSR(birth.Device, nil, nil)
	if err != nil {
		return err
	}
	return s.refused(ctx, reenrollment(der, &birth.Certificate))
}

func j7(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	der, err := brokenCSR(device.Device)
	if err != nil {
		return err
	}
	answer, err := s.do(ctx, reenrollment(der, &device.Certificate))
	if err != nil {
		return err
	}
	return errors.Join(expect(answer, http.StatusBadRequest), answer.readableError())
}

// j8: the old certificate may renew until the new one has authenticated, or 7 days.
func j8(ctx context.Context, s *Session) error {
	old, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	if _, err := s.renew(ctx, old, nil); err != nil {
		return err
	}
	second, err := s.renew(ctx, old, nil)
	if err != nil {
		return fmt.Errorf("the old certificate, before the new one was used: %w", err)
	}
	if _, err := s.renew(ctx, second, nil); err != nil {
		return err
	}
	der, _, err := newCSR(old.Device, nil, nil)
	if err != nil {
		return err
	}
	if err := s.refused(ctx, reenrollment(der, &old.Certificate)); err != nil {
		return fmt.Errorf("the old certificate, after the new one was used: %w", err)
	}
	if s.Target.Pass == nil {
		return nil
	}
	lone, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	if _, err := s.renew(ctx, lone, nil); err != nil {
		return err
	}
	if err := s.Target.Pass(ctx, 8*24*time.Hour); err != nil {
		return err
	}
	if der, _, err = newCSR(lone.Device, nil, nil); err != nil {
		return err
	}
	if err := s.refused(ctx, reenrollment(der, &lone.Certificate)); err != nil {
		return fmt.Errorf("the old certificate, after 8 days: %w", err)
	}
	return nil
}

func j10(ctx context.Context, s *Session) error {
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	der, key, err := newCSR(device.Device, nil, nil)
	if err != nil {
		return err
	}
	r := reenrollment(der, &device.Certificate)
	r.code = &Code{device.Device, "wrong"}
	answer, err := s.do(ctx, r)
	if err != nil {
		return err
	}
	if answer.status == http.StatusOK {
		_, err := issuedCertificate(answer, key.Public())
		return err
	}
	return expect4xx(answer)
}
