package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/client"
	"github.com/natal-pki/natal/test/testpki"
)

func TestUsage(t *testing.T) {
	base := []string{"--server", "https://127.0.0.1:1", "--dir", filepath.Join(t.TempDir(), "device")}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing":              {nil, exitUsage, "expected one of"},
		"unknown command":      {[]string{"renew"}, exitUsage, "renew"},
		"unknown flag":         {[]string{"run", "--code", "secret"}, exitUsage, "--code"},
		"help":                 {[]string{"enroll", "--help"}, 0, "Usage:"},
		"no dir":               {[]string{"show"}, exitUsage, "--dir"},
		"no server":            {[]string{"run", "--dir", "x"}, exitUsage, "--server"},
		"no credential":        {append(base, "enroll", "--id", "dev-1"), exitUsage, "--code-file"},
		"code without id":      {append(base, "enroll", "--code-file", "x"), exitUsage, "--id"},
		"bad id":               {append(base, "enroll", "--id", "a:b", "--code-file", "x"), exitUsage, `"a:b"`},
		"id with new line":     {append(base, "enroll", "--id", "a\nuser b", "--code-file", "x"), exitUsage, "--id"},
		"half a birth":         {append(base, "enroll", "--birth-cert", "x"), exitUsage, "--birth-key"},
		"code and birth":       {append(base, "enroll", "--id", "d", "--code-file", "x", "--birth-cert", "x", "--birth-key", "x"), exitUsage, "exclude"},
		"two trusts":           {append(base, "enroll", "--id", "d", "--code-file", "x", "--trust", "x", "--trust-fingerprint", "x"), exitUsage, "exclude"},
		"weak key":             {append(base, "enroll", "--id", "d", "--code-file", "x", "--key", "rsa:1024"), exitUsage, "rsa:1024"},
		"mqtt without port":    {append(base, "run", "--mqtt", "broker"), exitUsage, "HOST:PORT"},
		"no interval":          {append(base, "run", "--interval", "0s"), exitUsage, "--interval"},
		"show of nothing":      {[]string{"show", "--dir", "/nonexistent/device"}, exitFailure, "/nonexistent/device"},
		"no trust":             {append(base, "enroll", "--id", "d", "--code-file", "/nonexistent/code"), exitFailure, "--trust"},
		"no code file":         {append(base, "enroll", "--id", "d", "--code-file", "/nonexistent/code", "--trust-fingerprint", strings.Repeat("0", 64)), exitFailure, "/nonexistent/code"},
		"bad fingerprint":      {append(base, "enroll", "--id", "d", "--code-file", "/dev/null", "--trust-fingerprint", "12"), exitFailure, "one line"},
		"no trust file":        {append(base, "run", "--trust", "/nonexistent/trust"), exitFailure, "/nonexistent/trust"},
		"no broker trust file": {append(base, "run", "--mqtt", "b:8883", "--mqtt-ca", "/nonexistent/ca"), exitFailure, "--mqtt-ca"},
		"nothing to renew":     {append(base, "reenroll", "--trust-fingerprint", strings.Repeat("0", 64)), exitFailure, "no certificate yet"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := realMain(c.args, strings.NewReader(""), &stdout, &stderr)
			if code != c.code || !strings.Contains(stdout.String()+stderr.String(), c.says) {
				t.Errorf("exit code %d, want %d\n%s%s", code, c.code, stdout.String(), stderr.String())
			}
			if code != 0 && strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("the error is not one line:\n%s", stderr.String())
			}
		})
	}
}

func TestCode(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		return testpki.WriteFile(t, filepath.Join(dir, name), []byte(content))
	}
	for name, c := range map[string]struct {
		file, stdin, environment string
		want                     string
	}{
		"file":           {file("good", "s3cret\n"), "", "", "s3cret"},
		"file with CRLF": {file("crlf", " s3cret \r\n"), "", "", "s3cret"},
		"stdin":          {"-", "s3cret", "", "s3cret"},
		"environment":    {"", "", "s3cret", "s3cret"},
		"file first":     {file("first", "s3cret"), "", "other", "s3cret"},
		"empty":          {file("empty", "\n"), "", "", ""},
		"two lines":      {file("two", "a\nb\n"), "", "", ""},
		"too long":       {file("long", strings.Repeat("a", 1025)), "", "", ""},
		"no file":        {filepath.Join(dir, "none"), "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("EST_CODE", c.environment)
			a := newAgent(flags{CodeFile: c.file}, strings.NewReader(c.stdin), os.Stdout, os.Stderr)
			for range 2 { // run asks again at each attempt, also for standard input
				got, err := a.code()
				if got != c.want || (err == nil) != (c.want != "") {
					t.Errorf("got %q, %v", got, err)
				}
			}
		})
	}
}

// TestBirthKeyForms has the key in every form in which factories deliver it.
func TestBirthKeyForms(t *testing.T) {
	t.Parallel()
	ca := testpki.Root(t, "Factory").Intermediate(t, "Line 1")
	ec, rsaLeaf := ca.Birth(t, "SN-1"), ca.Birth(t, "SN-2", testpki.KeySpec("rsa:2048"))
	sec1, err := x509.MarshalECPrivateKey(ec.Key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(l *testpki.Leaf) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(l.Key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	parameters := block("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7})
	dir := t.TempDir()
	for name, c := range map[string]struct {
		leaf *testpki.Leaf
		key  []byte
		good bool
	}{
		"SEC 1":                 {ec, block("EC PRIVATE KEY", sec1), true},
		"SEC 1 with parameters": {ec, append(bytes.Clone(parameters), block("EC PRIVATE KEY", sec1)...), true},
		"EC PKCS#8":             {ec, block("PRIVATE KEY", pkcs8(ec)), true},
		"PKCS#1":                {rsaLeaf, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaLeaf.Key.(*rsa.PrivateKey))), true},
		"RSA PKCS#8":            {rsaLeaf, block("PRIVATE KEY", pkcs8(rsaLeaf)), true},
		"another's key":         {ec, block("PRIVATE KEY", pkcs8(rsaLeaf)), false},
		"encrypted":             {ec, block("ENCRYPTED PRIVATE KEY", pkcs8(ec)), false},
		"a certificate":         {ec, ec.PEM(), false},
		"empty":                 {ec, nil, false},
		"garbage":               {ec, block("PRIVATE KEY", []byte{1, 2, 3}), false},
	} {
		prefix := filepath.Join(dir, strings.NewReplacer(" ", "-", "#", "").Replace(name))
		cert := testpki.WriteFile(t, prefix+".crt", c.leaf.ChainPEM())
		key := testpki.WriteFile(t, prefix+".key", c.key)
		got, err := readBirth(cert, key)
		if (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		if c.good && (got == nil || len(got.Certificate) != 2) {
			t.Errorf("%s: the intermediate is not presented", name)
		}
	}
	a := newAgent(flags{}, nil, nil, os.Stderr)
	if id := a.birthID(ec.Certificate); id != "SN-1" {
		t.Errorf("identity of the birth certificate: %q", id)
	}
	if id := a.birthID(ca.Leaf(t, "cn-only").Certificate); id != "cn-only" {
		t.Errorf("identity without a serial number: %q", id)
	}
}

func TestShow(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "device")
	store, err := client.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	root := testpki.Root(t, "Root")
	ca := root.Intermediate(t, "Devices")
	for _, c := range []struct {
		leaf  *testpki.Leaf
		state string
	}{{ca.Leaf(t, "dev-1"), "valid"}, {ca.Leaf(t, "dev-1", testpki.Expired()), "expired"}, {ca.Leaf(t, "dev-1", testpki.NotYetValid()), "not_yet_valid"}} {
		id := &client.Identity{Certificate: c.leaf.Certificate, Chain: []*x509.Certificate{c.leaf.Certificate, ca.Certificate},
			Anchors: []*x509.Certificate{root.Certificate}, Key: c.leaf.Key}
		if err := store.Commit(id); err != nil {
			t.Fatal(err)
		}
		for _, json := range []bool{false, true} {
			args := []string{"show", "--dir", dir}
			wants := []string{"dev-1", serialHex(c.leaf.Certificate), c.state, client.Fingerprint(root.Certificate), "CN=Devices"}
			if json {
				args = append(args, "--json")
				wants = append(wants, `"device":"dev-1"`, `"state":"`+c.state+`"`, `"proven":false`, `"not_after":"`)
			}
			var stdout, stderr bytes.Buffer
			if code := realMain(args, nil, &stdout, &stderr); code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr.String())
			}
			for _, want := range wants {
				if !strings.Contains(stdout.String(), want) {
					t.Errorf("%q is missing in:\n%s", want, stdout.String())
				}
			}
			if strings.Contains(stdout.String(), "PRIVATE") {
				t.Error("show prints the key")
			}
		}
	}
}
