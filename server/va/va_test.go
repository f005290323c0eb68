package va

import (
	"crypto"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/mirror"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	xocsp "golang.org/x/crypto/ocsp"

	"crypto/x509"
)

var passphrase = []byte("a passphrase of the va")

// rig is an installation that publishes, and the configuration of an authority.
type rig struct {
	*installation.Installation
	cfg       Config
	publisher *mirror.Publisher
}

func newRig(t *testing.T) *rig {
	t.Helper()
	i := installation.New(t, storage.Open(t, database.SQLite))
	if err := i.CA.RenewOCSPSigners(t.Context()); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r := &rig{Installation: i, cfg: Config{Keys: t.TempDir(), Passphrase: passphrase, Mirror: t.TempDir(), MaxAge: 5 * time.Minute, Clock: i.Clock.Clock(), Log: log}}
	r.publisher = &mirror.Publisher{CA: i.CA, Dir: r.cfg.Mirror, Clock: i.Clock.Clock(), Log: log}
	r.publish(t)
	return r
}

func (r *rig) publish(t *testing.T) {
	t.Helper()
	if err := r.publisher.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// sign has the authority's request signed and returns what the CA's operator gets.
func (r *rig) sign(t *testing.T, dir, name string) []byte {
	t.Helper()
	csr, err := Request(dir, name, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	issued, issuer, err := r.CA.SignOCSP(t.Context(), "test", name, csr)
	if err != nil {
		t.Fatal(err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issued.DER})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Raw})...)
}

func (r *rig) put(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.cfg.Keys, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAuthorityRenewsItsCertificate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := New(r.cfg); err == nil {
		t.Error("an authority without a certificate")
	}
	r.put(t, "devices.pem", r.sign(t, r.cfg.Keys, "devices"))
	a, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	record := r.EnrollByCode(t, "SN-1", installation.Key(t))
	r.publish(t)
	a.follow()
	leaf, err := x509.ParseCertificate(record.DER)
	if err != nil {
		t.Fatal(err)
	}
	info, err := r.CA.Get(t.Context(), "devices")
	if err != nil {
		t.Fatal(err)
	}
	request, err := xocsp.CreateRequest(leaf, info.Certificate, &xocsp.RequestOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (*xocsp.Response, string) {
		t.Helper()
		response, err := a.OCSP(t.Context(), "devices", request)
		if err != nil {
			t.Fatal(err)
		}
		parsed, _ := xocsp.ParseResponseForCert(response.DER, leaf, info.Certificate)
		return parsed, response.Outcome
	}
	first, outcome := ask()
	if outcome != ocsp.OutcomeGood || first.Certificate == nil {
		t.Fatal(outcome)
	}
	if _, err := a.OCSP(t.Context(), "management", request); err == nil {
		t.Error("an answer for a CA that it has no certificate of")
	}
	r.Clock.Advance(25 * 24 * time.Hour)
	if err := r.CA.RenewOCSPSigners(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, outcome := ask(); outcome != ocsp.OutcomeTryLater {
		t.Errorf("with a mirror of 25 days ago: %s", outcome)
	}
	r.publish(t)
	a.follow()
	// The old certificate stays while what is put in its place does not serve.
	renewed := r.sign(t, r.cfg.Keys, "devices")
	r.put(t, "devices.pem", []byte("nonsense"))
	if err := a.readKeys(); err == nil {
		t.Error("nonsense was taken for a certificate")
	}
	if answer, outcome := ask(); outcome != ocsp.OutcomeGood || !answer.Certificate.Equal(first.Certificate) {
		t.Errorf("with a broken file: %s", outcome)
	}
	r.put(t, "devices.pem", renewed)
	if err := a.readKeys(); err != nil {
		t.Fatal(err)
	}
	if answer, outcome := ask(); outcome != ocsp.OutcomeGood || answer.Certificate.Equal(first.Certificate) {
		t.Errorf("after the renewal: %s, the same certificate", outcome)
	}
	if err := a.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	r.Clock.Advance(6 * time.Minute)
	if err := a.Ready(t.Context()); err == nil {
		t.Error("ready with an old mirror")
	}
}

func TestAuthorityRefusesKeysThatDoNotServe(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	own := r.sign(t, r.cfg.Keys, "devices")
	block, rest := pem.Decode(own)
	for name, content := range map[string][]byte{
		"another key's certificate": r.sign(t, t.TempDir(), "devices"),
		"no CA beside it":           pem.EncodeToMemory(block),
		"the CA alone":              append(rest, rest...),
		"empty":                     nil,
	} {
		r.put(t, "devices.pem", content)
		if _, err := New(r.cfg); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	r.put(t, "devices.pem", own)
	wrong := r.cfg
	wrong.Passphrase = []byte("another passphrase")
	if _, err := New(wrong); err == nil {
		t.Error("another passphrase opened the key")
	}
	if info, err := os.Stat(filepath.Join(r.cfg.Keys, "devices.key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	for _, name := range []string{"", "../devices", "a/b", ".hidden"} {
		if _, err := Request(r.cfg.Keys, name, passphrase); err == nil {
			t.Errorf("a key for CA %q", name)
		}
	}
}

func TestFilesOfAMirror(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := FromMirror(r.cfg.Mirror, nil, r.cfg.Clock, nil)
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w
	}
	for path, contentType := range map[string]string{
		"/ca/devices.der": "application/pkix-cert", "/ca/devices.pem": "application/x-pem-file", "/ca/root.crt": "application/x-pem-file", "/crl/devices.crl": "application/pkix-crl",
	} {
		if w := get(path); w.Code != 200 || w.Header().Get("Content-Type") != contentType || w.Header().Get("ETag") == "" || w.Body.Len() < 100 {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	head := httptest.NewRecorder()
	again := httptest.NewRequest(http.MethodGet, "/crl/devices.crl", nil)
	again.Header.Set("If-None-Match", get("/crl/devices.crl").Header().Get("ETag"))
	if h.ServeHTTP(head, again); head.Code != http.StatusNotModified {
		t.Errorf("asked again: %d", head.Code)
	}
	// A link that leads out of the mirror is not followed, and nothing waits for a pipe.
	secret := filepath.Join(t.TempDir(), "secret")
	crls := filepath.Join(r.cfg.Mirror, "crl")
	if err := errors.Join(os.WriteFile(secret, []byte("a secret"), 0o600), os.Symlink(secret, filepath.Join(crls, "link.crl")), syscall.Mkfifo(filepath.Join(crls, "pipe.crl"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/crl/link.crl", "/crl/pipe.crl"} {
		if w := get(path); w.Code == 200 || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	for _, path := range []string{
		"/", "/status/devices/head.json", "/ca/devices", "/ca/nobody.pem", "/ca/.pem", "/crl/devices.pem", "/crl/devices/0.crl", "/crl/devices/x.crl",
		"/ca/..%2Fstatus%2Fdevices%2Fhead.der", "/crl/..%2F..%2Fx.crl", "/crl/../devices.crl",
	} {
		if w := get(path); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}
