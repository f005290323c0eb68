// init: three CAs, everything with its proper mode whatever the umask, no key readable without the passphrase; and the
// commands that need no running server.

package e2e

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestInit(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl", "bash")
	server, pass, dir := harness.Binary(t, "est-server"), passphraseFile(t), t.TempDir()
	data := filepath.Join(dir, "data")

	if r := harness.Run(t, server, "serve", "--data", data, "--passphrase-file", pass); r.Code != 1 || !strings.Contains(r.Stderr, "init") {
		t.Errorf("serve without data: exit code %d, want 1 and a word of init: %s", r.Code, r.Output())
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("the refused serve has made the directory")
	}
	out := harness.MustRun(t, harness.Program(t, "bash"), "-c", `umask 000; exec "$@"`, "-", server, "init", "--data", data, "--passphrase-file", pass,
		"--host", "est.example.com", "--public-url", "http://pki.example.com").Output()

	var cas struct{ Items []caInfo }
	parse(t, harness.MustRun(t, server, "ca", "list", "--json", "--data", data, "--passphrase-file", pass).Stdout, &cas)
	parents := map[string]string{}
	for _, ca := range cas.Items {
		parents[ca.Name] = ca.Parent
		if ca.State != "active" || ca.Key != "ec:P-256" {
			t.Errorf("CA %+v, want active with ec:P-256", ca)
		}
		pem := filepath.Join(data, "ca", ca.Name+".pem")
		if v := openssl(t, dir, "verify", "-x509_strict", "-CAfile", filepath.Join(data, "trust.pem"), pem); !strings.Contains(v, "OK") {
			t.Errorf("%s: %s", ca.Name, v)
		}
	}
	if len(cas.Items) != 3 || parents["devices"] != "root" || parents["management"] != "root" || parents["root"] != "" {
		t.Errorf("CAs and parents: %v", parents)
	}
	fingerprint := openssl(t, dir, "x509", "-in", filepath.Join(data, "trust.pem"), "-noout", "-fingerprint", "-sha256")
	_, hex, _ := strings.Cut(strings.TrimSpace(fingerprint), "=")
	if plain := strings.ToLower(strings.ReplaceAll(hex, ":", "")); !strings.Contains(strings.ToLower(out), plain) {
		t.Errorf("init does not print the anchor's SHA-256 %s:\n%s", plain, out)
	}
	checkModes(t, data)

	if r := harness.Run(t, server, "init", "--data", data, "--passphrase-file", pass); r.Code != 1 {
		t.Errorf("init twice: exit code %d, want 1: %s", r.Code, r.Output())
	}
	wrong := filepath.Join(dir, "wrong")
	if err := os.WriteFile(wrong, []byte("another passphrase altogether\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := harness.Run(t, server, "serve", "--data", data, "--passphrase-file", wrong); r.Code != 1 || !strings.Contains(r.Stderr, "passphrase") {
		t.Errorf("serve with a wrong passphrase: exit code %d, want 1 and a word of it: %s", r.Code, r.Output())
	}
}

type caInfo struct{ Name, Parent, State, Key string }

func parse(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
}

// checkModes: directories 0700; secret files 0600; no private key in clear.
func checkModes(t *testing.T, data string) {
	t.Helper()
	keys := 0
	err := filepath.WalkDir(data, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if info.Mode().Perm() != 0o700 {
				t.Errorf("%s: mode %v, want 0700", path, info.Mode())
			}
			return nil
		}
		if info.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s: mode %v: others may write", path, info.Mode())
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(content, []byte("PRIVATE KEY")) || strings.Contains(path, "est.db") {
			keys++
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v, want 0600", path, info.Mode())
			}
		}
		inKeys := strings.HasPrefix(path, filepath.Join(data, "keys"))
		if inKeys && bytes.Contains(content, []byte("PRIVATE KEY")) && !bytes.Contains(content, []byte("BEGIN ENCRYPTED PRIVATE KEY")) {
			t.Errorf("%s: a key in clear", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if keys < 5 { // three CAs, the server, the database at least
		t.Errorf("only %d secret files seen in %s", keys, data)
	}
}

// The root's key leaves the server; everything goes on; what needs it is refused. A machine without a network signs with its own.
func TestOfflineRootAndAirGappedSigning(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	away := filepath.Join(t.TempDir(), "root-key.pem")
	s.MustCLI(t, "ca", "offline", "root", "--out", away)
	key, err := os.ReadFile(away)
	if err != nil || !bytes.Contains(key, []byte("BEGIN ENCRYPTED PRIVATE KEY")) {
		t.Errorf("the key that was taken away: %v\n%s", err, key)
	}
	if r := s.CLI(t, "ca", "create", "more", "--subject", "CN=More", "--key", "ec:P-256", "--parent", "root"); r.Code != 1 || !strings.Contains(r.Stderr, "root") {
		t.Errorf("a CA under the offline root: exit code %d, want 1 and its name: %s", r.Code, r.Output())
	}
	s.Stop(t)
	s.Start(t)
	d := newOpensslDevice(t, "SN-OFFLINE")
	d.newKey(t, "ec:P-256")
	if a := d.enroll(t, s, "simpleenroll", s.CodeFile(t, d.id)); a.status != 200 {
		t.Errorf("enroll with the root offline: %d %s", a.status, a.body)
	}

	s.MustCLI(t, "ca", "create", "factory", "--external", "--subject", "CN=Factory CA", "--key", "ec:P-384")
	dir := t.TempDir()
	csr, cert := filepath.Join(dir, "factory.csr"), filepath.Join(dir, "factory.pem")
	if err := os.WriteFile(csr, []byte(s.MustCLI(t, "ca", "csr", "factory").Stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	server, pass, vault := harness.Binary(t, "est-server"), passphraseFile(t), filepath.Join(dir, "vault")
	harness.MustRun(t, server, "init", "--data", vault, "--passphrase-file", pass)
	signed := harness.MustRun(t, server, "ca", "sign", "root", "--csr", csr, "--data", vault, "--passphrase-file", pass)
	if err := os.WriteFile(cert, []byte(signed.Stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	s.MustCLI(t, "ca", "import", "factory", cert, "--chain", filepath.Join(vault, "ca", "root.pem"))
	if state := caState(t, s, "factory"); state != "active" {
		t.Errorf("state %q, want active", state)
	}
}
