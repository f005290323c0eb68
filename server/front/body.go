// What is in a POST: its media type, its size, its base64. Nothing beyond maxBodyBytes is ever read.

package front

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/natal-pki/natal/internal/wire"
)

// maxBodyBytes is far above any honest request: an RSA-8192 CSR with a hundred names is 8 KiB in base64.
const maxBodyBytes = 64 << 10

// readCSR returns the DER of the PKCS#10 request in the body.
func readCSR(r *http.Request) ([]byte, error) {
	if err := checkMediaType(r.Header, wire.TypePKCS10); err != nil {
		return nil, err
	}
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	return decodeBody(body)
}

// checkMediaType wants the type itself, not a prefix of it. Parameters are allowed. Content-Transfer-Encoding is not looked at:
// "any value in that header MUST be ignored" (RFC 8951 section 3).
func checkMediaType(h http.Header, want string) error {
	values := h["Content-Type"]
	if len(values) != 1 {
		return &Error{Kind: MediaType, Detail: "Content-Type must be " + want}
	}
	if values[0] != want {
		got, _, err := mime.ParseMediaType(values[0])
		if err != nil || got != want {
			return &Error{Kind: MediaType, Detail: "Content-Type must be " + want}
		}
	}
	for _, coding := range h["Content-Encoding"] {
		if !strings.EqualFold(strings.TrimSpace(coding), "identity") {
			return &Error{Kind: MediaType, Detail: "Content-Encoding is not supported"}
		}
	}
	return nil
}

func readBody(r *http.Request) ([]byte, error) {
	tooLarge := &Error{Kind: TooLarge, Detail: "the body has more than 65536 bytes"}
	if r.ContentLength > maxBodyBytes {
		return nil, tooLarge
	}
	size := r.ContentLength
	if size < 0 {
		size = 2 << 10
	}
	buf := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	_, err := buf.ReadFrom(io.LimitReader(r.Body, maxBodyBytes+1))
	switch {
	case err != nil:
		return nil, &Error{Kind: BadBody, Reason: "truncated_body", Detail: "the body ended early", Err: err}
	case buf.Len() > maxBodyBytes:
		return nil, tooLarge
	}
	return buf.Bytes(), nil
}

var (
	pemBegin = []byte("-----BEGIN ")
	pemEnd   = []byte("-----END ")
)

// decodeBody also takes PEM: many tools make nothing else, and there is nothing that it could be mistaken for.
func decodeBody(body []byte) ([]byte, error) {
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if bytes.HasPrefix(trimmed, pemBegin) {
		inner, err := pemPayload(trimmed)
		if err != nil {
			return nil, err
		}
		body = inner
	} else if len(body) > 2 && body[0] == 0x30 && body[1] >= 0x80 {
		return nil, &Error{Kind: BadBody, Reason: "bad_base64", Detail: "the body is bare DER; it must be base64 (RFC 8951 section 3)"}
	}
	der, err := wire.DecodeBase64(body)
	if err != nil {
		return nil, &Error{Kind: BadBody, Reason: "bad_base64", Detail: err.Error()}
	}
	return der, nil
}

// pemPayload returns the base64 between the two boundaries of the only PEM block in text, which starts with a boundary.
func pemPayload(text []byte) ([]byte, error) {
	bad := errors.New("the PEM body is not one CERTIFICATE REQUEST")
	first, rest, ok := bytes.Cut(text, []byte("\n"))
	label := strings.TrimSuffix(strings.TrimPrefix(strings.TrimRight(string(first), " \t\r"), string(pemBegin)), "-----")
	if !ok || (label != "CERTIFICATE REQUEST" && label != "NEW CERTIFICATE REQUEST") {
		return nil, &Error{Kind: BadBody, Reason: "bad_pem", Detail: bad.Error()}
	}
	payload, tail, ok := bytes.Cut(rest, pemEnd)
	if !ok || string(bytes.TrimRight(tail, " \t\r\n\x00")) != label+"-----" {
		return nil, &Error{Kind: BadBody, Reason: "bad_pem", Detail: bad.Error()}
	}
	return payload, nil
}
