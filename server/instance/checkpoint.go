// Once a day the head of the audit log is signed and added to DIR/audit/checkpoints.jsonl, with a key that does nothing else. A copy of
// that file on another machine shows later that no entry before it was removed or rewritten.

package instance

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/fault"
)

const (
	auditKeySpec    = "ec:P-256"
	checkpointEvery = 24 * time.Hour
)

// AuditKey is the public key of the checkpoints, PEM.
func (d Dir) AuditKey() string { return d.Path("audit", "public.pem") }

// Checkpoints is the file of the signed heads of the audit log, one JSON object a line.
func (d Dir) Checkpoints() string { return d.Path("audit", "checkpoints.jsonl") }

func (d Dir) auditKey() string { return d.Path("keys", "audit.pem") }

// makeAuditKey makes the key of the checkpoints, or writes down the public half, where it is missing.
func (d Dir) makeAuditKey(passphrase []byte) error {
	if _, err := os.Stat(d.AuditKey()); err == nil {
		return nil
	}
	if err := makePrivate(d.Path("audit")); err != nil {
		return err
	}
	key, err := d.openAuditKey(passphrase)
	if errors.Is(err, os.ErrNotExist) {
		key, err = d.newAuditKey(passphrase)
	}
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return fault.Step("instance.audit_public", func() error { return atomicfile.Write(d.AuditKey(), public, 0o600) })
}

func (d Dir) newAuditKey(passphrase []byte) (crypto.Signer, error) {
	key, err := keystore.Generate(auditKeySpec)
	if err != nil {
		return nil, err
	}
	encrypted, err := keystore.Encrypt(key, passphrase)
	if err != nil {
		return nil, err
	}
	return key, fault.Step("instance.audit_key", func() error { return atomicfile.Write(d.auditKey(), encrypted, 0o600) })
}

func (d Dir) openAuditKey(passphrase []byte) (crypto.Signer, error) {
	encrypted, err := os.ReadFile(d.auditKey())
	if err != nil {
		return nil, err
	}
	return keystore.Decrypt(encrypted, passphrase, d.auditKey())
}

// Checkpoint signs the head of the audit log, unless there is a checkpoint of the last day.
func (i *Instance) Checkpoint(ctx context.Context) error {
	content, err := os.ReadFile(i.Dir.Checkpoints())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	list, err := audit.ReadCheckpoints(content)
	if err != nil {
		return fmt.Errorf("%s: %w", i.Dir.Checkpoints(), err)
	}
	head, err := audit.Current(ctx, i.DB)
	if err != nil {
		return err
	}
	now := i.Clock.Now()
	if n := len(list); n > 0 {
		since := now.Sub(list[n-1].SignedAt())
		if list[n-1].Head().Hash == head.Hash || since >= 0 && since < checkpointEvery { // one from the future was signed by a wrong clock: do not wait for it
			return nil
		}
	}
	key, err := i.Dir.openAuditKey(i.passphrase)
	if err != nil {
		return err
	}
	checkpoint, err := audit.Sign(head, now, key)
	if err != nil {
		return err
	}
	line, err := checkpoint.Line()
	if err != nil {
		return err
	}
	return fault.Step("instance.checkpoint", func() error { return atomicfile.Write(i.Dir.Checkpoints(), append(content, line...), 0o600) })
}
