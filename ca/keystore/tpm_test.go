// A key in a TPM, which swtpm plays behind a socket.

package keystore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/test/e2e/harness"
)

// startTPM starts a TPM with its state in dir; the socket is in a directory of a short name.
func startTPM(t *testing.T, state, socket string) *harness.Process {
	t.Helper()
	os.Remove(socket)
	p := harness.Command{Path: harness.Program(t, "swtpm"), Args: []string{"socket", "--tpm2", "--tpmstate", "dir=" + state,
		"--server", "type=unixio,path=" + socket, "--ctrl", "type=unixio,path=" + socket + ".ctrl", "--flags", "not-need-init,startup-clear"}}.Start(t)
	harness.Eventually(t, 10*time.Second, "the TPM to listen", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	return p
}

func TestTPMKeys(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "swtpm")
	short, err := os.MkdirTemp("", "tpm") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	state, socket, dir := t.TempDir(), filepath.Join(short, "tpm"), t.TempDir()
	tpm := startTPM(t, state, socket)
	s := keystore.New(dir, passphrase)
	uri := "tpmkms:name=ca;device=" + socket
	harness.Eventually(t, 10*time.Second, "the TPM to be up", func() bool { return s.Vacant(uri) == nil })
	key, stored, err := s.Create(uri, "ec:P-256")
	if err != nil {
		t.Fatal(err)
	}
	if err := signs(key); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Create(uri, "ec:P-256"); !errors.Is(err, keystore.ErrExists) {
		t.Errorf("made twice: %v", err)
	}
	if _, err := s.Open("tpmkms:name=other;device=" + socket); !errors.Is(err, keystore.ErrNotHere) {
		t.Errorf("a key that is not there: %v", err)
	}
	if again, err := keystore.New(dir, passphrase).Open(stored); err != nil || !samePublic(again, key) {
		t.Errorf("opened by another: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "keys", "tpm")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the TPM's blobs, which only it can read: %v, %v", info, err)
	}
	tpm.Stop(t)
	if err := s.Check(stored); err == nil {
		t.Error("the key of a TPM that is away is up")
	}
	if err := signs(key); err == nil {
		t.Error("it signs")
	}
	startTPM(t, state, socket)
	harness.Eventually(t, 10*time.Second, "the key to be back", func() bool { return s.Check(stored) == nil })
	if err := signs(key); err != nil {
		t.Error(err)
	}
	if strings.Contains(keystore.Shown(stored), "?") {
		t.Error(stored)
	}
}
