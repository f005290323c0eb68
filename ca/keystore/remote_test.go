//go:build cgo

// Keys in tokens, against SoftHSM2. The module reads its configuration once for the process: the tests share a SoftHSM2 and have tokens of
// their own; they run one after the other, because a token that comes back ends the sessions with the others.

package keystore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

var hsm struct {
	sync.Mutex
	dir string
	*harness.HSM
}

// token makes a token and the file with its PIN.
func token(t testing.TB, label string) (pinFile string) {
	t.Helper()
	hsm.Lock()
	defer hsm.Unlock()
	if hsm.HSM == nil {
		dir, err := os.MkdirTemp("", "natal-softhsm-")
		if err != nil {
			t.Fatal(err)
		}
		hsm.dir, hsm.HSM = dir, harness.NewHSM(t, dir)
		os.Setenv("SOFTHSM2_CONF", hsm.Conf)
	}
	hsm.InitToken(t, label)
	return testpki.WriteFile(t, filepath.Join(t.TempDir(), "pin"), []byte(harness.PIN+"\n"))
}

func TestMain(m *testing.M) {
	code := m.Run()
	if hsm.dir != "" {
		os.RemoveAll(hsm.dir)
	}
	os.Exit(code)
}

func store(t *testing.T) *keystore.Store {
	s := keystore.New(t.TempDir(), passphrase)
	t.Cleanup(s.Close)
	return s
}

func TestTokenKeys(t *testing.T) {
	pin := token(t, "specs")
	s := store(t)
	for _, spec := range []string{"ec:P-256", "ec:P-384", "rsa:4096"} {
		object := strings.ReplaceAll(strings.ToLower(spec), ":", "-")
		uri := hsm.URI("specs", object, pin)
		key, stored, err := s.Create(uri, spec)
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		if err := signs(key); err != nil {
			t.Errorf("%s: %v", spec, err)
		}
		if strings.Contains(stored, harness.PIN) || !strings.Contains(stored, ";id=%01") {
			t.Errorf("%s is stored as %s", spec, stored)
		}
		attributes := hsm.Tool(t, "specs", "--list-objects", "--type", "privkey", "--id", harness.HexID(stored))
		for _, want := range []string{"label:      " + object, "sensitive", "never extractable"} {
			if !strings.Contains(attributes, want) {
				t.Errorf("%s: no %q in\n%s", spec, want, attributes)
			}
		}
		if _, _, err := s.Create(uri, spec); !errors.Is(err, keystore.ErrExists) {
			t.Errorf("%s made twice: %v", spec, err)
		}
		again, err := store(t).Open(stored)
		if err != nil || !samePublic(again, key) {
			t.Errorf("%s opened by another: %v", spec, err)
		}
		if err := s.Export(stored, filepath.Join(t.TempDir(), "out")); !errors.Is(err, keystore.ErrCaptive) {
			t.Errorf("%s exported: %v", spec, err)
		}
		if err := s.Remove(stored); !errors.Is(err, keystore.ErrCaptive) {
			t.Errorf("%s removed: %v", spec, err)
		}
	}
	if _, err := s.Open(hsm.URI("specs", "missing", pin)); !errors.Is(err, keystore.ErrNotHere) {
		t.Errorf("a key that is not there: %v", err)
	}
}

func TestTokenTakenAwayAndPutBack(t *testing.T) {
	goes, stays := token(t, "goes"), token(t, "stays")
	s := store(t)
	key, uri, err := s.Create(hsm.URI("goes", "ca", goes), "ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	other, otherURI, err := s.Create(hsm.URI("stays", "ca", stays), "ec:P-384")
	if err != nil {
		t.Fatal(err)
	}
	hsm.Remove(t, "goes")
	if err := s.Check(uri); err == nil {
		t.Error("the key of a token that is away is up")
	}
	if err := signs(key); err == nil {
		t.Error("it signs")
	}
	for range 3 { // the other goes on, while the first is looked for
		time.Sleep(100 * time.Millisecond)
		s.Check(uri)
		if err := signs(other); err != nil {
			t.Errorf("the other token's key: %v", err)
		}
	}
	hsm.Restore(t, "goes")
	harness.Eventually(t, 20*time.Second, "the key to be back", func() bool {
		s.Check(otherURI)
		return s.Check(uri) == nil
	})
	if err := signs(key); err != nil {
		t.Errorf("back, and it does not sign: %v", err)
	}
	if err := signs(other); err != nil {
		t.Errorf("the other token's key: %v", err)
	}
}

func TestWrongPINIsTriedOnce(t *testing.T) {
	pin := token(t, "pin")
	maker := store(t)
	if _, _, err := maker.Create(hsm.URI("pin", "ca", pin), "ec:P-256"); err != nil {
		t.Fatal(err)
	}
	maker.Close() // a process that is logged in is not asked again
	testpki.WriteFile(t, pin, []byte("111111"))
	s := store(t)
	uri := hsm.URI("pin", "ca", pin)
	first := s.Check(uri)
	if first == nil || !strings.Contains(first.Error(), "PIN") || strings.Contains(first.Error(), "111111") {
		t.Fatalf("a wrong PIN: %v", first)
	}
	time.Sleep(1100 * time.Millisecond)
	if again := s.Check(uri); again == nil || !strings.Contains(again.Error(), "not tried again") {
		t.Errorf("the same once more: %v", again)
	}
	testpki.WriteFile(t, pin, []byte(harness.PIN))
	harness.Eventually(t, 5*time.Second, "the right PIN to be tried", func() bool { return s.Check(uri) == nil })
}

func TestModuleThatIsNotThereIsNamed(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "module.so")
	err := store(t).Check("pkcs11:module-path=" + missing + ";token=t;object=ca?pin-source=" + token(t, "named"))
	if err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v, want %s in it", err, missing)
	}
}

func TestSlowTokenIsBoundedAndAlone(t *testing.T) {
	slowPIN := token(t, "slow")
	module, control := hsm.SlowModule(t, t.TempDir())
	slow := fmt.Sprintf("pkcs11:module-path=%s;token=slow;object=ca?pin-source=%s", module, slowPIN)
	s := store(t)
	key, uri, err := s.Create(slow, "ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	quick, _, err := s.Create("file:keys/quick.pem", "ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	harness.SetSlow(t, control, 300, 0)
	begun := time.Now()
	var group sync.WaitGroup
	var mu sync.Mutex
	done, busy := 0, 0
	for range 200 {
		group.Go(func() {
			err := signs(key)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				done++
			case errors.Is(err, keystore.ErrBusy):
				busy++
			default:
				t.Errorf("a slow token: %v", err)
			}
		})
	}
	for range 20 {
		before := time.Now()
		if err := signs(quick); err != nil || time.Since(before) > time.Second {
			t.Errorf("a key of another kind took %v: %v", time.Since(before), err)
		}
	}
	patientErr := signs(keystore.Patient(key))
	group.Wait()
	if done < 50 || busy < 100 || patientErr != nil || time.Since(begun) > 10*time.Second {
		t.Errorf("%d signed, %d refused, a patient one %v, in %v", done, busy, patientErr, time.Since(begun))
	}
	if err := s.Check(uri); err != nil {
		t.Errorf("slow is not down: %v", err)
	}
	harness.SetSlow(t, control, 0, 4000)
	begun = time.Now()
	if err := s.Check(uri); !errors.Is(err, keystore.ErrNoAnswer) || time.Since(begun) > 4*time.Second {
		t.Errorf("a token that does not answer, after %v: %v", time.Since(begun), err)
	}
	if err := signs(key); err == nil || time.Since(begun) > 4*time.Second {
		t.Errorf("a key that is down was tried: %v", err)
	}
	harness.SetSlow(t, control, 0, 0)
	harness.Eventually(t, 10*time.Second, "the token to answer again", func() bool { return s.Check(uri) == nil })
	if err := signs(key); err != nil {
		t.Error(err)
	}
}

func TestURIsThatAreRefused(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"pkcs11:token=T;object=ca?pin-value=648219":           "PIN",
		"pkcs11:token=T;object=ca;pin-value=648219":           "PIN",
		"pkcs11:token=T;object=ca?pin-source=pin":             "absolute",
		"pkcs11:token=T;object=ca?pin-source=credential:../x": "credential:NAME",
		"pkcs11:token=T":                       "object=",
		"pkcs11:object=ca":                     "token=",
		"pkcs11:token=T;serial=1;object=ca":    "one of",
		"pkcs11:token=T;objekt=ca":             "objekt",
		"pkcs11:token=T;object=a;object=b":     "once",
		"tpmkms:device=/dev/tpmrm0":            "name=",
		"tpmkms:name=ca;storage-directory=tpm": "absolute",
		"awskms:key-id=1":                      "TAGS=awskms",
		"yubikey:slot-id=9a":                   "pkcs11",
		"file:../x":                            "inside the data directory",
	} {
		err := keystore.CheckURI(uri)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "648219") {
			t.Errorf("%s: %v", uri, err)
		}
	}
	for _, uri := range []string{
		"file:keys/ca.pem", "tpmkms:name=ca", "pkcs11:slot-id=1;id=%01;module-path=/usr/lib/m.so",
		"pkcs11:token=My%20Token;object=ca?pin-source=credential:natal-pin",
	} {
		if err := keystore.CheckURI(uri); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func BenchmarkToken(b *testing.B) {
	pin := token(b, "bench")
	s := keystore.New(b.TempDir(), passphrase)
	defer s.Close()
	for _, spec := range []string{"ec:P-256", "ec:P-384", "rsa:4096"} {
		key, _, err := s.Create(hsm.URI("bench", strings.ReplaceAll(spec, ":", "-"), pin), spec)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(spec, func(b *testing.B) {
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := signs(keystore.Patient(key)); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
		})
	}
}
