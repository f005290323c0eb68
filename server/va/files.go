// CA certificates and CRLs from a mirror, under the addresses that the CA's own server has.

package va

import (
	"bytes"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/server/distribution"
)

const (
	certMaxAge = time.Hour
	crlMaxAge  = time.Minute
)

var shardForm = regexp.MustCompile(`^[0-9]{1,3}$`)

// FromMirror serves /ca, /crl and /ocsp from the mirror in dir.
func FromMirror(dir string, responder distribution.Responder, c *clock.Clock, metrics *distribution.OCSPMetrics) http.Handler {
	r := chi.NewRouter()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		r.MethodFunc(method, "/ca/{file}", func(w http.ResponseWriter, r *http.Request) {
			name, suffix, _ := cutLast(chi.URLParam(r, "file"))
			switch suffix {
			case "pem", "crt":
				send(w, r, dir, path.Join("ca", name+".der"), name, "application/x-pem-file", certMaxAge, func(der []byte) []byte {
					return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
				})
			case "der":
				send(w, r, dir, path.Join("ca", name+".der"), name, "application/pkix-cert", certMaxAge, nil)
			default:
				http.NotFound(w, r)
			}
		})
		r.MethodFunc(method, "/crl/{file}", func(w http.ResponseWriter, r *http.Request) {
			name, suffix, _ := cutLast(chi.URLParam(r, "file"))
			if suffix != "crl" {
				http.NotFound(w, r)
				return
			}
			send(w, r, dir, path.Join("crl", name+".crl"), name, "application/pkix-crl", crlMaxAge, nil)
		})
		r.MethodFunc(method, "/crl/{name}/{file}", func(w http.ResponseWriter, r *http.Request) {
			name := chi.URLParam(r, "name")
			shard, suffix, _ := cutLast(chi.URLParam(r, "file"))
			if suffix != "crl" || !shardForm.MatchString(shard) {
				http.NotFound(w, r)
				return
			}
			send(w, r, dir, path.Join("crl", name, shard+".crl"), name, "application/pkix-crl", crlMaxAge, nil)
		})
	}
	r.Handle("/ocsp/*", distribution.OCSP(responder, c, metrics))
	return r
}

// maxCertificate is more than the certificate of a CA has.
const maxCertificate = 64 << 10

// send answers with a file of the mirror; name is the part of its path that a stranger chose. A large CRL is not read into memory for each who asks.
func send(w http.ResponseWriter, r *http.Request, dir, file, name, contentType string, maxAge time.Duration, convert func([]byte) []byte) {
	if !nameForm.MatchString(name) {
		http.NotFound(w, r)
		return
	}
	f, err := open(dir, file)
	if errors.Is(err, fs.ErrNotExist) {
		http.NotFound(w, r)
		return
	}
	var content io.ReadSeeker
	var tag string
	if err == nil {
		defer f.Close()
		content = f
		tag, err = etag(f)
	}
	if err == nil && convert != nil {
		var der []byte
		der, err = io.ReadAll(io.LimitReader(f, maxCertificate))
		content = bytes.NewReader(convert(der))
	}
	if err != nil {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "not available now", http.StatusServiceUnavailable)
		return
	}
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("ETag", tag)
	header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(maxAge.Seconds())))
	header.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, content)
}

// open opens a file of the mirror, which somebody else carried here: no link leads out of the mirror, to a key for instance, and nothing but a file is read.
func open(dir, file string) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Stat(file) // to open a pipe could last for ever
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", file)
	}
	return root.Open(file)
}

// etag is made of the file's length and its end, where the signature is: that of a certificate or CRL is never that of another.
func etag(f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	end := make([]byte, min(info.Size(), 1024))
	if _, err := f.ReadAt(end, info.Size()-int64(len(end))); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return fmt.Sprintf(`"%d-%x"`, info.Size(), sha256.Sum256(end)), nil
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndex(s, ".")
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
