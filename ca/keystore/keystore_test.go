// Keys at rest, as openssl and the file system see them.

package keystore_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

var passphrase = []byte("correct horse")

const uri = "file:keys/ca.pem"

func create(dir, uri, spec string) (crypto.Signer, error) {
	key, _, err := keystore.New(dir, passphrase).Create(uri, spec)
	return key, err
}

func signs(key crypto.Signer) error {
	digest := sha256.Sum256([]byte("x"))
	_, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	return err
}

func samePublic(a, b crypto.Signer) bool {
	return a.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(b.Public())
}

func TestKeysAreEncryptedAtRest(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	for _, spec := range keystore.Specs {
		t.Run(spec, func(t *testing.T) {
			t.Parallel()
			if spec == "rsa:4096" && testing.Short() {
				t.Skip("seconds to make the key")
			}
			dir := t.TempDir()
			key, err := create(dir, uri, spec)
			if err != nil {
				t.Fatal(err)
			}
			again, err := keystore.New(dir, passphrase).Open(uri)
			if err != nil || !samePublic(again, key) {
				t.Fatalf("opened again: %v", err)
			}
			path := filepath.Join(dir, "keys/ca.pem")
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(content, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----")) || bytes.Count(content, []byte("-----BEGIN")) != 1 {
				t.Errorf("the file begins with %.40q", content)
			}
			structure := harness.MustRun(t, harness.Program(t, "openssl"), "asn1parse", "-in", path).Stdout
			for _, want := range []string{"PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc", fmt.Sprintf(":%X\n", big.NewInt(keystore.Iterations).Bytes())} {
				if !strings.Contains(structure, want) {
					t.Errorf("no %q in the file's structure", want)
				}
			}
			// What openssl decrypts signs what our key verifies.
			pass := testpki.WriteFile(t, filepath.Join(dir, "pass"), passphrase)
			plain := harness.MustRun(t, harness.Program(t, "openssl"), "pkcs8", "-in", path, "-passin", "file:"+pass, "-topk8", "-nocrypt").Stdout
			if !strings.Contains(plain, "BEGIN PRIVATE KEY") {
				t.Errorf("openssl got %.30q", plain)
			}
			wrong := testpki.WriteFile(t, filepath.Join(dir, "wrong"), []byte("correct horsf"))
			if r := harness.Run(t, harness.Program(t, "openssl"), "pkcs8", "-in", path, "-passin", "file:"+wrong, "-topk8", "-nocrypt"); r.Code == 0 {
				t.Error("openssl opened it with a wrong passphrase")
			}
			digest := sha256.Sum256([]byte("x"))
			if _, err := again.Sign(nil, digest[:], crypto.SHA256); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTwoKeysShareNothing(t *testing.T) {
	t.Parallel()
	key, err := keystore.Generate("ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	a, err := keystore.Encrypt(key, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	b, err := keystore.Encrypt(key, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(string(a), "\n"); strings.Contains(string(b), lines[2]) || strings.Contains(string(b), lines[3]) {
		t.Error("the same key encrypted twice looks the same: no salt")
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, err := create(dir, uri, "ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "keys/ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"plain.pem": testpki.KeyPEM(t, key),
		"empty.pem": nil,
		"half.pem":  good[:len(good)/2],
		"flip.pem":  bytes.Replace(good, good[200:204], []byte("AAAA"), 1),
		"cert.pem":  testpki.Root(t, "x").PEM(),
	} {
		testpki.WriteFile(t, filepath.Join(dir, "keys", name), content)
		if k, err := keystore.New(dir, passphrase).Open("file:keys/" + name); err == nil {
			t.Errorf("%s: opened %T", name, k)
		}
	}
	for _, wrong := range []string{"", "Correct horse", "correct horse ", "correct horse\n"} {
		_, err := keystore.New(dir, []byte(wrong)).Open(uri)
		if err == nil || errors.Is(err, keystore.ErrNotHere) {
			t.Errorf("with passphrase %q: %v", wrong, err)
		} else if wrong != "" && strings.Contains(err.Error(), wrong) {
			t.Errorf("the error shows the passphrase: %v", err)
		}
	}
	if _, err := keystore.New(dir, passphrase).Open("file:keys/missing.pem"); !errors.Is(err, keystore.ErrNotHere) {
		t.Errorf("a missing file: %v", err)
	}
	for _, outside := range []string{"", "keys/ca.pem", "softkms:x", "file:../ca.pem", "file:/etc/passwd", "file:keys/../../x", "file:"} {
		if _, err := keystore.New(dir, passphrase).Open(outside); err == nil || errors.Is(err, keystore.ErrNotHere) {
			t.Errorf("%q: %v", outside, err)
		}
		if _, err := create(dir, outside, "ec:P-256"); err == nil {
			t.Errorf("%q: made", outside)
		}
	}
	if _, err := keystore.Encrypt(key, nil); err == nil {
		t.Error("encrypted without a passphrase")
	}
	for _, spec := range []string{"", "rsa:2048", "ec:P-521", "ed25519"} {
		if _, err := keystore.Generate(spec); err == nil {
			t.Errorf("a CA key of kind %q", spec)
		}
	}
}

// Not parallel: the umask belongs to the whole process.
func TestKeyFilesArePrivateWhateverTheUmask(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := t.TempDir()
	if _, err := create(dir, uri, "ec:P-256"); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out.pem")
	if err := keystore.New(dir, passphrase).Export(uri, out); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{filepath.Join(dir, "keys/ca.pem"): 0o600, out: 0o600, filepath.Join(dir, "keys"): 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o", path, got)
		}
	}
}

func TestExportAndRemove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, err := create(dir, uri, "ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	taken := testpki.WriteFile(t, filepath.Join(dir, "taken"), []byte("something of the user's"))
	if err := keystore.New(dir, passphrase).Export(uri, taken); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("onto a file that exists: %v", err)
	}
	if content, _ := os.ReadFile(taken); string(content) != "something of the user's" {
		t.Error("the user's file was overwritten")
	}
	if err := keystore.New(dir, passphrase).Export(uri, filepath.Join(dir, "missing/out.pem")); err == nil {
		t.Error("into a directory that is not there")
	}
	out := filepath.Join(dir, "out.pem")
	for range 2 { // again after a crash
		if err := keystore.New(dir, passphrase).Export(uri, out); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := keystore.New(dir, passphrase).Open(uri); err != nil {
		t.Fatalf("after the export, before the removal: %v", err)
	}
	if err := keystore.New(dir, passphrase).Remove(uri); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.New(dir, passphrase).Open(uri); !errors.Is(err, keystore.ErrNotHere) {
		t.Errorf("after the removal: %v", err)
	}
	content, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	again, err := keystore.Decrypt(content, passphrase, out)
	if err != nil || !samePublic(again, key) {
		t.Errorf("the exported key: %v", err)
	}
}

func TestSibling(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"file:keys/devices.pem": "file:keys/ocsp-devices.pem",
		"pkcs11:module-path=/usr/lib/m.so;token=My%20Token;id=%01%02;object=devices?pin-source=/etc/pin": "pkcs11:module-path=/usr/lib/m.so;token=My%20Token;object=ocsp-devices?pin-source=/etc/pin",
		"pkcs11:token=x;id=%01":                  "pkcs11:token=x;object=ocsp-devices",
		"tpmkms:name=devices;device=/dev/tpmrm0": "tpmkms:name=ocsp-devices;device=/dev/tpmrm0",
		"awskms:key-id=1234;region=eu-central-1": "file:keys/ocsp-devices.pem",
	} {
		if got, err := keystore.Sibling(uri, "ocsp-devices"); err != nil || got != want {
			t.Errorf("%s: %s, %v", uri, got, err)
		}
	}
	if got, err := keystore.Sibling("devices", "x"); err == nil {
		t.Errorf("without a scheme: %s", got)
	}
}
