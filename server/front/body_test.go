// Bodies: what is read, what is refused, and how much is read before it is refused.

package front

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestReadCSR(t *testing.T) {
	t.Parallel()
	der := []byte{0x30, 0x82, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}
	b64 := base64.StdEncoding.EncodeToString(der)
	pemText := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	newPEM := string(pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: der}))
	const pkcs10 = "application/pkcs10"
	header := func(kv ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			h.Add(kv[i], kv[i+1])
		}
		return h
	}
	csr := header("Content-Type", pkcs10)
	for _, tt := range []struct {
		name   string
		header http.Header
		body   string
		want   Kind
	}{
		{"one line", csr, b64, ""},
		{"with a line feed", csr, b64 + "\n", ""},
		{"CRLF lines", csr, b64[:8] + "\r\n" + b64[8:] + "\r\n", ""},
		{"lone CR", csr, b64[:8] + "\r" + b64[8:], ""},
		{"spaces and tabs", csr, " " + b64[:8] + "\t" + b64[8:] + "  ", ""},
		{"NUL at the end", csr, b64 + "\n\x00", ""},
		{"PEM", csr, pemText, ""},
		{"PEM with CRLF", csr, strings.ReplaceAll(pemText, "\n", "\r\n"), ""},
		{"PEM of older tools", csr, newPEM, ""},
		{"type with a parameter", header("Content-Type", pkcs10+"; charset=us-ascii"), b64, ""},
		{"type in capitals", header("Content-Type", "Application/PKCS10"), b64, ""},
		{"Content-Transfer-Encoding is not looked at", header("Content-Type", pkcs10, "Content-Transfer-Encoding", "binary"), b64, ""},
		{"Content-Encoding identity", header("Content-Type", pkcs10, "Content-Encoding", "identity"), b64, ""},

		{"no type", header(), b64, MediaType},
		{"two types", header("Content-Type", pkcs10, "Content-Type", pkcs10), b64, MediaType},
		{"prefix of the type", header("Content-Type", "application/pkcs10foo"), b64, MediaType},
		{"text", header("Content-Type", "text/plain"), b64, MediaType},
		{"the type of the answer", header("Content-Type", "application/pkcs7-mime"), b64, MediaType},
		{"malformed type", header("Content-Type", "application/pkcs10; ="), b64, MediaType},
		{"gzip", header("Content-Type", pkcs10, "Content-Encoding", "gzip"), b64, MediaType},
		{"identity, gzip", header("Content-Type", pkcs10, "Content-Encoding", "identity, gzip"), b64, MediaType},

		{"empty", csr, "", BadBody},
		{"white space only", csr, " \r\n", BadBody},
		{"bare DER", csr, string(der), BadBody},
		{"truncated", csr, b64[:len(b64)-1], BadBody},
		{"padding in the middle", csr, b64[:4] + "=" + b64[4:], BadBody},
		{"form feed", csr, b64[:8] + "\f" + b64[8:], BadBody},
		{"vertical tab", csr, b64[:8] + "\v" + b64[8:], BadBody},
		{"byte order mark", csr, "\ufeff" + b64, BadBody},
		{"no-break space", csr, b64[:8] + "\u00a0" + b64[8:], BadBody},
		{"NUL in the middle", csr, b64[:8] + "\x00" + b64[8:], BadBody},
		{"illegal character", csr, "!" + b64[1:], BadBody},
		{"PEM of a certificate", csr, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), BadBody},
		{"PEM without an end", csr, strings.Split(pemText, "-----END")[0], BadBody},
		{"PEM with another end", csr, strings.Replace(pemText, "END CERTIFICATE REQUEST", "END NEW CERTIFICATE REQUEST", 1), BadBody},
		{"two PEM blocks", csr, pemText + pemText, BadBody},
		{"PEM boundary only", csr, "-----BEGIN CERTIFICATE REQUEST-----", BadBody},
		{"64 KiB of PEM boundaries", csr, strings.Repeat("-----BEGIN ", 5900), BadBody},
		{"one byte too many", csr, strings.Repeat("A", maxBodyBytes+1), TooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, length := range []int64{int64(len(tt.body)), -1} { // with Content-Length and chunked
				got, err := readCSR(&http.Request{Header: tt.header, Body: io.NopCloser(strings.NewReader(tt.body)), ContentLength: length})
				if kindOf(err) != tt.want || (err == nil) != (tt.want == "") {
					t.Fatalf("length %d: got %q (%v), want %q", length, kindOf(err), err, tt.want)
				}
				if tt.want == "" && !bytes.Equal(got, der) {
					t.Fatalf("length %d: got % x", length, got)
				}
			}
		})
	}
}

// An endless body is given up after the limit; an announced one is not read at all.
func TestReadBodyIsBounded(t *testing.T) {
	t.Parallel()
	endless := &countingReader{}
	_, err := readBody(&http.Request{Body: io.NopCloser(endless), ContentLength: -1})
	if kindOf(err) != TooLarge || endless.n > maxBodyBytes+4096 {
		t.Fatalf("got %v after %d bytes", err, endless.n)
	}
	announced := &countingReader{}
	_, err = readBody(&http.Request{Body: io.NopCloser(announced), ContentLength: 1 << 40})
	if kindOf(err) != TooLarge || announced.n != 0 {
		t.Fatalf("got %v after %d bytes", err, announced.n)
	}
}

type countingReader struct{ n int }

func (r *countingReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'A'
	}
	r.n += len(p)
	return len(p), nil
}
