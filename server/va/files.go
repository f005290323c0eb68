// CA certificates and CRLs from a mirror, under the addresses that the CA's own server has.

package va

import (
	"bytes"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
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
				send(w, r, filepath.Join(dir, "ca", name+".der"), name, "application/x-pem-file", certMaxAge, func(der []byte) []byte {
					return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
				})
			case "der":
				send(w, r, filepath.Join(dir, "ca", name+".der"), name, "application/pkix-cert", certMaxAge, nil)
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
			send(w, r, filepath.Join(dir, "crl", name+".crl"), name, "application/pkix-crl", crlMaxAge, nil)
		})
		r.MethodFunc(method, "/crl/{name}/{file}", func(w http.ResponseWriter, r *http.Request) {
			name := chi.URLParam(r, "name")
			shard, suffix, _ := cutLast(chi.URLParam(r, "file"))
			if suffix != "crl" || !shardForm.MatchString(shard) {
				http.NotFound(w, r)
				return
			}
			send(w, r, filepath.Join(dir, "crl", name, shard+".crl"), name, "application/pkix-crl", crlMaxAge, nil)
		})
	}
	r.Handle("/ocsp/*", distribution.OCSP(responder, c, metrics))
	return r
}

// send answers with a file; name is the part of its path that a stranger chose.
func send(w http.ResponseWriter, r *http.Request, path, name, contentType string, maxAge time.Duration, convert func([]byte) []byte) {
	if !nameForm.MatchString(name) {
		http.NotFound(w, r)
		return
	}
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "not available now", http.StatusServiceUnavailable)
		return
	}
	if convert != nil {
		content = convert(content)
	}
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(content)))
	header.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(maxAge.Seconds())))
	header.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndex(s, ".")
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
