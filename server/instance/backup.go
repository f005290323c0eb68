// What a backup of an instance consists of, and putting it back. The passphrase of the keys is no part of it: beside the keys it would undo
// their encryption.

package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/server/backup"
)

// backupDirs are backed up with all files in them, not those in directories below.
var backupDirs = []string{"admin", "audit", "ca", "keys", filepath.Join("keys", "tpm")}

const backupWork = "backup.tmp-" // beginning of the directory that a backup is collected in

// WriteBackup writes a backup, in clear, as the installation is at one moment while it goes on. Encrypt what it writes.
func (i *Instance) WriteBackup(ctx context.Context, out io.Writer) error {
	work, err := os.MkdirTemp(string(i.Dir), backupWork)
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	m, err := i.collect(ctx, work)
	if err != nil {
		return err
	}
	return m.Write(out)
}

// collect copies the database first: every certificate in it has its CA's key in a file, whatever is made meanwhile.
func (i *Instance) collect(ctx context.Context, work string) (*backup.Manifest, error) {
	m := &backup.Manifest{Format: backup.Format, MadeAt: i.Clock.Now()}
	copied, err := i.copyDatabase(ctx, work, m)
	if err != nil {
		return nil, err
	}
	names := []string{"config.yaml", "trust.pem"}
	for _, dir := range backupDirs {
		entries, err := os.ReadDir(i.Dir.Path(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			if entry.Type().IsRegular() && !strings.HasPrefix(entry.Name(), ".") {
				names = append(names, filepath.Join(dir, entry.Name()))
			}
		}
	}
	for n, name := range names {
		// A file may be replaced while the backup is written, so a copy of it is.
		copied := filepath.Join(work, fmt.Sprint(n))
		content, err := os.ReadFile(i.Dir.Path(name))
		if err == nil {
			err = os.WriteFile(copied, content, 0o600)
		}
		if err == nil {
			err = m.Add(name, copied)
		}
		if err != nil {
			return nil, err
		}
	}
	if copied == "" {
		return m, nil
	}
	return m, m.Add(filepath.Base(copied), copied)
}

// copyDatabase returns the file with the copy; "" when the database is to be backed up otherwise.
func (i *Instance) copyDatabase(ctx context.Context, work string, m *backup.Manifest) (string, error) {
	address, err := i.Dir.databaseAddress(i.Settings.DatabaseURLFile)
	if err != nil {
		return "", err
	}
	path, isSQLite := strings.CutPrefix(address, "sqlite:")
	if !isSQLite { // the head is read before the dump: the dump has at least that
		head, err := audit.Current(ctx, i.DB)
		if err != nil {
			return "", err
		}
		m.Epoch, m.Seq, m.Hash = head.Epoch, head.Seq, head.Hash
		return i.dumpPostgres(ctx, address, work, m)
	}
	copied := filepath.Join(work, backup.SQLiteName)
	if err := fault.Step("instance.snapshot", func() error { return database.SnapshotSQLite(ctx, path, copied) }); err != nil {
		return "", err
	}
	head, err := headOf(ctx, copied)
	m.Database, m.Epoch, m.Seq, m.Hash = database.SQLite, head.Epoch, head.Seq, head.Hash
	return copied, err
}

// headOf opens a copy of a SQLite database, which checks its structure, and reads its head.
func headOf(ctx context.Context, path string) (audit.Head, error) {
	db, err := database.OpenExisting(ctx, "sqlite:"+path)
	if err != nil {
		return audit.Head{}, err
	}
	head, err := audit.Current(ctx, db)
	return head, errors.Join(err, db.Close())
}

// CheckBackup reads a whole backup: every file against the manifest, the database's structure and its audit log. work is an empty private directory.
func CheckBackup(ctx context.Context, in io.Reader, work string) (backup.Manifest, error) {
	m, err := backup.Read(in, func(backup.Manifest) error { return nil }, func(name string, content io.Reader) error {
		if name != backup.SQLiteName {
			_, err := io.Copy(io.Discard, content)
			return err
		}
		return putFile(filepath.Join(work, name), content)
	})
	if err != nil || m.Database != database.SQLite {
		return m, err
	}
	db, err := database.OpenExisting(ctx, "sqlite:"+filepath.Join(work, backup.SQLiteName))
	if err != nil {
		return m, err
	}
	_, err = audit.Verify(ctx, db, &audit.Head{Seq: m.Seq, Hash: m.Hash})
	return m, errors.Join(err, db.Close())
}

// Unpack puts the files of a backup into the directory, which is new or empty. Until the restore is stated nothing can be served from it. The caller holds the
// directory's lock.
func (d Dir) Unpack(in io.Reader) (backup.Manifest, error) {
	var configuration []byte
	m, err := backup.Read(in, func(m backup.Manifest) error {
		if err := makePrivate(string(d)); err != nil {
			return err
		}
		return d.remember(memory{Epoch: m.Epoch, Seq: m.Seq, Hash: m.Hash, Unstated: true})
	}, func(name string, content io.Reader) (err error) {
		dir, _ := filepath.Split(name)
		if name == "config.yaml" {
			configuration, err = io.ReadAll(io.LimitReader(content, 1<<20))
			return err
		}
		if dir != "" && !slices.Contains(backupDirs, filepath.Clean(dir)) || dir == "" && !slices.Contains([]string{"trust.pem", backup.SQLiteName, backup.PostgresName}, name) {
			return fmt.Errorf("a backup has no file %q", name)
		}
		if err := makePrivate(d.Path(dir)); err != nil {
			return err
		}
		return putFile(d.Path(name), content)
	})
	if err != nil {
		return m, err
	}
	if configuration == nil {
		return m, errors.New("the backup has no config.yaml")
	}
	// Last: it says that the directory is complete.
	return m, fault.Step("instance.unpack_config", func() error { return atomicfile.Write(d.Config(), configuration, 0o600) })
}

func putFile(path string, content io.Reader) error {
	f, err := atomicfile.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return fault.Step("instance.unpack", f.Commit)
}

// removeBackupWork removes what a backup left that was killed.
func (d Dir) removeBackupWork() error {
	left, err := filepath.Glob(filepath.Join(escapeGlob(string(d)), backupWork+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// escapeGlob makes a path stand for itself in a pattern.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
