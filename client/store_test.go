package client

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// identityOf is a leaf as an enrollment would give it.
func identityOf(leaf *testpki.Leaf) *Identity {
	id := &Identity{Certificate: leaf.Certificate, Chain: []*x509.Certificate{leaf.Certificate}, Key: leaf.Key}
	a := leaf.Issuer
	for ; a.Parent != nil; a = a.Parent {
		id.Chain = append(id.Chain, a.Certificate)
	}
	id.Anchors = []*x509.Certificate{a.Certificate}
	return id
}

func keepPair(t testing.TB, s *Store, leaf *testpki.Leaf) *Identity {
	t.Helper()
	id := identityOf(leaf)
	if err := s.Commit(id); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestStoreFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "device")
	old := syscall.Umask(0) // the worst umask; not parallel, since it is the process's
	defer syscall.Umask(old)
	s := openStore(t, dir)
	if _, err := s.Load(); !errors.Is(err, ErrNoIdentity) {
		t.Fatalf("empty store: %v", err)
	}
	ca := testpki.Root(t, "Root").Intermediate(t, "Devices")
	for i, leaf := range []*testpki.Leaf{ca.Leaf(t, "dev-1"), ca.Leaf(t, "dev-1", testpki.KeySpec("rsa:2048")), ca.Leaf(t, "dev-1", testpki.KeySpec("ec:P-384"))} {
		if _, err := s.Stage("ec:P-256"); err != nil {
			t.Fatal(err)
		}
		keepPair(t, s, leaf)
		if err := s.Confirm(leaf.Certificate); err != nil || !s.Proven() {
			t.Fatalf("confirm: %v", err)
		}
		checkFiles(t, dir, leaf)
		if _, err := os.Stat(filepath.Join(dir, nextKeyFile)); err == nil {
			t.Errorf("renewal %d left its key behind", i)
		}
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if entry.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkFiles looks at the directory as other programs do.
func checkFiles(t *testing.T, dir string, leaf *testpki.Leaf) {
	t.Helper()
	bundle := filepath.Join(dir, "bundle.pem")
	for _, files := range [][2]string{{bundle, bundle}, {filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}} {
		pair, err := tls.LoadX509KeyPair(files[0], files[1])
		if err != nil {
			t.Fatal(err)
		}
		if len(pair.Certificate) != 2 || !bytes.Equal(pair.Certificate[0], leaf.Certificate.Raw) || !bytes.Equal(pair.Certificate[1], leaf.Issuer.Certificate.Raw) {
			t.Errorf("%s holds %d certificates: it must be the leaf and the issuing CA", files[0], len(pair.Certificate))
		}
	}
	trust, err := os.ReadFile(filepath.Join(dir, "trust.pem"))
	if err != nil {
		t.Fatal(err)
	}
	anchors, err := ParseCertificates(trust)
	if err != nil || len(anchors) != 1 || !anchors[0].Equal(leaf.Issuer.Parent.Certificate) {
		t.Errorf("trust.pem: %v", err)
	}
}

func TestStageIsRepeatable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	first, err := s.Stage("ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	again, err := openStore(t, dir).Stage("ec:P-256")
	if err != nil || !sameKey(first.Public(), again.Public()) {
		t.Errorf("after a restart another key is used: %v", err)
	}
}

func TestStageMakesANewKey(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	first, err := s.Stage("ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.Stage("ec:P-384")
	if err != nil || KeySpec(other.Public()) != "ec:P-384" {
		t.Fatalf("the server wants P-384: %v", err)
	}
	ca := testpki.Root(t, "Root").Intermediate(t, "Devices")
	keepPair(t, s, ca.Leaf(t, "dev-1", testpki.WithKey(other)))
	next, err := s.Stage("ec:P-384")
	if err != nil || sameKey(next.Public(), other.Public()) || sameKey(next.Public(), first.Public()) {
		t.Errorf("a key was used twice: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), nextKeyFile), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stage("ec:P-384"); err != nil {
		t.Errorf("a torn key file: %v", err)
	}
}

func TestOneRenewalAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := openStore(t, dir), openStore(t, dir)
	if _, err := a.Stage("ec:P-256"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stage("ec:P-256"); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("two renewals at once: %v", err)
	}
	if _, err := b.Load(); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("reading is not possible: %v", err)
	}
	a.Close()
	if _, err := b.Stage("ec:P-256"); err != nil {
		t.Errorf("after Close: %v", err)
	}
}

func TestForeignFilesAreNotTouched(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(dir); err == nil || !strings.Contains(err.Error(), "key.pem") {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("the file is now %q, %v", data, err)
	}
}

// TestDamagedFiles tears every file of the current slot in turn, at several lengths, alone and with others: the pair or the one before it loads.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	ca := testpki.Root(t, "Root").Intermediate(t, "Devices")
	first, second := ca.Leaf(t, "dev-1", testpki.Valid(time.Now().AddDate(0, -8, 0), time.Now().AddDate(0, 4, 0))), ca.Leaf(t, "dev-1")
	for _, damage := range []struct {
		name  string
		files []string
		want  *testpki.Leaf
	}{
		{"bundle", []string{bundleFile}, second},
		{"key", []string{keyFile}, second},
		{"cert", []string{certFile}, second},
		{"key and cert", []string{keyFile, certFile}, second},
		{"bundle and key", []string{bundleFile, keyFile}, first},
		{"all", []string{bundleFile, keyFile, certFile}, first},
		{"pointer", []string{"../" + currentLink}, second},
	} {
		for _, keep := range []float64{-1, 0, 0.3, 0.9} {
			dir := t.TempDir()
			s := openStore(t, dir)
			keepPair(t, s, first)
			if err := s.Confirm(first.Certificate); err != nil {
				t.Fatal(err)
			}
			keepPair(t, s, second)
			slotDir := filepath.Join(dir, s.current())
			for _, f := range damage.files {
				tear(t, filepath.Join(slotDir, f), keep)
			}
			s = openStore(t, dir)
			id, err := s.Load()
			if err != nil || !id.Certificate.Equal(damage.want.Certificate) {
				t.Errorf("%s torn at %.1f: %v", damage.name, keep, err)
				continue
			}
			checkFiles(t, dir, damage.want) // OpenStore has mended what others see
			keepPair(t, s, ca.Leaf(t, "dev-1"))
		}
	}
}

func tear(t testing.TB, path string, keep float64) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if keep < 0 || info.Mode()&fs.ModeSymlink != 0 {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.Truncate(path, int64(float64(info.Size())*keep)); err != nil {
		t.Fatal(err)
	}
}

// TestUnprovenPairDoesNotPushOutTheOldOne is INV-19: the last pair that worked survives any number of commits without a proof.
func TestUnprovenPairDoesNotPushOutTheOldOne(t *testing.T) {
	t.Parallel()
	ca := testpki.Root(t, "Root").Intermediate(t, "Devices")
	s := openStore(t, t.TempDir())
	good := ca.Leaf(t, "dev-1")
	keepPair(t, s, good)
	if err := s.Confirm(good.Certificate); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		keepPair(t, s, ca.Leaf(t, "dev-1"))
		found := false
		for _, name := range []string{"a", "b"} {
			if id, err := s.slot(name).read(); err == nil && id.Certificate.Equal(good.Certificate) {
				found = true
			}
		}
		if !found {
			t.Fatal("the pair that worked is gone, and the new one has not been used")
		}
	}
	if s.Proven() {
		t.Error("a new pair counts as proven")
	}
	if err := s.Confirm(good.Certificate); err != nil || s.Proven() {
		t.Errorf("the old certificate proves the new one: %v", err)
	}
}

func TestTLSConfigFollowsRenewals(t *testing.T) {
	t.Parallel()
	root := testpki.Root(t, "Root")
	ca := root.Intermediate(t, "Devices")
	dir := t.TempDir()
	s := openStore(t, dir)
	config := s.TLSConfig("broker", testpki.Pool(root))
	if config.MinVersion != tls.VersionTLS12 || config.ServerName != "broker" {
		t.Error("configuration")
	}
	if _, err := config.GetClientCertificate(nil); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("without a certificate: %v", err)
	}
	another := openStore(t, dir) // as another process would
	for _, store := range []*Store{s, another} {
		leaf := ca.Leaf(t, "dev-1")
		keepPair(t, store, leaf)
		cert, err := config.GetClientCertificate(nil)
		if err != nil || !cert.Leaf.Equal(leaf.Certificate) || len(cert.Certificate) != 2 {
			t.Errorf("the certificate did not follow: %v", err)
		}
	}
}

func TestStoreEnrollAndRenew(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	s := openStore(t, t.TempDir())
	c := p.client()
	first, err := s.Enroll(testContext(t), c, "ec:P-256", Request{})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Proven() {
		t.Error("the new pair was not proven")
	}
	second, err := s.Renew(testContext(t), c, "ec:P-256", Request{})
	if err != nil {
		t.Fatal(err)
	}
	if sameKey(first.Key.Public(), second.Key.Public()) || first.Certificate.Equal(second.Certificate) || !s.Proven() {
		t.Error("renewed with the same key, or not proven")
	}
	renewal := p.saw(wire.OpSimpleReenroll)
	if len(renewal) != 1 || len(renewal[0].presented) != 2 || !renewal[0].presented[0].Equal(first.Certificate) || renewal[0].header.Get("Authorization") != "" {
		t.Error("the renewal was not authenticated by the certificate alone")
	}
	last := p.saw("")
	if proof := last[len(last)-1]; proof.operation != wire.OpCACerts || len(proof.presented) == 0 || !proof.presented[0].Equal(second.Certificate) {
		t.Error("the new certificate was not presented")
	}
	if id, err := s.Load(); err != nil || !id.Certificate.Equal(second.Certificate) || len(id.Anchors) != 1 {
		t.Errorf("load: %v", err)
	}
}

// TestLostAnswerIsAskedForAgain: the certificate was issued and the answer lost; the repetition carries the same key.
func TestLostAnswerIsAskedForAgain(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	p.on(wire.OpSimpleEnroll, p.requireCode(losesAnswer))
	dir := t.TempDir()
	if _, err := openStore(t, dir).Enroll(testContext(t), p.client(), "ec:P-256", Request{}); err == nil {
		t.Fatal("the answer was not lost")
	}
	p.on(wire.OpSimpleEnroll, nil)
	if _, err := openStore(t, dir).Enroll(testContext(t), p.client(), "ec:P-256", Request{}); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, r := range p.saw(wire.OpSimpleEnroll) {
		der, err := wire.DecodeBase64(r.body)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		keys[string(csr.RawSubjectPublicKeyInfo)] = true
	}
	if len(keys) != 1 {
		t.Errorf("%d keys were sent", len(keys))
	}
}
