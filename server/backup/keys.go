// For whom a backup is encrypted, and what it is read with.

package backup

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
)

// minPassphrase is how short the passphrase of a backup may be.
const minPassphrase = 12

// Recipients reads age public keys: each is one (age1...) or a file with one a line. Alternatively a file with a passphrase. names says for whom the
// backup is, for the audit log.
func Recipients(keys []string, passphraseFile string) (list []age.Recipient, names string, err error) {
	if (len(keys) == 0) == (passphraseFile == "") {
		return nil, "", fmt.Errorf("a backup is encrypted: give --recipient (an age public key, or a file of them) or --backup-passphrase-file")
	}
	if passphraseFile != "" {
		passphrase, err := readPassphrase(passphraseFile)
		if err != nil {
			return nil, "", err
		}
		r, err := age.NewScryptRecipient(passphrase)
		return []age.Recipient{r}, "passphrase", err
	}
	var text []string
	for _, key := range keys {
		if strings.HasPrefix(key, "age1") {
			text = append(text, key)
			continue
		}
		content, err := os.ReadFile(key)
		if err != nil {
			return nil, "", fmt.Errorf("--recipient: %w", err)
		}
		for line := range strings.Lines(string(content)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				text = append(text, line)
			}
		}
	}
	if list, err = age.ParseRecipients(strings.NewReader(strings.Join(text, "\n"))); err != nil {
		return nil, "", fmt.Errorf("--recipient: %w", err)
	}
	return list, strings.Join(text, " "), nil
}

// Identities reads what a backup can be decrypted with: a file with age identities, or one with a passphrase.
func Identities(identityFile, passphraseFile string) ([]age.Identity, error) {
	if (identityFile == "") == (passphraseFile == "") {
		return nil, fmt.Errorf("give --identity (a file with the age key) or --backup-passphrase-file")
	}
	if passphraseFile != "" {
		passphrase, err := readPassphrase(passphraseFile)
		if err != nil {
			return nil, err
		}
		i, err := age.NewScryptIdentity(passphrase)
		return []age.Identity{i}, err
	}
	content, err := os.ReadFile(identityFile)
	if err != nil {
		return nil, err
	}
	list, err := age.ParseIdentities(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("%s: not a file of age identities", identityFile)
	}
	return list, nil
}

func readPassphrase(file string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	passphrase := strings.TrimRight(string(content), "\r\n")
	if len(passphrase) < minPassphrase {
		return "", fmt.Errorf("passphrase in %s: shorter than %d characters", file, minPassphrase)
	}
	return passphrase, nil
}

// Decrypt opens a backup.
func Decrypt(in io.Reader, keys []age.Identity) (io.Reader, error) {
	out, err := age.Decrypt(in, keys...)
	if err != nil {
		return nil, fmt.Errorf("the backup cannot be decrypted: %w", err)
	}
	return out, nil
}
