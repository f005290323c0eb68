// The command line as a script sees it: exit codes, one line of error, JSON, files.

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

type result struct {
	code           int
	stdout, stderr string
}

func run(t *testing.T, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := execute(t.Context(), args, strings.NewReader(""), &out, &errs)
	return result{code, out.String(), errs.String()}
}

// made is an instance that tests copy: making one opens many keys.
var made struct {
	sync.Once
	dir string
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if made.dir != "" {
		os.RemoveAll(made.dir)
	}
	os.Exit(code)
}

// instanceDir is a fresh copy of an instance.
func instanceDir(t *testing.T) string {
	t.Helper()
	made.Do(func() {
		if made.dir, made.err = os.MkdirTemp("", "natal-cli-"); made.err != nil {
			return
		}
		passphrase := filepath.Join(made.dir, "passphrase")
		if made.err = os.WriteFile(passphrase, []byte("only for a test\n"), 0o600); made.err != nil {
			return
		}
		var out, errs bytes.Buffer
		args := []string{"init", "--data", filepath.Join(made.dir, "data"), "--passphrase-file", passphrase, "--public-url", "http://pki.example.com:8080", "--host", "est.example.com"}
		if code := execute(context.Background(), args, nil, &out, &errs); code != 0 {
			made.err = fmt.Errorf("init: %s", errs.String())
		}
	})
	if made.err != nil {
		t.Fatal(made.err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(made.dir, "data"))); err != nil {
		t.Fatal(err)
	}
	for _, private := range []string{"", "ca", "keys", "admin"} {
		if err := os.Chmod(filepath.Join(dir, private), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// must runs a command on dir that has to succeed.
func must(t *testing.T, dir string, args ...string) string {
	t.Helper()
	r := run(t, append(args, "--data", dir)...)
	if r.code != 0 {
		t.Fatalf("%v: exit code %d: %s", args, r.code, r.stderr)
	}
	return r.stdout
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, command := range strings.Split("|run|init|serve|ca|ca create|ca list|ca show|ca csr|ca import|ca sign|ca offline|label|label add|label set|label list|label show|label remove|"+
		"profile|profile list|profile show|profile check|profile add|profile explain|device|device add|device list|device show|device revoke|device suspend|device resume|device bundle|device reissue|device remove|"+
		"code|code create|code import|code list|code revoke|cert|cert list|cert show|cert get|cert revoke|cert unhold|birth-ca|birth-ca add|birth-ca list|birth-ca remove|"+
		"crl|crl list|crl issue|crl get|crl set|admin|admin add|admin list|admin remove|audit|audit verify|audit export", "|") {
		r := run(t, append(strings.Fields(command), "--help")...)
		if r.code != 0 || !strings.Contains(r.stdout, "Usage: est-server "+command) || r.stderr != "" {
			t.Errorf("%s --help: exit code %d\n%s%s", command, r.code, r.stdout, r.stderr)
		}
		if strings.HasSuffix(command, " list") && !strings.Contains(r.stdout, "--json") {
			t.Errorf("%s takes no --json", command)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ args, want string }{
		{"", "expected one of"},
		{"bogus", "unexpected argument bogus"},
		{"ca", "expected one of"},
		{"ca show", `expected "<name>"`},
		{"ca list --colour", "unknown flag --colour"},
		{"ca create x", "give --parent CA or --external"},
		{"ca create x --parent root --external", "can't be used together"},
		{"device revoke x", "missing flags: --reason"},
		{"cert get 12 --format p12", "must be one of"},
		{"admin add x --role owner --out y", "must be one of"},
		{"label set default", "nothing to change"},
		{"init --host a_b", `--host: "a_b" is neither a host name nor an IP address`},
		{"init --public-url https://x", "--public-url"},
		{"init --root theirs", "must be one of"},
		{"run --est-listen 8443", `--est-listen: "8443" is not HOST:PORT`},
		{"ca list --server http://x --cert y", "want https://HOST:PORT"},
		{"ca list --server https://x:9443", "--server needs --cert"},
		{"ca list --cert x", "go with --server"},
	} {
		r := run(t, append(strings.Fields(c.args), "--data", filepath.Join(t.TempDir(), "none"))...)
		if r.code != exitUsage || !strings.Contains(r.stderr, c.want) || strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "est-server: ") || r.stdout != "" {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q; want %d and %q", c.args, r.code, r.stdout, r.stderr, exitUsage, c.want)
		}
	}
}

// Every failure is one line that names the thing and the rule.
func TestErrors(t *testing.T) {
	t.Parallel()
	dir := instanceDir(t)
	csr := testpki.WriteFile(t, filepath.Join(t.TempDir(), "csr.pem"), testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-256"), "Sub CA", nil)))
	wrong := testpki.WriteFile(t, filepath.Join(t.TempDir(), "wrong"), []byte("another passphrase"))
	good := testpki.WriteFile(t, filepath.Join(t.TempDir(), "good.yaml"), []byte("name: good\nuse: broker\nkeys: [ec:P-256]\nvalidity: 90d\nextended_key_usage: [clientAuth]\nsubject: {common_name: device}\n"))
	must(t, dir, "device", "add", "SN-1")
	for _, c := range []struct{ args, want string }{
		{"ca show nope", `est-server: ca show: there is no CA "nope" (unknown_ca)`},
		{"ca csr nope", `est-server: ca csr: there is no CA "nope" (unknown_ca)`},
		{"ca import devices " + csr, `est-server: ca import: CA "devices" is active: only a waiting CA takes a certificate (ca_state)`},
		{"ca import devices /nonexistent", "est-server: ca import devices: open /nonexistent: no such file or directory"},
		{"ca sign devices --csr " + csr, "est-server: ca sign devices: " + csr + ": path length exceeded at CN=Natal Device CA: pathlen 0 allows no CA below it (path_length)"},
		{"ca create devices --parent root", `est-server: ca create: CA "devices" exists (ca_exists)`},
		{"ca create x --parent root --key rsa:1024", `est-server: ca create x: key "rsa:1024" is not one of ec:P-256, ec:P-384, rsa:3072, rsa:4096 (ca_key)`},
		{"label add x --auth bogus", `est-server: label add x: "bogus" is not code, birth or bridge (label_auth)`},
		{"label set default --ca management", `est-server: label set default: CA "management" issues for use management; a profile for use broker needs another CA (ca_use)`},
		{"label remove default", "est-server: label remove: the default label stays (label_default)"},
		{"profile check " + csr, "est-server: profile check: " + csr + ": profile: line 1: a value of another kind"},
		{"profile check " + good + " --ca " + csr, "est-server: profile check " + good + ": --ca " + csr + ": not a certificate in PEM"},
		{"label add x --profile iot-device --ca nope", `est-server: label add x: there is no CA "nope"`},
		{"device add x --label nope", `est-server: device add x: there is no label "nope" (unknown_label)`},
		{"crl get devices --shard 3", `est-server: crl get: CA "devices" has no CRL 3: it has 1, counted from 0 (unknown_crl)`},
		{"profile show nope", `est-server: profile show: there is no certificate profile "nope" (unknown_profile)`},
		{"device add a:b", "est-server: device add a:b: an id matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ (device_id)"},
		{"device add natal-x", `est-server: device add: the id "natal-x" is reserved (device_id_reserved)`},
		{"device show nope", `est-server: device show: there is no device "nope" (unknown_device)`},
		{"device show a/../b", `est-server: device show: there is no device "a/../b" (unknown_device)`},
		{"device revoke SN-1 --reason boredom", `est-server: device revoke SN-1: "boredom" is not one of`},
		{"code create SN-1 --expires soon", `est-server: code create SN-1: expires: "soon" is not a duration like 90s, 15m, 12h or 30d (invalid)`},
		{"code create SN-1 --label bridge", `est-server: code create: device "SN-1" belongs to label "default" (device_label)`},
		{"code revoke SN-1", `est-server: code revoke: device "SN-1" has no unused code (unknown_code)`},
		{"cert show xyz", `est-server: cert show: "xyz" is not a serial number in hex (serial)`},
		{"cert revoke 12 --reason keyCompromise", "est-server: cert revoke: there is no certificate"},
		{"birth-ca add default " + csr, "est-server: birth-ca add default: " + csr + ": the file holds a CERTIFICATE REQUEST: want certificates only (birth_ca)"},
		{"birth-ca remove default 00", `est-server: birth-ca remove: label "default" has no birth CA 00 (unknown_birth_ca)`},
		{"crl get nope", `est-server: crl get: there is no CA "nope" (unknown_ca)`},
		{"crl set devices --valid 24h --interval 13h", "est-server: crl set devices: a CRL valid for 24h0m0s is reissued every 1m to 12h0m0s, not 13h0m0s (crl_interval)"},
		{"admin remove nope", `est-server: admin remove: there is no administrator "nope" (not_found)`},
		{"admin add admin --role auditor --out " + t.TempDir(), `est-server: admin add: there is an administrator "admin" already (conflict)`},
		{"audit verify --head " + csr, "est-server: audit verify: " + csr + ": not a head as `audit head --json` prints it"},
		{"ca list --passphrase-file " + wrong, "wrong passphrase or damaged file"},
		{"init", "est-server: init: " + dir + " holds an instance already; nothing was changed"},
		{"serve --est-listen 256.0.0.1:1 --public-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0", "--est-listen 256.0.0.1:1"},
	} {
		r := run(t, append(strings.Fields(c.args), "--data", dir)...)
		last := r.stderr[strings.LastIndex(strings.TrimSuffix(r.stderr, "\n"), "\n")+1:]
		if r.code != exitFailed || !strings.Contains(last, c.want) || !strings.HasPrefix(last, "est-server: ") || r.stdout != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr\n%s want\n%s", c.args, r.code, r.stdout, r.stderr, c.want)
		}
	}
}

func TestNoInstance(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"serve", "ca list", "audit verify"} {
		dir := filepath.Join(t.TempDir(), "none")
		r := run(t, append(strings.Fields(command), "--data", dir)...)
		if _, err := os.Stat(dir); r.code != exitFailed || !strings.Contains(r.stderr, "it is empty; make one with `est-server init") || err == nil {
			t.Errorf("%s: exit code %d, %s, %v", command, r.code, r.stderr, err)
		}
	}
}

// The shapes of JSON that scripts rely on.
func TestJSON(t *testing.T) {
	t.Parallel()
	dir := instanceDir(t)
	for _, c := range []struct{ args, keys string }{
		{"code create SN-1 --json", "device code expires"},
		{"ca show devices --json", "name parent state key"},
		{"label show default --json", "name ca profile auth"},
		{"device show SN-1 --json", "id label state certificates"},
		{"crl issue devices --json", "ca number this_update next_update"},
		{"audit verify --json", "seq hash"},
		{"profile show iot-device --json", "name use keys yaml"},
		{"device add SN-2 --san dns:a.b --json", "id label state sans"},
		{"device reissue SN-1 --json", "device code expires"},
		{"label add other --auth code --json", "name ca profile auth version"},
		{"ca create sub --parent root --json", "name parent state key certificate chain"},
		{"profile explain --profile iot-device --json --csr " + csrFile(t, "SN-1"), "profile ok findings"},
	} {
		var v map[string]any
		if err := json.Unmarshal([]byte(must(t, dir, strings.Fields(c.args)...)), &v); err != nil {
			t.Errorf("%s: %v", c.args, err)
		}
		for _, key := range strings.Fields(c.keys) {
			if _, ok := v[key]; !ok {
				t.Errorf("%s: no %q in %v", c.args, key, v)
			}
		}
	}
	for _, list := range []string{"ca", "label", "profile", "device", "code", "cert", "birth-ca", "crl", "admin"} {
		var v struct {
			Items *[]map[string]any `json:"items"`
		}
		if err := json.Unmarshal([]byte(must(t, dir, list, "list", "--json")), &v); err != nil || v.Items == nil {
			t.Errorf("%s list: %v, items %v", list, err, v.Items)
		}
	}
}

func csrFile(t *testing.T, cn string) string {
	t.Helper()
	return testpki.WriteFile(t, filepath.Join(t.TempDir(), "csr.pem"), testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-256"), cn, nil)))
}

func TestSecretsGoToPrivateFiles(t *testing.T) {
	t.Parallel()
	dir, out := instanceDir(t), t.TempDir()
	code := filepath.Join(out, "code")
	if printed := must(t, dir, "code", "create", "SN-1", "--out", code); strings.Contains(printed, strings.TrimSpace(readFile(t, code))) {
		t.Error("the code is printed although it went to a file")
	}
	if asJSON := must(t, dir, "code", "create", "SN-2", "--out", code, "--json"); strings.Contains(asJSON, strings.TrimSpace(readFile(t, code))) {
		t.Error("the code is in the JSON although it went to a file")
	}
	must(t, dir, "admin", "add", "olga", "--role", "operator", "--out", filepath.Join(out, "olga"))
	must(t, dir, "ca", "offline", "root", "--out", filepath.Join(out, "root.key.pem"))
	for _, file := range []string{"code", "olga/key.pem", "root.key.pem"} {
		info, err := os.Stat(filepath.Join(out, file))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	if !strings.Contains(readFile(t, filepath.Join(out, "root.key.pem")), "ENCRYPTED") {
		t.Error("the key that was taken offline is not encrypted")
	}
	if r := run(t, "ca", "create", "x", "--parent", "root", "--data", dir); r.code != exitFailed || !strings.Contains(r.stderr, `the key of CA "root" is offline (ca_key_offline)`) {
		t.Errorf("a CA under an offline root: %s", r.stderr)
	}
	if err := os.Rename(filepath.Join(out, "root.key.pem"), filepath.Join(dir, "keys", "root.pem")); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "ca", "create", "x", "--parent", "root")
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestCertGet(t *testing.T) {
	t.Parallel()
	dir := instanceDir(t)
	var certs struct {
		Items []struct{ Serial, Profile string }
	}
	if err := json.Unmarshal([]byte(must(t, dir, "cert", "list", "--json")), &certs); err != nil {
		t.Fatal(err)
	}
	for _, c := range certs.Items {
		if c.Profile != "admin" {
			continue
		}
		block, _ := pem.Decode([]byte(must(t, dir, "cert", "get", c.Serial)))
		der := must(t, dir, "cert", "get", c.Serial, "--format", "der")
		chain, err := wire.ParseCertsOnly([]byte(must(t, dir, "cert", "get", c.Serial, "--format", "p7")))
		if err != nil || len(chain) != 3 || string(block.Bytes) != der || !slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return string(c.Raw) == der }) {
			t.Errorf("formats differ: %v, %d certificates", err, len(chain))
		}
		if colons := strings.ToUpper(c.Serial[:2] + ":" + c.Serial[2:]); !strings.Contains(must(t, dir, "cert", "show", colons), c.Serial) {
			t.Errorf("cert show %s", colons)
		}
		must(t, dir, "cert", "revoke", c.Serial, "--reason", "certificateHold")
		must(t, dir, "cert", "unhold", c.Serial)
		must(t, dir, "cert", "revoke", c.Serial, "--reason", "keyCompromise")
		crl, err := x509.ParseRevocationList([]byte(must(t, dir, "crl", "get", "management", "--format", "der")))
		if err != nil || len(crl.RevokedCertificateEntries) != 1 {
			t.Errorf("CRL: %v", err)
		}
		return
	}
	t.Error("no administrator's certificate is listed")
}

// The first administrator: made again after a crash that left its key here, never in place of one that another server made.
func TestFirstAdministrator(t *testing.T) {
	t.Parallel()
	serialOf := func(dir string) string {
		var admins struct {
			Items []struct{ Name, Serial string }
		}
		if err := json.Unmarshal([]byte(must(t, dir, "admin", "list", "--json")), &admins); err != nil || len(admins.Items) != 1 {
			t.Fatalf("%v: %v", admins, err)
		}
		return admins.Items[0].Serial
	}
	for _, c := range []struct {
		name  string
		gone  []string
		again bool
	}{
		{"nothing is missing", nil, false},
		{"the certificate never came", []string{"cert.pem"}, true},
		{"made elsewhere", []string{"cert.pem", "key.pem", "trust.pem"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := instanceDir(t)
			before := serialOf(dir)
			for _, file := range c.gone {
				if err := os.Remove(filepath.Join(dir, "admin", file)); err != nil {
					t.Fatal(err)
				}
			}
			serveIn(t, dir, "serve")
			if after := serialOf(dir); (after != before) != c.again {
				t.Errorf("certificate %s became %s", before, after)
			}
			if _, err := os.Stat(filepath.Join(dir, "admin", "cert.pem")); c.again && err != nil {
				t.Error(err)
			}
		})
	}
}
