// Group B: /cacerts.

package conformance

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
)

var groupB = []Case{
	{"B1", Must, "no authentication needed", "RFC 7030 sections 4.1.2, 4.1.3", false, b1},
	{"B2", Must, "media type", "RFC 7030 section 4.1.3", false, b2},
	{"B3", Must, "certs-only CMS in DER", "RFC 7030 section 4.1.3, RFC 5272 section 4.1", false, b3},
	{"B4", Must, "the root and every intermediate", "RFC 7030 section 4.1.3", false, b4},
	{"B5", Should, "lines of at most 76 characters, final newline", "peers cannot read long lines", false, b5},
	{"B6", Should, "Accept is not looked at", "RFC 7030 defines no 406", false, b6},
	{"B7", Should, "a bad client certificate does no harm", "RFC 7030 section 4.1.2", false, b7},
	{"B8", Should, "the four certificates of a root key rollover", "RFC 7030 section 4.1.3, RFC 4210 section 4.4", false, b8},
	{"B9", Must, "a new CA issues, and is listed by then", "RFC 7030 section 4.1.3", false, b9},
}

func b1(ctx context.Context, s *Session) error {
	r, err := s.get(ctx, path("", "cacerts"))
	if err != nil {
		return err
	}
	return expect(r, http.StatusOK)
}

func b2(ctx context.Context, s *Session) error {
	r, err := s.get(ctx, path("", "cacerts"))
	if err != nil {
		return err
	}
	if err := mediaType(r, "application/pkcs7-mime", nil); err != nil {
		return err
	}
	head, err := s.do(ctx, request{method: http.MethodHead, path: path("", "cacerts")})
	if err != nil {
		return err
	}
	if head.status != http.StatusOK || head.header.Get("Content-Length") != fmt.Sprint(len(r.body)) {
		return fmt.Errorf("HEAD: status %d, Content-Length %q, want %d", head.status, head.header.Get("Content-Length"), len(r.body))
	}
	return nil
}

func b3(ctx context.Context, s *Session) error {
	_, err := s.caCerts(ctx, "")
	return err
}

func b4(ctx context.Context, s *Session) error {
	certs, err := s.caCerts(ctx, "")
	if err != nil {
		return err
	}
	roots := 0
	for _, c := range certs {
		if bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil {
			roots++
		}
	}
	if roots == 0 {
		return errors.New("no self-signed root in the answer")
	}
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	return verifyWith(device.Certificate.Leaf, certs)
}

func b5(ctx context.Context, s *Session) error {
	r, err := s.get(ctx, path("", "cacerts"))
	if err != nil {
		return err
	}
	_, err = decode64(r.body)
	return err
}

func b6(ctx context.Context, s *Session) error {
	r, err := s.do(ctx, request{method: http.MethodGet, path: path("", "cacerts"), header: []string{"Accept: text/html"}})
	if err != nil {
		return err
	}
	return expect(r, http.StatusOK)
}

func b7(ctx context.Context, s *Session) error {
	bad, err := stranger("stranger", true)
	if err != nil {
		return err
	}
	c, err := s.dial(ctx, &bad, 0)
	if err != nil {
		return nil // refused in the handshake
	}
	defer c.Close()
	r, err := s.doOn(c, request{method: http.MethodGet, path: path("", "cacerts")})
	if err != nil {
		return err
	}
	return expect(r, http.StatusOK)
}

func b8(ctx context.Context, s *Session) error {
	if s.Target.RollRoot == nil {
		return skip("way to roll its root over")
	}
	before, err := s.caCerts(ctx, "")
	if err != nil {
		return err
	}
	if err := s.Target.RollRoot(ctx); err != nil {
		return err
	}
	after, err := s.caCerts(ctx, "")
	if err != nil {
		return err
	}
	var oldWithOld, newWithNew *x509.Certificate
	for _, c := range after {
		if c.CheckSignatureFrom(c) != nil {
			continue
		}
		if slices.ContainsFunc(before, c.Equal) {
			oldWithOld = c
		} else {
			newWithNew = c
		}
	}
	if oldWithOld == nil || newWithNew == nil {
		return fmt.Errorf("the old root is there: %t, the new root is there: %t", oldWithOld != nil, newWithNew != nil)
	}
	return errors.Join(cross("OldWithNew", after, oldWithOld, newWithNew), cross("NewWithOld", after, newWithNew, oldWithOld))
}

// cross looks for subject's name and key, certified by issuer, for no longer than either lives.
func cross(name string, certs []*x509.Certificate, subject, issuer *x509.Certificate) error {
	for _, c := range certs {
		if !bytes.Equal(c.RawSubject, subject.RawSubject) || !bytes.Equal(c.RawSubjectPublicKeyInfo, subject.RawSubjectPublicKeyInfo) || c.CheckSignatureFrom(issuer) != nil {
			continue
		}
		if c.NotAfter.After(subject.NotAfter) || c.NotAfter.After(issuer.NotAfter) {
			return fmt.Errorf("%s is valid until %v, longer than one of the roots", name, c.NotAfter)
		}
		return nil
	}
	return fmt.Errorf("there is no %s", name)
}

func b9(ctx context.Context, s *Session) error {
	if s.Target.RollIssuer == nil {
		return skip("way to roll its issuing CA over")
	}
	before, err := s.caCerts(ctx, "")
	if err != nil {
		return err
	}
	if err := s.Target.RollIssuer(ctx); err != nil {
		return err
	}
	device, err := s.enrolled(ctx, "")
	if err != nil {
		return err
	}
	listed, err := s.caCerts(ctx, "")
	if err != nil {
		return err
	}
	leaf := device.Certificate.Leaf
	issued := func(c *x509.Certificate) bool { return leaf.CheckSignatureFrom(c) == nil }
	if slices.ContainsFunc(before, issued) {
		return errors.New("the old CA still issues")
	}
	if !slices.ContainsFunc(listed, issued) {
		return errors.New("/cacerts does not list the CA that has just issued")
	}
	return verifyWith(leaf, listed)
}
