// OCSP and the validation authority as openssl sees them: what the CA's own server says at once, an authority that stands alone says within seconds.

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// ocspSite is a server that publishes, a device's certificate, and what openssl needs to ask about it.
type ocspSite struct {
	*harness.Server
	device *opensslDevice
	serial string
	mirror string
}

func newOCSPSite(t *testing.T, o harness.ServerOptions) *ocspSite {
	t.Helper()
	s := &ocspSite{Server: harness.StartServer(t, o), device: newOpensslDevice(t, "SN-1"), mirror: filepath.Join(t.TempDir(), "mirror")}
	s.Stop(t)
	config := filepath.Join(s.Data, "config.yaml")
	content, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(content), `publish_dir: ""`, `publish_dir: "`+s.mirror+`"`, 1)
	if text == string(content) {
		t.Fatal("config.yaml has no publish_dir")
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
	s.device.newKey(t, "ec:P-256")
	if got := s.device.enroll(t, s.Server, "simpleenroll", s.CodeFile(t, "SN-1")); got.status != 200 {
		t.Fatalf("enroll: %+v", got)
	}
	s.serial = strings.TrimSpace(strings.TrimPrefix(s.device.openssl(t, "x509", "-in", "cert.pem", "-noout", "-serial"), "serial="))
	for _, name := range []string{"root", "devices"} {
		s.copy(t, filepath.Join(s.Data, "ca", name+".pem"), s.device.file(name+".pem"))
	}
	return s
}

func (s *ocspSite) copy(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ask asks with openssl, which verifies the answer up to the root.
func (s *ocspSite) ask(t *testing.T, address string, args ...string) string {
	t.Helper()
	if len(args) == 0 {
		args = []string{"-cert", "cert.pem"}
	}
	r := harness.Command{Path: harness.Program(t, "openssl"), Dir: s.device.dir, Args: append([]string{
		"ocsp", "-issuer", "devices.pem", "-CAfile", "root.pem", "-verify_other", "devices.pem", "-url", "http://" + address + "/ocsp/devices", "-resp_text",
	}, args...)}.Run(t)
	return r.Output()
}

func (s *ocspSite) want(t *testing.T, address string, limit time.Duration, text string, args ...string) {
	t.Helper()
	var out string
	begun := time.Now()
	for {
		if out = s.ask(t, address, args...); strings.Contains(out, text) && strings.Contains(out, "Response verify OK") {
			return
		}
		if time.Since(begun) > limit {
			t.Fatalf("%s: not %q within %v:\n%s", address, text, limit, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestOCSPByOpenssl(t *testing.T) {
	t.Parallel()
	s := newOCSPSite(t, harness.ServerOptions{})
	for _, hash := range []string{"-sha1", "-sha256"} {
		out := s.ask(t, s.Public, hash, "-cert", "cert.pem")
		for _, want := range []string{"Response verify OK", "cert.pem: good", "OCSP Nonce", "OCSP Signing", "OCSP No Check", "Responder Id: "} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in:\n%s", hash, want, out)
			}
		}
		if strings.Contains(out, "WARNING") { // a nonce that is not echoed
			t.Errorf("%s:\n%s", hash, out)
		}
	}
	s.want(t, s.Public, 0, "0x1234: unknown", "-no_nonce", "-serial", "0x1234")
	s.want(t, s.Public, 0, "0x1234: unknown", "-cert", "cert.pem", "-serial", "0x1234") // two in one request
	for _, step := range []struct{ command, want string }{
		{"certificateHold", "cert.pem: revoked"}, {"", "cert.pem: good"}, {"keyCompromise", "Reason: keyCompromise"},
	} {
		if step.command == "" {
			s.MustCLI(t, "cert", "unhold", s.serial)
		} else {
			s.MustCLI(t, "cert", "revoke", s.serial, "--reason", step.command)
		}
		s.want(t, s.Public, 0, step.want)
	}
	_, page, _ := s.Get(t, "http://"+s.Metrics+"/metrics")
	for _, line := range []string{`est_ocsp_requests_total{ca="devices",status="good"} `, `est_ocsp_requests_total{ca="devices",status="try_later"} 0`, `est_certificate_expiry_timestamp_seconds{use="ocsp devices"} `} {
		if !strings.Contains(string(page), line) {
			t.Errorf("no %q on the metrics page", line)
		}
	}
}

// authority is a running `est-server va`.
type authority struct {
	*harness.Process
	public, metrics string
}

// newAuthority makes a key, has it signed by the CA and starts. The files go from one side to the other by hand.
func (s *ocspSite) newAuthority(t *testing.T, args ...string) *authority {
	t.Helper()
	keys, passphrase := filepath.Join(t.TempDir(), "va"), filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(passphrase, []byte("a passphrase of the va\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) harness.Result {
		return harness.Command{Path: s.Binary, Args: append(args, "--passphrase-file", passphrase)}.MustRun(t)
	}
	csr := filepath.Join(t.TempDir(), "devices.csr")
	run("va", "csr", "devices", "--keys", keys, "--out", csr)
	s.MustCLI(t, "ca", "sign-ocsp", "devices", "--csr", csr, "--out", filepath.Join(keys, "devices.pem"))
	v := &authority{public: harness.FreeAddress(t), metrics: harness.FreeAddress(t)}
	v.Process = harness.Command{Path: s.Binary, Args: append([]string{
		"va", "--keys", keys, "--passphrase-file", passphrase, "--listen", v.public, "--metrics-listen", v.metrics,
	}, args...)}.Start(t)
	harness.Eventually(t, 30*time.Second, "va to be ready", func() bool {
		if !v.Running() {
			t.Fatalf("va ended by itself:\n%s", v.Output())
		}
		return harness.Listening(v.metrics) && s.status(t, "http://"+v.metrics+"/readyz") == 200
	})
	return v
}

func (s *ocspSite) status(t *testing.T, url string) int {
	t.Helper()
	code, _, _ := s.Get(t, url)
	return code
}

func TestAuthorityFromAMirror(t *testing.T) {
	t.Parallel()
	s := newOCSPSite(t, harness.ServerOptions{})
	v := s.newAuthority(t, "--mirror", s.mirror, "--max-age", "30s")
	const within = 5 * time.Second
	s.want(t, v.public, within, "cert.pem: good")
	s.want(t, v.public, 0, "0x1234: unknown", "-serial", "0x1234")
	s.MustCLI(t, "cert", "revoke", s.serial, "--reason", "certificateHold")
	s.want(t, v.public, within, "Reason: certificateHold")
	s.MustCLI(t, "cert", "unhold", s.serial)
	s.want(t, v.public, within, "cert.pem: good")
	s.MustCLI(t, "cert", "revoke", s.serial, "--reason", "keyCompromise")
	s.want(t, v.public, within, "Reason: keyCompromise")
	// The same certificates and CRLs as from the CA's own server.
	for _, path := range []string{"/ca/devices.pem", "/ca/root.der", "/crl/devices.crl"} {
		harness.Eventually(t, within, path+" to be the same", func() bool {
			_, here, _ := s.Get(t, "http://"+s.Public+path)
			_, there, _ := s.Get(t, "http://"+v.public+path)
			return string(here) == string(there)
		})
	}
	for _, path := range []string{"/", "/status/devices/head.json", "/ca/..%2f..%2fest.pem", "/crl/devices", "/.well-known/est/cacerts"} {
		if code := s.status(t, "http://"+v.public+path); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	_, page, _ := s.Get(t, "http://"+v.metrics+"/metrics")
	for _, line := range []string{`est_ocsp_requests_total{ca="devices",status="revoked"} `, `est_va_published_timestamp_seconds{ca="devices"} `, `est_certificate_expiry_timestamp_seconds{use="ocsp devices"} `} {
		if !strings.Contains(string(page), line) {
			t.Errorf("no %q on the metrics page", line)
		}
	}
	// The CA is stopped: what it published last counts for a while, and then for nothing.
	s.Stop(t)
	s.want(t, v.public, 0, "Reason: keyCompromise")
	harness.Eventually(t, time.Minute, "the mirror to be too old", func() bool {
		return strings.Contains(s.ask(t, v.public), "Responder Error: trylater")
	})
	if code := s.status(t, "http://"+v.metrics+"/readyz"); code != 503 {
		t.Errorf("/readyz with an old mirror: %d", code)
	}
}

func TestAuthorityFromTheDatabase(t *testing.T) {
	t.Parallel()
	s := newOCSPSite(t, harness.ServerOptions{})
	v := s.newAuthority(t, "--data", s.Data)
	s.want(t, v.public, 0, "cert.pem: good")
	s.MustCLI(t, "cert", "revoke", s.serial, "--reason", "keyCompromise")
	s.want(t, v.public, time.Second, "Reason: keyCompromise")
	if code := s.status(t, "http://"+v.public+"/crl/devices.crl"); code != 200 {
		t.Errorf("the CRL: %d", code)
	}
}
