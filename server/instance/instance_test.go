// A data directory from nothing to a restart: what is there, who may read it, what is refused.

package instance

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

var plan = Plan{Hosts: []string{"est.example.com", "192.0.2.7"}, PublicURL: "http://pki.example.com:8080"}

// options describe a fresh directory, a passphrase and a clock that stands.
func options(t *testing.T) (Options, *clock.Manual) {
	t.Helper()
	manual := clock.NewManual(time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC))
	passphrase := filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(passphrase, []byte("only for a test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{
		Dir: Dir(filepath.Join(t.TempDir(), "data")), PassphraseFile: passphrase, Clock: manual.Clock(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}, manual
}

func mustInit(t *testing.T, o Options) {
	t.Helper()
	i, err := Init(t.Context(), o, plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t *testing.T, o Options) *Instance {
	t.Helper()
	i, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

func TestInitMakesAnInstance(t *testing.T) {
	// The umask is the process's: no other test may run meanwhile.
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	o, _ := options(t)
	mustInit(t, o)
	for _, file := range []string{"config.yaml", "est.db", "trust.pem", "ca/root.pem", "ca/devices.pem", "ca/management.pem", "keys/root.pem", "keys/devices.pem", "keys/management.pem", "keys/codes.pem", "keys/est-server.pem"} {
		if _, err := os.Stat(o.Dir.Path(file)); err != nil {
			t.Error(err)
		}
	}
	err := filepath.WalkDir(string(o.Dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := filepath.Glob(o.Dir.Path("keys", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		content, err := os.ReadFile(key)
		if err != nil || !bytes.Contains(content, []byte("ENCRYPTED")) {
			t.Errorf("%s is not encrypted, or %v", key, err)
		}
	}
	i := mustOpen(t, o)
	if i.Settings.PublicURL != plan.PublicURL || !slices.Equal(i.Settings.Hosts, plan.Hosts) {
		t.Errorf("settings %+v", i.Settings)
	}
	labels, err := i.Book.Labels(t.Context())
	if err != nil || len(labels) != 3 {
		t.Errorf("labels %v, %v", labels, err)
	}
	trust, err := os.ReadFile(o.Dir.Trust())
	if err != nil {
		t.Fatal(err)
	}
	chain, err := i.ManagementChain(t.Context())
	if err != nil || !testpki.ParsePEM(t, trust)[0].Equal(chain[len(chain)-1]) {
		t.Errorf("trust.pem is not the root of the management CA (%v)", err)
	}
}

func TestInitRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(t *testing.T, o *Options)
		want    string
	}{
		"an instance":       {func(t *testing.T, o *Options) { mustInit(t, *o) }, "holds an instance already"},
		"something else":    {func(t *testing.T, o *Options) { write(t, o.Dir, "letter.txt", "dear") }, "is not empty and holds no instance"},
		"no passphrase":     {func(t *testing.T, o *Options) { o.PassphraseFile = "" }, "no passphrase"},
		"short passphrase":  {func(t *testing.T, o *Options) { os.WriteFile(o.PassphraseFile, []byte("short\n"), 0o600) }, "shorter than"},
		"passphrase absent": {func(t *testing.T, o *Options) { o.PassphraseFile += ".not" }, "no such file"},
		"another plan": {func(t *testing.T, o *Options) {
			write(t, o.Dir, "init.json", `{"hosts":["other"],"public_url":"http://pki.example.com:8080"}`)
		}, "begun with other options"},
		"a damaged plan": {func(t *testing.T, o *Options) { write(t, o.Dir, "init.json", "{") }, "remove"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, _ := options(t)
			c.prepare(t, &o)
			before := listing(t, o.Dir)
			_, err := Init(t.Context(), o, plan)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if after := listing(t, o.Dir); !slices.Equal(before, after) {
				t.Errorf("the directory changed from %v to %v", before, after)
			}
		})
	}
}

func write(t *testing.T, d Dir, name, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(string(d), 0o700), os.WriteFile(d.Path(name), []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func listing(t *testing.T, d Dir) []string {
	t.Helper()
	var names []string
	filepath.WalkDir(string(d), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			names = append(names, path)
		}
		return nil
	})
	return names
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	ready, _ := options(t)
	mustInit(t, ready)
	for name, c := range map[string]struct {
		change func(t *testing.T, o *Options)
		want   string
	}{
		"nothing there":     {func(t *testing.T, o *Options) { o.Dir = Dir(t.TempDir()) }, "it is empty"},
		"half done":         {func(t *testing.T, o *Options) { o.Dir = Dir(t.TempDir()); write(t, o.Dir, "init.json", "{}") }, "init was not finished"},
		"something else":    {func(t *testing.T, o *Options) { o.Dir = Dir(t.TempDir()); write(t, o.Dir, "x", "") }, "no config.yaml"},
		"wrong passphrase":  {func(t *testing.T, o *Options) { o.PassphraseFile = file(t, "another passphrase") }, "wrong passphrase"},
		"bad configuration": {func(t *testing.T, o *Options) { o.ConfigFile = file(t, "colour: red") }, "colour: line 1: unknown key"},
		"no configuration":  {func(t *testing.T, o *Options) { o.ConfigFile = "/nonexistent" }, "no such file"},
		"no database": {func(t *testing.T, o *Options) {
			o.ConfigFile = file(t, "database: {url_file: "+file(t, "mysql://x")+"}")
		}, "want sqlite:PATH or postgres"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := ready
			c.change(t, &o)
			if i, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v; want %q", i, err, c.want)
			}
		})
	}
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPassphraseSources(t *testing.T) {
	credentials := t.TempDir()
	if err := os.WriteFile(filepath.Join(credentials, Credential), []byte("from the credential"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := Dir(t.TempDir())
	read := func(flag, configured string) string {
		t.Helper()
		p, err := d.readPassphrase(flag, configured)
		if err != nil {
			return err.Error()
		}
		return string(p)
	}
	flag, configured := file(t, "from the flag\n"), file(t, "from the settings\r\n")
	if got := read("", ""); !strings.Contains(got, "no passphrase") {
		t.Errorf("no source: %q", got)
	}
	if made, err := d.MakePassphrase(); err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	own := read("", "")
	if len(own) != 32 {
		t.Errorf("made %q", own)
	}
	if made, err := d.MakePassphrase(); err != nil || made || read("", "") != own {
		t.Errorf("made again: %v, %v", made, err)
	}
	if got := read("", configured); got != "from the settings" {
		t.Errorf("configured: %q", got)
	}
	if got := read(flag, configured); got != "from the flag" {
		t.Errorf("flag: %q", got)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	if got := read(flag, configured); got != "from the credential" {
		t.Errorf("credential: %q", got)
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	first, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(); !errors.Is(err, ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := d.Lock()
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	again.Release()
}

// The socket works below a path that no Unix socket address can hold, and only its owner may use it.
func TestSocketInADeepDirectory(t *testing.T) {
	t.Parallel()
	for _, depth := range []int{0, 40} {
		d := Dir(filepath.Join(t.TempDir(), strings.Repeat("d/", depth)+strings.Repeat("e", depth*3)))
		if err := makePrivate(string(d)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time in place of a dead socket
			l, err := d.ListenSocket()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				if c, err := l.Accept(); err == nil {
					c.Write([]byte("x"))
					c.Close()
				}
			}()
			c, err := d.DialSocket(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); n != 1 {
				t.Error(err)
			}
			c.Close()
			info, err := os.Stat(d.Socket())
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
			l.(socketListener).Listener.Close() // as a crash leaves it
		}
	}
}

func TestServerNames(t *testing.T) {
	t.Parallel()
	names := serverNames(t.Context(), []string{"EST.example.com", "est.example.com", "192.0.2.7"})
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"EST.example.com", "192.0.2.7", "localhost", "127.0.0.1", host} {
		if !slices.Contains(names, want) {
			t.Errorf("%v lacks %s", names, want)
		}
	}
	if slices.Contains(names, "est.example.com") {
		t.Errorf("%v has a name twice", names)
	}
}

// Three years of the server's own certificate: always one that is valid, renewed at two thirds, never the same key.
func TestServerCertificateForThreeYears(t *testing.T) {
	t.Parallel()
	o, manual := options(t)
	mustInit(t, o)
	i := mustOpen(t, o)
	s, err := i.ServerCertificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	root := testpki.ParsePEM(t, mustRead(t, o.Dir.Trust()))[0]
	pool := x509.NewCertPool()
	pool.AddCert(root)
	serials := map[string]bool{}
	for day := range 3 * 365 {
		manual.Advance(24 * time.Hour)
		now := manual.Clock().Now()
		deadline := time.Now().Add(10 * time.Second)
		for !now.Before(renewAt(s.Leaf())) {
			if time.Now().After(deadline) {
				t.Fatalf("day %d: not renewed", day)
			}
			time.Sleep(time.Millisecond)
		}
		c, err := s.Get(nil)
		if err != nil {
			t.Fatal(err)
		}
		serials[s.Leaf().SerialNumber.String()] = true
		between := x509.NewCertPool()
		for _, der := range c.Certificate[1:] {
			above, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			between.AddCert(above)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, DNSName: "est.example.com"}); err != nil {
			t.Fatalf("day %d: %v", day, err)
		}
	}
	if len(serials) < 17 || len(serials) > 20 {
		t.Errorf("%d certificates in three years, want one for each 60 days", len(serials))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// A restart keeps the certificate unless there is a reason to have another one.
func TestServerCertificateAtStart(t *testing.T) {
	t.Parallel()
	o, manual := options(t)
	mustInit(t, o)
	serial := func(i *Instance) string {
		t.Helper()
		s, err := i.ServerCertificate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return ca.SerialHex(s.Leaf().SerialNumber)
	}
	i := mustOpen(t, o)
	first := serial(i)
	if again := serial(i); again != first {
		t.Error("a new certificate without a reason")
	}
	steps := []struct {
		name string
		do   func()
	}{
		{"a new host name", func() { i.Settings.Hosts = append(i.Settings.Hosts, "new.example.com") }},
		{"two thirds of its life", func() { manual.Advance(61 * 24 * time.Hour) }},
		{"a revocation", func() {
			if _, err := i.CA.Revoke(t.Context(), "test", first, "superseded"); err != nil {
				t.Fatal(err)
			}
		}},
		{"a damaged file", func() { write(t, o.Dir, "keys/est-server.pem", "x") }},
		{"a missing file", func() { os.Remove(o.Dir.serverCert()) }},
	}
	for _, step := range steps {
		step.do()
		next := serial(i)
		if next == first {
			t.Errorf("%s: still the same certificate", step.name)
		}
		first = next
	}
}

// With the root elsewhere there is nothing to serve with until the management CA has its certificate; then everything comes.
func TestExternalRoot(t *testing.T) {
	t.Parallel()
	o, _ := options(t)
	external := plan
	external.ExternalRoot = true
	i, err := Init(t.Context(), o, external)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if err := i.Complete(t.Context()); err == nil || !strings.Contains(err.Error(), "waits for its certificate") {
		t.Errorf("complete without a certificate: %v", err)
	}
	if _, err := i.ServerCertificate(t.Context()); err == nil || !strings.Contains(err.Error(), "ca csr management") {
		t.Errorf("server certificate without a CA: %v", err)
	}
	root, _ := options(t)
	mustInit(t, root)
	air := mustOpen(t, root)
	for _, name := range []string{ManagementCA, DevicesCA} {
		csr, err := i.CA.CSR(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := air.CA.Sign(t.Context(), "test", RootCA, csr, 10)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.CA.Import(t.Context(), "test", name, signed, mustRead(t, root.Dir.Trust())); err != nil {
			t.Fatal(err)
		}
	}
	if err := i.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := i.ServerCertificate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mustRead(t, o.Dir.Trust()), mustRead(t, root.Dir.Trust())) {
		t.Error("trust.pem is not the external root")
	}
}

// Two servers on one PostgreSQL: the second has a copy of keys and configuration and sees what the first does.
func TestTwoServersOnOneDatabase(t *testing.T) {
	t.Parallel()
	url := storage.URL(t, database.Postgres)
	o, _ := options(t)
	shared := plan
	shared.DatabaseURLFile = file(t, url+"\n")
	first, err := Init(t.Context(), o, shared)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := os.Stat(o.Dir.database()); err == nil {
		t.Error("there is a SQLite database too")
	}
	copied := o
	copied.Dir = Dir(filepath.Join(t.TempDir(), "second"))
	if err := os.CopyFS(string(copied.Dir), os.DirFS(string(o.Dir))); err != nil {
		t.Fatal(err)
	}
	second := mustOpen(t, copied)
	code, err := first.Book.CreateCode(t.Context(), "test", "SN-1", "default", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	label, err := second.Book.Label(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Book.CheckCode(t.Context(), label, "SN-1", code.Code); err != nil {
		t.Errorf("a code of the first server on the second: %v", err)
	}
	one, err := first.ServerCertificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two, err := second.ServerCertificate(t.Context())
	if err != nil || !one.Leaf().Equal(two.Leaf()) {
		t.Errorf("the copied server certificate is not used: %v", err)
	}
}
