// Where the passphrase of the keys comes from. It is never an argument and never stands in the configuration.

package instance

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/natal-pki/natal/internal/atomicfile"
)

// Credential is the name of the systemd credential that holds the passphrase.
const Credential = "natal-passphrase"

const minPassphrase = 12

// ErrNoPassphrase is returned when no source has a passphrase.
var ErrNoPassphrase = errors.New("no passphrase for the keys: give --passphrase-file FILE or the systemd credential " + Credential)

// passphraseFile is the file to read: the systemd credential, else flag, else configured, else DIR/passphrase.
func (d Dir) passphraseFile(flag, configured string) (string, error) {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		path := filepath.Join(dir, Credential)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	for _, path := range []string{flag, configured} {
		if path != "" {
			return path, nil
		}
	}
	if _, err := os.Stat(d.passphrase()); err != nil {
		return "", ErrNoPassphrase
	}
	return d.passphrase(), nil
}

// Passphrase is the passphrase of a directory of keys that is no instance: from the systemd credential, the file of the flag, or DIR/passphrase.
func (d Dir) Passphrase(flag string) ([]byte, error) { return d.readPassphrase(flag, "") }

func (d Dir) readPassphrase(flag, configured string) ([]byte, error) {
	path, err := d.passphraseFile(flag, configured)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	passphrase := bytes.TrimRight(content, "\r\n")
	if len(passphrase) < minPassphrase {
		return nil, fmt.Errorf("passphrase in %s: shorter than %d characters", path, minPassphrase)
	}
	return passphrase, nil
}

// MakePassphrase writes a random passphrase to DIR/passphrase, mode 0600, unless there is one, and says whether it did. Beside the keys
// it protects nothing: it is for trying out.
func (d Dir) MakePassphrase() (made bool, err error) {
	if err := makePrivate(string(d)); err != nil {
		return false, err
	}
	if _, err := os.Stat(d.passphrase()); err == nil {
		return false, nil
	}
	random := make([]byte, 20)
	rand.Read(random)
	text := base32.StdEncoding.EncodeToString(random) + "\n"
	return true, atomicfile.Write(d.passphrase(), []byte(text), 0o600)
}
