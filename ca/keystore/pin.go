// The PIN of a token. It comes from a file or a systemd credential at each login. A token locks itself after a few wrong PINs: one that was
// refused is not tried again before its file is written anew.

package keystore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

var errPIN = errors.New("the token refuses the PIN")

// credentialPrefix begins a pin-source that is a systemd credential.
const credentialPrefix = "credential:"

// pinFile is the file that a pin-source names.
func pinFile(source string) (string, error) {
	if name, ok := strings.CutPrefix(source, credentialPrefix); ok {
		if name == "" || name != filepath.Base(name) {
			return "", fmt.Errorf("pin-source %q: want credential:NAME", source)
		}
		return filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), name), nil
	}
	path := strings.TrimPrefix(strings.TrimPrefix(source, "file://"), "file:")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("pin-source %q: want an absolute path, or credential:NAME for a systemd credential", source)
	}
	return path, nil
}

// pinAttempt is a PIN and what tells it from a later content of its file.
type pinAttempt struct {
	pin    string
	digest [sha256.Size]byte
	time   time.Time
}

// refusedPIN remembers the last attempt that failed.
type refusedPIN struct {
	mu   sync.Mutex
	last *pinAttempt
}

func (p *refusedPIN) read(source string) (pinAttempt, error) {
	if source == "" {
		return pinAttempt{}, nil
	}
	path, err := pinFile(source)
	if err != nil {
		return pinAttempt{}, err
	}
	if strings.HasPrefix(source, credentialPrefix) && os.Getenv("CREDENTIALS_DIRECTORY") == "" {
		return pinAttempt{}, fmt.Errorf("pin-source %s: there are no systemd credentials here", source)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return pinAttempt{}, fmt.Errorf("PIN: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return pinAttempt{}, fmt.Errorf("PIN: %w", err)
	}
	pin := bytes.TrimRight(content, "\r\n")
	if len(pin) == 0 {
		return pinAttempt{}, fmt.Errorf("PIN: %s is empty", path)
	}
	attempt := pinAttempt{pin: string(pin), digest: sha256.Sum256(pin), time: info.ModTime()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last != nil && p.last.digest == attempt.digest && p.last.time.Equal(attempt.time) {
		return pinAttempt{}, fmt.Errorf("%w in %s; it is not tried again before that file is written anew, because tokens lock themselves", errPIN, path)
	}
	return attempt, nil
}

func (p *refusedPIN) refuse(attempt pinAttempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	attempt.pin = ""
	p.last = &attempt
}
