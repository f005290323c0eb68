// Group E: /simpleenroll.

package conformance

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

var groupE = []Case{
	{"E1", Must, "RSA-2048", "RFC 7030 section 4.2.3", false, e1},
	{"E2", Must, "exactly one certificate, for the request's key", "RFC 7030 section 4.2.3", false, e2},
	{"E3", Must, "ECDSA P-256 and P-384", "interoperability", false, e3},
	{"E4", Should, "Ed25519: by policy, never 5xx", "robustness", false, e4},
	{"E5", Security, "DSA, RSA-1024, MD5 and SHA-1 are refused", "policy", false, e5},
	{"E6", Security, "a request for another identity", "RFC 7030 sections 3.7, 4.2", false, e6},
	{"E7", Must, "a wrong signature", "RFC 7030 section 3.4", false, e7},
	{"E8", Must, "an empty body", "RFC 7030 section 4.2.1", false, e8},
	{"E9", Must, "broken base64", "RFC 4648 section 3.3", false, e9},
	{"E10", Should, "bare DER", "RFC 8951 section 3", false, e10},
	{"E11", Should, "PEM", "robustness", false, e11},
	{"E12", Security, "a body of 1 MiB", "RFC 9110 section 15.5.14", false, e12},
	{"E13", Must, "no Content-Type", "RFC 7030 section 4.2.1", false, e13},
	{"E14", Must, "other Content-Types", "RFC 7030 section 4.2.1", false, e14},
	{"E15", Should, "Content-Encoding", "RFC 9110 section 8.4", false, e15},
	{"E16", Should, "the same request twice", "RFC 7030 section 4.2", false, e16},
	{"E17", May, "ChangeSubjectName is not misapplied", "RFC 6402 section 2.8", false, e17},
}

// enrollWith enrolls a fresh device by code with key and edit, and returns the answer.
func (s *Session) enrollWith(ctx context.Context, key crypto.Signer, edit func(*x509.CertificateRequest)) (*response, Code, error) {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return nil, code, err
	}
	der, _, err := newCSR(code.Device, key, edit)
	if err != nil {
		return nil, code, err
	}
	r := enrollment("", der)
	r.code = &code
	answer, err := s.do(ctx, r)
	return answer, code, err
}

func (s *Session) issuedFor(ctx context.Context, key crypto.Signer) error {
	answer, code, err := s.enrollWith(ctx, key, nil)
	if err != nil {
		return err
	}
	if err := expect(answer, http.StatusOK); err != nil {
		return err
	}
	cert, err := issuedCertificate(answer, key.Public())
	if err != nil {
		return err
	}
	if cert.Subject.CommonName != code.Device || cert.IsCA {
		return fmt.Errorf("issued to %q (CA: %t), want %q", cert.Subject.CommonName, cert.IsCA, code.Device)
	}
	return nil
}

func e1(ctx context.Context, s *Session) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	return s.issuedFor(ctx, key)
}

func e2(ctx context.Context, s *Session) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	return s.issuedFor(ctx, key)
}

func e3(ctx context.Context, s *Session) error {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			return err
		}
		if err := s.issuedFor(ctx, key); err != nil {
			return fmt.Errorf("%s: %w", curve.Params().Name, err)
		}
	}
	return nil
}

func e4(ctx context.Context, s *Session) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	answer, _, err := s.enrollWith(ctx, key, nil)
	if err != nil {
		return err
	}
	return expect(answer, http.StatusOK, http.StatusBadRequest)
}

// refusedCSR wants each request, sent with a good code, to be refused with 400, and the code to be good afterwards.
func (s *Session) refusedCSR(ctx context.Context, make map[string]func(name string) ([]byte, error)) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	for what, f := range make {
		der, err := f(code.Device)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		r := enrollment("", der)
		r.code = &code
		answer, err := s.do(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := errors.Join(expect(answer, http.StatusBadRequest), answer.readableError()); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return s.stillGood(ctx, code)
}

// stillGood enrolls with code.
func (s *Session) stillGood(ctx context.Context, code Code) error {
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.code = &code
	if _, err := s.issue(ctx, r, key.Public()); err != nil {
		return fmt.Errorf("a refused request used the code up: %w", err)
	}
	return nil
}

func e5(ctx context.Context, s *Session) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	old := func(hash crypto.Hash) func(string) ([]byte, error) {
		return func(name string) ([]byte, error) {
			der, _, err := newCSR(name, key, nil)
			if err != nil {
				return nil, err
			}
			return resigned(der, key, hash)
		}
	}
	return s.refusedCSR(ctx, map[string]func(string) ([]byte, error){
		"DSA":   dsaCSR,
		"MD5":   old(crypto.MD5),
		"SHA-1": old(crypto.SHA1),
		"RSA-1024": func(name string) ([]byte, error) {
			weak, err := rsa.GenerateKey(rand.Reader, 1024)
			if err != nil {
				return nil, err
			}
			der, _, err := newCSR(name, weak, nil)
			return der, err
		},
		"P-224": func(name string) ([]byte, error) {
			weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
			if err != nil {
				return nil, err
			}
			der, _, err := newCSR(name, weak, nil)
			return der, err
		},
	})
}

func e6(ctx context.Context, s *Session) error {
	foreign := map[string]func(*x509.CertificateRequest){
		"common name":     func(r *x509.CertificateRequest) { r.Subject.CommonName = "somebody-else" },
		"DNS name":        func(r *x509.CertificateRequest) { r.DNSNames = []string{"somebody-else.example"} },
		"IP address":      func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} },
		"mapped address":  func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.ParseIP("::ffff:192.0.2.1")} },
		"mail address":    func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@example.org"} },
		"URI":             func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "urn", Opaque: "somebody-else"}} },
		"organization":    func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"system:masters"} },
		"name in a name":  func(r *x509.CertificateRequest) { r.Subject.CommonName += ",CN=admin" },
		"name with a NUL": func(r *x509.CertificateRequest) { r.Subject.CommonName += "\x00admin" },
		"upper-case name": func(r *x509.CertificateRequest) { r.Subject.CommonName = strings.ToUpper(r.Subject.CommonName) },
		"certificate of a CA": func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
		},
	}
	for what, edit := range foreign {
		key, err := newKey()
		if err != nil {
			return err
		}
		answer, code, err := s.enrollWith(ctx, key, edit)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if answer.status != http.StatusOK {
			if err := expect4xx(answer); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if err := s.stillGood(ctx, code); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			continue
		}
		cert, err := issuedCertificate(answer, key.Public())
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if cert.Subject.CommonName != code.Device || cert.IsCA || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses)+len(cert.URIs)+len(cert.Subject.Organization) > 0 {
			return fmt.Errorf("%s: issued with %v %v %v %v", what, cert.Subject, cert.DNSNames, cert.IPAddresses, cert.URIs)
		}
	}
	return nil
}

func e7(ctx context.Context, s *Session) error {
	return s.refusedCSR(ctx, map[string]func(string) ([]byte, error){"signature": brokenCSR})
}

func brokenCSR(name string) ([]byte, error) {
	der, _, err := newCSR(name, nil, nil)
	if err != nil {
		return nil, err
	}
	return brokenSignature(der), nil
}

// refusedBody wants a POST of body with a good code to be refused with one of statuses.
func (s *Session) refusedBody(ctx context.Context, edit func(r *request, der []byte), statuses ...int) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	der, _, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.code = &code
	edit(&r, der)
	answer, err := s.do(ctx, r)
	if err != nil {
		return err
	}
	if err := expect(answer, statuses...); err != nil || answer.status == http.StatusOK {
		return err
	}
	return errors.Join(answer.readableError(), s.stillGood(ctx, code))
}

func e8(ctx context.Context, s *Session) error {
	return s.refusedBody(ctx, func(r *request, _ []byte) { r.body = nil }, http.StatusBadRequest)
}

func e9(ctx context.Context, s *Session) error {
	for what, change := range map[string]func(text string) string{
		"truncated":             func(text string) string { return text[:len(text)-5] },
		"illegal character":     func(text string) string { return "!" + text[1:] },
		"padding in the middle": func(text string) string { return text[:40] + "=" + text[40:] },
	} {
		err := s.refusedBody(ctx, func(r *request, der []byte) { r.body = []byte(change(string(encode64(der)))) }, http.StatusBadRequest)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

func e10(ctx context.Context, s *Session) error {
	return s.refusedBody(ctx, func(r *request, der []byte) { r.body = der }, http.StatusBadRequest, http.StatusOK)
}

func e11(ctx context.Context, s *Session) error {
	return s.refusedBody(ctx, func(r *request, der []byte) { r.body = pemCSR(der) }, http.StatusBadRequest, http.StatusOK)
}

func e12(ctx context.Context, s *Session) error {
	return each([]bool{false, true}, func(chunked bool) error {
		return s.refusedBody(ctx, func(r *request, _ []byte) {
			r.body, r.chunked = bytes.Repeat([]byte("A"), 1<<20), chunked
		}, http.StatusRequestEntityTooLarge, http.StatusBadRequest)
	})
}

func e13(ctx context.Context, s *Session) error {
	return s.refusedBody(ctx, func(r *request, _ []byte) { r.contentType = "" }, http.StatusBadRequest, http.StatusUnsupportedMediaType)
}

func e14(ctx context.Context, s *Session) error {
	return each([]string{"text/plain", "application/pkcs10foo", "application/pkcs7-mime", "application/x-www-form-urlencoded"}, func(contentType string) error {
		return s.refusedBody(ctx, func(r *request, _ []byte) { r.contentType = contentType }, http.StatusBadRequest, http.StatusUnsupportedMediaType)
	})
}

func e15(ctx context.Context, s *Session) error {
	return s.refusedBody(ctx, func(r *request, _ []byte) {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write(r.body)
		w.Close()
		r.body, r.header = b.Bytes(), []string{"Content-Encoding: gzip"}
	}, http.StatusBadRequest, http.StatusUnsupportedMediaType)
}

func e16(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	r := enrollment("", der)
	r.code = &code
	if _, err := s.issue(ctx, r, key.Public()); err != nil {
		return err
	}
	second, err := s.do(ctx, r)
	if err != nil {
		return err
	}
	if second.status == http.StatusOK {
		_, err := issuedCertificate(second, key.Public())
		return err
	}
	return expect4xx(second)
}

func e17(ctx context.Context, s *Session) error {
	code, err := s.freshCode(ctx, "")
	if err != nil {
		return err
	}
	der, key, err := newCSR(code.Device, nil, nil)
	if err != nil {
		return err
	}
	subject, err := asn1.Marshal(pkix.Name{CommonName: "somebody-else"}.ToRDNSequence())
	if err != nil {
		return err
	}
	value, err := asn1.Marshal(struct{ Subject asn1.RawValue }{asn1.RawValue{FullBytes: subject}})
	if err != nil {
		return err
	}
	if der, err = withAttribute(der, key, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 7, 36}, value); err != nil {
		return err
	}
	r := enrollment("", der)
	r.code = &code
	answer, err := s.do(ctx, r)
	if err != nil {
		return err
	}
	if answer.status != http.StatusOK {
		return expect4xx(answer)
	}
	return errors.New("a certificate was issued in spite of ChangeSubjectName")
}
