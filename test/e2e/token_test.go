// The whole life of an installation whose CA keys are in a PKCS#11 token: made there, used for everything, lost and found again.

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// tokenServer is a server whose keys are in the token "natal".
type tokenServer struct {
	*harness.Server
	hsm     *harness.HSM
	control string // of the slow module
}

func newTokenServer(t *testing.T, init ...string) *tokenServer {
	t.Helper()
	dir, data, pass := t.TempDir(), filepath.Join(t.TempDir(), "data"), passphraseFile(t)
	hsm := harness.NewHSM(t, dir)
	hsm.InitToken(t, "natal")
	pin := filepath.Join(dir, "pin")
	if err := os.WriteFile(pin, []byte(harness.PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	module, control := hsm.SlowModule(t, dir)
	harness.Command{Path: harness.CgoBinary(t, "est-server"), Env: hsm.Env(), Args: append([]string{"init", "--data", data, "--passphrase-file", pass,
		"--host", "127.0.0.1", "--key-store", "pkcs11:module-path=" + module + ";token=natal?pin-source=" + pin}, init...)}.MustRun(t)
	s := harness.StartServer(t, harness.ServerOptions{Verb: "serve", Data: data, Cgo: true, Env: hsm.Env(), Args: []string{"--passphrase-file", pass}})
	return &tokenServer{s, hsm, control}
}

// metric is the value of a series, "" if there is none.
func (s *tokenServer) metric(t *testing.T, series string) string {
	t.Helper()
	_, page, _ := s.Get(t, "http://"+s.Metrics+"/metrics")
	for line := range strings.Lines(string(page)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (s *tokenServer) readyz(t *testing.T) (int, string) {
	t.Helper()
	status, body, _ := s.Get(t, "http://"+s.Metrics+"/readyz")
	return status, string(body)
}

// lost waits until the server has seen that the key is gone, at most 5 s.
func (s *tokenServer) lost(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 5*time.Second, "est_keystore_up 0", func() bool { return s.metric(t, `est_keystore_up{ca="devices"}`) == "0" })
	if status, reason := s.readyz(t); status != http.StatusServiceUnavailable || !strings.Contains(reason, "the key of CA devices cannot be used") || strings.Contains(reason, harness.PIN) {
		t.Errorf("/readyz: %d %s", status, reason)
	}
}

func (s *tokenServer) found(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the key to be back", s.Ready)
	if got := s.metric(t, `est_keystore_up{ca="devices"}`); got != "1" {
		t.Errorf("ready, and est_keystore_up is %s", got)
	}
}

func (s *tokenServer) intended(t *testing.T) int {
	t.Helper()
	var list struct{ Items []json.RawMessage }
	parse(t, s.MustCLI(t, "cert", "list", "--state", "intended", "--json").Stdout, &list)
	return len(list.Items)
}

func TestTokenLife(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl", "curl", "softhsm2-util", "pkcs11-tool", "cc")
	s := newTokenServer(t, "--ca-key", "ec:P-384")
	s.checkCustody(t)
	s.MustCLI(t, "ca", "create", "large", "--parent", "root", "--key", "rsa:4096", "--use", "broker")

	d := newOpensslDevice(t, "dev-1")
	d.newKey(t, "ec:P-256")
	if a := d.enroll(t, s.Server, "simpleenroll", s.CodeFile(t, "dev-1")); a.status != http.StatusOK {
		t.Fatalf("enroll: %d %s", a.status, a.body)
	}
	s.MustCLI(t, "device", "revoke", "dev-1", "--reason", "keyCompromise")
	for ca, entries := range map[string]int{"devices": 1, "large": 0} {
		if got := len(fetchCRL(t, s.Server, ca).RevokedCertificateEntries); got != entries {
			t.Errorf("CRL of %s: %d entries", ca, got)
		}
		_, der, _ := s.Get(t, "http://"+s.Public+"/crl/"+ca+".crl")
		file := filepath.Join(d.dir, ca+".crl")
		if err := os.WriteFile(file, der, 0o600); err != nil {
			t.Fatal(err)
		}
		check := harness.Run(t, harness.Program(t, "openssl"), "crl", "-inform", "DER", "-in", file, "-noout", "-CAfile", filepath.Join(s.Data, "ca", ca+".pem"))
		if ca == "devices" && !strings.Contains(check.Output(), "verify OK") {
			t.Errorf("CRL of %s: %s", ca, check.Output())
		}
	}
	s.awayAndBack(t)
	s.tooSlow(t)
	s.startWithout(t)
}

// checkCustody: the keys are in the token, where they stay.
func (s *tokenServer) checkCustody(t *testing.T) {
	t.Helper()
	objects := s.hsm.Tool(t, "natal", "--list-objects", "--type", "privkey")
	for _, name := range []string{"root", "devices", "management"} {
		if !strings.Contains(objects, "label:      "+name+"\n") {
			t.Errorf("no key %s in the token:\n%s", name, objects)
		}
		if _, err := os.Stat(filepath.Join(s.Data, "keys", name+".pem")); err == nil {
			t.Errorf("key %s is in a file too", name)
		}
	}
	if keys, captive := strings.Count(objects, "Private Key Object"), strings.Count(objects, "never extractable"); keys < 3 || keys != captive || keys != strings.Count(objects, "sensitive, always sensitive") {
		t.Errorf("%d keys, %d never extractable:\n%s", keys, captive, objects)
	}
	if r := s.CLI(t, "ca", "offline", "devices", "--out", filepath.Join(t.TempDir(), "key")); r.Code != 1 || !strings.Contains(r.Stderr, "disconnect the token") {
		t.Errorf("ca offline: exit code %d, %s", r.Code, r.Output())
	}
	if shown := s.MustCLI(t, "ca", "show", "devices").Stdout; !strings.Contains(shown, "token=natal") || strings.Contains(shown, "pin") {
		t.Errorf("ca show:\n%s", shown)
	}
}

// awayAndBack: while the token is away devices are told to come again, and nothing is used up.
func (s *tokenServer) awayAndBack(t *testing.T) {
	t.Helper()
	d := newOpensslDevice(t, "dev-2")
	d.newKey(t, "ec:P-256")
	code := s.CodeFile(t, "dev-2")
	s.hsm.Remove(t, "natal")
	s.lost(t)
	if a := d.enroll(t, s.Server, "simpleenroll", code); a.status != http.StatusServiceUnavailable || !strings.HasPrefix(a.body, "ca_key_unavailable") {
		t.Errorf("enroll without the token: %d %s", a.status, a.body)
	}
	if n := s.intended(t); n != 0 {
		t.Errorf("%d certificates are half issued", n)
	}
	if status, _, _ := s.Get(t, "http://"+s.Public+"/crl/devices.crl"); status != http.StatusOK {
		t.Errorf("CRL without the token: %d", status)
	}
	time.Sleep(5 * time.Second) // a few more looks at the key
	s.hsm.Restore(t, "natal")
	s.found(t)
	if n := strings.Count(s.Output(), `msg="the key of a CA cannot be used" ca=devices`); n != 1 {
		t.Errorf("the loss was logged %d times", n)
	}
	if a := d.enroll(t, s.Server, "simpleenroll", code); a.status != http.StatusOK {
		t.Errorf("enroll with the token back: %d %s", a.status, a.body)
	}
}

// tooSlow: a signature that takes too long ends in a 503; the certificate is finished when the token has recovered, and the device's repeat gets it.
func (s *tokenServer) tooSlow(t *testing.T) {
	t.Helper()
	d := newOpensslDevice(t, "dev-3")
	d.newKey(t, "ec:P-256")
	code := s.CodeFile(t, "dev-3")
	harness.SetSlow(t, s.control, 7000, 0)
	begun := time.Now()
	if a := d.enroll(t, s.Server, "simpleenroll", code); a.status != http.StatusServiceUnavailable || time.Since(begun) > 9*time.Second {
		t.Errorf("enroll with a slow token, after %v: %d %s", time.Since(begun), a.status, a.body)
	}
	if n := s.intended(t); n != 1 {
		t.Errorf("%d certificates wait to be finished", n)
	}
	s.lost(t)
	harness.SetSlow(t, s.control, 300, 0)
	harness.Eventually(t, 20*time.Second, "the certificate to be finished", func() bool { return s.Ready() && s.intended(t) == 0 })
	if a := d.enroll(t, s.Server, "simpleenroll", code); a.status != http.StatusOK {
		t.Errorf("the repeat: %d %s", a.status, a.body)
	}
	if got := s.metric(t, `est_keystore_up{ca="devices"}`); got != "1" {
		t.Errorf("300 ms a signature: est_keystore_up %s", got)
	}
	harness.SetSlow(t, s.control, 0, 0)
}

// startWithout: a server that starts without its token serves what it can, and needs no other start.
func (s *tokenServer) startWithout(t *testing.T) {
	t.Helper()
	s.Stop(t)
	s.hsm.Remove(t, "natal")
	s.Launch(t)
	harness.Eventually(t, 30*time.Second, "the start", func() bool {
		answer, err := http.Get("http://" + s.Metrics + "/readyz")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		reason, _ := io.ReadAll(answer.Body)
		return strings.Contains(string(reason), "the key of CA devices")
	})
	if status, _, _ := s.Get(t, "http://"+s.Public+"/crl/devices.crl"); status != http.StatusOK {
		t.Error("no CRL")
	}
	s.hsm.Restore(t, "natal")
	s.found(t)
	d := newOpensslDevice(t, "dev-4")
	d.newKey(t, "ec:P-256")
	if a := d.enroll(t, s.Server, "simpleenroll", s.CodeFile(t, "dev-4")); a.status != http.StatusOK {
		t.Error(fmt.Sprint("enroll: ", a.status, " ", a.body))
	}
}

// A key made in a key ceremony becomes a CA's; a binary without cgo says what it lacks; keys with foreign owners are left alone.
func TestTokenCeremony(t *testing.T) {
	t.Parallel()
	dir, data, pass := t.TempDir(), filepath.Join(t.TempDir(), "data"), passphraseFile(t)
	hsm := harness.NewHSM(t, dir)
	hsm.InitToken(t, "ceremony")
	pin := filepath.Join(dir, "pin")
	if err := os.WriteFile(pin, []byte(harness.PIN), 0o600); err != nil {
		t.Fatal(err)
	}
	hsm.Tool(t, "ceremony", "--keypairgen", "--key-type", "EC:secp384r1", "--label", "issuing", "--id", "01a7", "--usage-sign")
	plain, cgo := harness.Binary(t, "est-server"), harness.CgoBinary(t, "est-server")
	common := []string{"--data", data, "--passphrase-file", pass}
	run := func(binary string, args ...string) harness.Result {
		return harness.Command{Path: binary, Env: hsm.Env(), Args: append(args, common...)}.Run(t)
	}
	if r := run(plain, "init"); r.Code != 0 {
		t.Fatal(r.Output())
	}
	uri := hsm.URI("ceremony", "issuing", pin)
	for _, refused := range []struct {
		binary, want string
		args         []string
	}{
		{plain, "make build CGO_ENABLED=1", []string{"--key-uri", uri, "--existing"}},
		{cgo, "--existing", []string{"--key-uri", uri}},
		{cgo, "not rsa:4096", []string{"--key-uri", uri, "--existing", "--key", "rsa:4096"}},
		{cgo, "is not there", []string{"--key-uri", hsm.URI("ceremony", "other", pin), "--existing"}},
		{cgo, "PIN never stands", []string{"--key-uri", "pkcs11:token=ceremony;object=issuing?pin-value=" + harness.PIN}},
	} {
		r := run(refused.binary, append([]string{"ca", "create", "issuing", "--parent", "root"}, refused.args...)...)
		if r.Code != 1 || !strings.Contains(r.Stderr, refused.want) || strings.Contains(r.Output(), harness.PIN) {
			t.Errorf("%v: exit code %d, %s", refused.args, r.Code, r.Output())
		}
	}
	if r := run(cgo, "ca", "create", "issuing", "--parent", "root", "--key-uri", uri, "--existing"); r.Code != 0 {
		t.Fatal(r.Output())
	}
	if r := run(cgo, "ca", "create", "twice", "--parent", "root", "--key-uri", uri, "--existing"); r.Code != 1 || !strings.Contains(r.Stderr, "has this key") {
		t.Errorf("a key for two CAs: %s", r.Output())
	}
	if r := run(cgo, "init", "--key-store", "x"); r.Code != 2 {
		t.Errorf("init --key-store x: %d %s", r.Code, r.Output())
	}
}

// The soft crypto token: RSA-4096 at rest under a passphrase, in use again after a restart without anybody there, never given out.
func TestKeyFilesServeUnattended(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl", "curl")
	dir, data, pass := t.TempDir(), filepath.Join(t.TempDir(), "data"), passphraseFile(t)
	harness.MustRun(t, harness.Binary(t, "est-server"), "init", "--data", data, "--passphrase-file", pass, "--host", "127.0.0.1", "--ca-key", "rsa:4096")
	s := harness.StartServer(t, harness.ServerOptions{Verb: "serve", Data: data, Args: []string{"--passphrase-file", pass}})
	s.Stop(t)
	s.Start(t) // as after a reboot: the passphrase comes from its file
	content, err := os.ReadFile(filepath.Join(data, "keys", "devices.pem"))
	if err != nil || !strings.HasPrefix(string(content), "-----BEGIN ENCRYPTED PRIVATE KEY-----") {
		t.Errorf("the key file begins with %.40s, %v", content, err)
	}
	d := newOpensslDevice(t, "dev-1")
	d.newKey(t, "ec:P-256")
	if a := d.enroll(t, s, "simpleenroll", s.CodeFile(t, "dev-1")); a.status != http.StatusOK {
		t.Errorf("enroll: %d %s", a.status, a.body)
	}
	if text := openssl(t, dir, "x509", "-in", filepath.Join(data, "ca", "devices.pem"), "-noout", "-text"); !strings.Contains(text, "(4096 bit)") {
		t.Errorf("the CA's key is not RSA-4096:\n%s", text)
	}
	if out := s.MustCLI(t, "ca", "show", "devices", "--json").Stdout + s.MustCLI(t, "ca", "list", "--json").Stdout; strings.Contains(out, "PRIVATE") {
		t.Error("a private key is shown")
	}
}
