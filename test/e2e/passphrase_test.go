// The passphrase that production servers get from systemd stands in a file here.

package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

func passphraseFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(file, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
