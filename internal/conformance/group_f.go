// Group F: transfer rules of RFC 8951.

package conformance

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
)

var groupF = []Case{
	{"F1", Must, "no Content-Transfer-Encoding", "RFC 8951 section 3", false, f1},
	{"F2", Must, "Content-Transfer-Encoding is ignored", "RFC 8951 section 3", false, f2},
	{"F3", Should, "any line length and line end", "RFC 8951 section 3.1", false, f3},
	{"F4", Should, "what is not white space is refused", "RFC 8951 section 3.1", false, f4},
	{"F5", May, "base64 without padding, URL alphabet", "RFC 4648 sections 3.2, 4", false, f5},
	{"F6", Must, "errors are plain text", "RFC 7030 section 4.2.3, RFC 8951 section 5", false, f6},
}

// accepted enrolls a fresh device with a request that edit has changed.
func (s *Session) accepted(ctx context.Context, edit func(r *request, der []byte)) error {
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
	edit(&r, der)
	_, err = s.issue(ctx, r, key.Public())
	return err
}

func f1(ctx context.Context, s *Session) error {
	return s.accepted(ctx, func(*request, []byte) {})
}

func f2(ctx context.Context, s *Session) error {
	return each([]string{"base64", "BASE64", "binary", "8bit", "x"}, func(value string) error {
		return s.accepted(ctx, func(r *request, _ []byte) { r.header = []string{"Content-Transfer-Encoding: " + value} })
	})
}

func f3(ctx context.Context, s *Session) error {
	for what, encode := range map[string]func(der []byte) []byte{
		"one line":       func(der []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(der)) },
		"64, LF":         func(der []byte) []byte { return lines(der, 64, "\n") },
		"76, CRLF":       func(der []byte) []byte { return lines(der, 76, "\r\n") },
		"64, CR":         func(der []byte) []byte { return lines(der, 64, "\r") },
		"spaces, tabs":   func(der []byte) []byte { return lines(der, 10, " \t") },
		"chunked":        func(der []byte) []byte { return lines(der, 76, "\n") },
		"blank lines":    func(der []byte) []byte { return lines(der, 64, "\n\n") },
		"leading spaces": func(der []byte) []byte { return append([]byte("\r\n  "), lines(der, 64, "\n")...) },
	} {
		if err := s.accepted(ctx, func(r *request, der []byte) { r.body, r.chunked = encode(der), what == "chunked" }); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

func f4(ctx context.Context, s *Session) error {
	return each([]string{"\f", "\v", "\ufeff", "\u00a0", "\x00"}, func(character string) error {
		return s.refusedBody(ctx, func(r *request, _ []byte) {
			text := string(r.body)
			r.body = []byte(text[:64] + character + text[64:])
		}, http.StatusBadRequest)
	})
}

func f5(ctx context.Context, s *Session) error {
	return each([]*base64.Encoding{base64.RawStdEncoding, base64.URLEncoding}, func(encoding *base64.Encoding) error {
		return s.refusedBody(ctx, func(r *request, der []byte) { r.body = []byte(encoding.EncodeToString(der)) }, http.StatusBadRequest, http.StatusOK)
	})
}

func f6(ctx context.Context, s *Session) error {
	return each([]string{"simpleenroll", "simplereenroll", "serverkeygen"}, func(operation string) error {
		return each([]string{"", "!!!!", strings.Repeat("A", 100), "MIIB"}, func(body string) error {
			return s.refused(ctx, request{method: http.MethodPost, path: path("", operation), contentType: typePKCS10, body: []byte(body)})
		})
	})
}
