// The way through github.com/globalsign/est. It decodes the request once more, verifies its signature, calls back with
// the parsed request, and encodes what comes of it. It gets a request made for it: a clean header, a body that is plain base64,
// and always the path /simpleenroll for an enrollment, because its own check of a renewal trusts a cache. What it
// writes goes to a buffer; whatever it says about an error is dropped in favour of the typed error that the callback kept.

package front

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/globalsign/est"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/telemetry"
)

// estCA implements est.CA. Its methods find their exchange in the context.
type estCA struct{ front *Front }

// CACerts implements est.CA.
func (c estCA) CACerts(ctx context.Context, _ string, _ *http.Request) ([]*x509.Certificate, error) {
	x := exchangeFrom(ctx)
	var certs []*x509.Certificate
	certs, x.err = c.front.trustChain(ctx, x)
	return certs, x.err
}

// CSRAttrs implements est.CA.
func (c estCA) CSRAttrs(ctx context.Context, _ string, _ *http.Request) (est.CSRAttrs, error) {
	x := exchangeFrom(ctx)
	var attrs est.CSRAttrs
	attrs, x.err = c.front.wantedAttributes(ctx, x)
	return attrs, x.err
}

// Enroll implements est.CA; the request's signature has been verified.
func (c estCA) Enroll(ctx context.Context, csr *x509.CertificateRequest, _ string, _ *http.Request) (*x509.Certificate, error) {
	x := exchangeFrom(ctx)
	if x.err = c.front.issue(ctx, x, csr); x.err != nil {
		return nil, x.err
	}
	return &x509.Certificate{Raw: x.issued.DER}, nil
}

var errNotCalled = errors.New("an operation of the EST encoder that is never routed")

// Reenroll implements est.CA and is never called.
func (c estCA) Reenroll(context.Context, *x509.Certificate, *x509.CertificateRequest, string, *http.Request) (*x509.Certificate, error) {
	return nil, errNotCalled
}

// ServerKeyGen implements est.CA and is never called.
func (c estCA) ServerKeyGen(context.Context, *x509.CertificateRequest, string, *http.Request) (*x509.Certificate, []byte, error) {
	return nil, nil, errNotCalled
}

// TPMEnroll implements est.CA and is never called.
func (c estCA) TPMEnroll(context.Context, *x509.CertificateRequest, []*x509.Certificate, []byte, []byte, string, *http.Request) ([]byte, []byte, []byte, error) {
	return nil, nil, nil, errNotCalled
}

// encode runs the encoder's operation on the CSR der (nil for a GET) and returns its answer if it is a good one.
func (f *Front) encode(ctx context.Context, x *exchange, operation, contentType string, der []byte) (answer, error) {
	method, header := http.MethodGet, http.Header{}
	var body io.ReadCloser = http.NoBody
	if der != nil {
		method, header["Content-Type"] = http.MethodPost, []string{wire.TypePKCS10}
		body = io.NopCloser(bytes.NewReader(base64.StdEncoding.AppendEncode(nil, der)))
	}
	inner := &http.Request{
		Method: method, URL: &url.URL{Path: wire.Path("", operation)}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: body, ContentLength: -1, Host: "est", RemoteAddr: x.request.RemoteAddr, TLS: x.request.TLS,
	}
	out := &buffer{header: http.Header{}}
	f.encoder.ServeHTTP(out, inner.WithContext(context.WithValue(ctx, exchangeKey{}, x)))
	switch {
	case x.err != nil:
		return answer{}, x.err
	case out.status == http.StatusOK && out.body.Len() > 0:
		return answer{status: http.StatusOK, reason: telemetry.ReasonOK, contentType: contentType, encoded: true, body: out.body.Bytes()}, nil
	case out.status == http.StatusBadRequest && der != nil:
		return answer{}, whyRefused(der)
	}
	return answer{}, errNothingWritten
}

// whyRefused finds out what the encoder disliked about a request before it called back.
func whyRefused(der []byte) error {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return &Error{Kind: BadCSR, Detail: "malformed PKCS#10 request", Err: err}
	}
	if err := csr.CheckSignature(); err != nil {
		return &Error{Kind: BadSignature, Detail: "the signature of the PKCS#10 request is wrong", Err: err}
	}
	return errNothingWritten
}

// buffer is the http.ResponseWriter that the encoder writes to.
type buffer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (b *buffer) Header() http.Header { return b.header }

// WriteHeader implements http.ResponseWriter; the first status stays.
func (b *buffer) WriteHeader(status int) {
	if b.status == 0 {
		b.status = status
	}
}

// Write implements http.ResponseWriter.
func (b *buffer) Write(p []byte) (int, error) {
	b.WriteHeader(http.StatusOK)
	return b.body.Write(p)
}
