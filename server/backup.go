// est-server backup: everything that a new machine needs, except the passphrase of the keys, in one encrypted file.

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/backup"
	"github.com/natal-pki/natal/server/instance"
)

type backupCommand struct {
	jsonFlag
	File           string   `arg:"" help:"File to write; with --verify, to check. A file that exists is not overwritten."`
	Recipient      []string `help:"age public key (age1...) that the backup is encrypted to, or a file of them. May be repeated." placeholder:"KEY|FILE"`
	PassphraseFile string   `help:"Instead: file with a passphrase that it is encrypted with. (--passphrase-file is that of the keys.)" name:"backup-passphrase-file" placeholder:"FILE"`
	Verify         bool     `help:"Check a backup: every file in it against its manifest, the database, the audit log. Needs no data directory."`
	Identity       string   `help:"With --verify: file with the age identity that decrypts it." placeholder:"FILE"`
}

func (c *backupCommand) Run(a *app) error {
	if c.Verify {
		return c.verify(a)
	}
	if c.Identity != "" {
		return wrongUsage("--identity goes with --verify")
	}
	if a.Server != "" {
		return wrongUsage("a backup is made on the server's machine: --server does not go with it")
	}
	recipients, names, err := backup.Recipients(c.Recipient, c.PassphraseFile)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(c.File); err == nil {
		return fmt.Errorf("%s exists; nothing is overwritten", c.File)
	}
	file, err := filepath.Abs(c.File)
	if err != nil {
		return err
	}
	out, err := atomicfile.Create(file, 0o600)
	if err != nil {
		return err
	}
	defer out.Abort()
	var size counter
	err = a.with(func(api *api) error {
		answer, err := api.send(http.MethodPost, "/backup", admin.NewBackup{File: file, For: names})
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		return encryptTo(io.MultiWriter(out, &size), answer.Body, recipients)
	})
	if err != nil {
		return err
	}
	err = fault.Step("server.backup", out.CommitNew)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists; nothing is overwritten", c.File)
	}
	if err != nil {
		return err
	}
	return c.show(a, backupMade{File: file, Size: int64(size), For: names}, func(w io.Writer) {
		fmt.Fprintf(w, "backup in %s, %d bytes, encrypted for %s\n", file, int64(size), names)
	})
}

type backupMade struct {
	File string `json:"file"`
	Size int64  `json:"size"`
	For  string `json:"for"`
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func encryptTo(out io.Writer, in io.Reader, recipients []age.Recipient) error {
	encrypted, err := age.Encrypt(out, recipients...)
	if err != nil {
		return err
	}
	if _, err := io.Copy(encrypted, in); err != nil {
		return err
	}
	return encrypted.Close()
}

func (c *backupCommand) verify(a *app) error {
	if len(c.Recipient) > 0 {
		return wrongUsage("--recipient does not go with --verify")
	}
	in, content, err := openBackup(c.File, c.Identity, c.PassphraseFile)
	if err != nil {
		return err
	}
	defer in.Close()
	work, err := os.MkdirTemp("", "est-server-verify-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	m, err := instance.CheckBackup(a.ctx, content, work)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	return c.show(a, m, func(w io.Writer) {
		fmt.Fprintf(w, "the backup is whole: made at %s, %d files, database %s, epoch %d, audit head %d %s\n",
			m.MadeAt.Format(time.RFC3339), len(m.Files), m.Database, m.Epoch, m.Seq, m.Hash)
	})
}

// openBackup returns the file, to be closed, and what it holds in clear.
func openBackup(file, identity, passphraseFile string) (io.Closer, io.Reader, error) {
	keys, err := backup.Identities(identity, passphraseFile)
	if err != nil {
		return nil, nil, err
	}
	in, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	content, err := backup.Decrypt(in, keys)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", file, err), in.Close())
	}
	return in, content, nil
}
