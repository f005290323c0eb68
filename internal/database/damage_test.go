// A database that cannot be trusted is refused and left as it is.

package database_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/storage"
)

// filled makes a database of about a hundred pages and returns its path.
func filled(t *testing.T) string {
	t.Helper()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "est.db")
	db, err := database.Open(ctx, "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Write(ctx, "test.fill", func(tx *database.Tx) error {
		for i := range 400 {
			if err := put(fmt.Sprintf("%04d-%s", i, strings.Repeat("x", 400)))(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDamagedFileIsRefused(t *testing.T) {
	t.Parallel()
	const page = 4096
	whole, err := os.ReadFile(filled(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(whole) < 60*page {
		t.Fatalf("only %d bytes", len(whole))
	}
	leaf := 0 // a page with rows
	for n := range len(whole) / page {
		if whole[n*page] == 0x0d && whole[n*page+4] > 4 {
			leaf = n * page
		}
	}
	edit := func(change func(b []byte)) []byte {
		b := bytes.Clone(whole)
		change(b)
		return b
	}
	for name, content := range map[string][]byte{
		"garbage":                           bytes.Repeat([]byte("garbage "), 4096),
		"text":                              []byte("this is no database\n"),
		"another magic":                     edit(func(b []byte) { copy(b, "PostgreSQL forma") }),
		"half":                              whole[:len(whole)/2],
		"half, whole pages":                 whole[:len(whole)/page/2*page],
		"the last page missing":             whole[:len(whole)-page],
		"the first page alone":              whole[:page],
		"a page of zeros":                   edit(func(b []byte) { clear(b[leaf : leaf+page]) }),
		"a page twice":                      edit(func(b []byte) { copy(b[leaf:leaf+page], b[leaf-page:]) }),
		"a flipped bit in a page's type":    edit(func(b []byte) { b[leaf] ^= 0x08 }),
		"a flipped bit in a cell's address": edit(func(b []byte) { b[leaf+8] ^= 0x40 }),
		"a flipped bit in the schema":       edit(func(b []byte) { b[100] ^= 0x01 }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "est.db")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				db, err := database.Open(context.Background(), "sqlite:"+path)
				if err == nil {
					db.Close()
					t.Fatal("opened")
				}
				if !strings.Contains(err.Error(), path) {
					t.Errorf("the error does not name the file: %v", err)
				}
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, content) {
				t.Errorf("the file was changed (%d bytes, were %d), %v", len(now), len(content), err)
			}
		})
	}
}

func TestExistingMeansExisting(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	missing := filepath.Join(t.TempDir(), "est.db")
	if _, err := database.OpenExisting(ctx, "sqlite:"+missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := os.Lstat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file was made: %v", err)
	}
	for range 2 {
		if _, err := database.OpenExisting(ctx, "sqlite:"+emptyFile(t)); err == nil {
			t.Error("an empty file was opened")
		}
	}
	storage.Each(t, func(t *testing.T, _ *database.DB) {
		url := storage.URL(t, t.Name()[strings.LastIndex(t.Name(), "/")+1:])
		if strings.HasPrefix(url, "postgres:") {
			for range 2 {
				if _, err := database.OpenExisting(ctx, url); err == nil || !strings.Contains(err.Error(), "empty") {
					t.Errorf("an empty database: %v", err)
				}
			}
		}
		storage.OpenURL(t, url)
		again, err := database.OpenExisting(ctx, url)
		if err != nil {
			t.Fatalf("one that is there: %v", err)
		}
		again.Close()
	})
}

func emptyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "empty.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx := context.Background()
		url := storage.URL(t, db.Dialect())
		newer, err := database.Open(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		err = newer.Write(ctx, "test.newer", func(tx *database.Tx) error {
			applied := "1"
			if tx.Dialect() == database.Postgres {
				applied = "true"
			}
			_, err := tx.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, " + applied + ")")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := newer.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = database.Open(ctx, url)
		if err == nil || !strings.Contains(err.Error(), "newer than this program") {
			t.Errorf("opened with a schema of the future: %v", err)
		}
	})
}

// After the file has turned out damaged under a running server nothing is written any more, until a restart, which refuses.
func TestFailStop(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filled(t)
	db := storage.OpenURL(t, "sqlite:"+path)
	forget := func(tx *database.Tx) error { // the pages that SQLite remembers
		_, err := tx.Exec("PRAGMA shrink_memory")
		return err
	}
	if err := db.Write(ctx, "test.forget", forget); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, info.Size()-4096), 4096); err != nil {
		t.Fatal(err)
	}
	errs := together(t, db, put("a"), put("b"), put("c"))
	for i, err := range errs {
		if err == nil {
			t.Errorf("write %d on a damaged file was acknowledged", i)
		}
	}
	if err := db.Healthy(); !errors.Is(err, database.ErrFailed) {
		t.Fatalf("healthy: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 100), info.Size()); err != nil {
		t.Fatal(err)
	}
	ran := false
	err = db.Write(ctx, "test.write", func(*database.Tx) error { ran = true; return nil })
	if !errors.Is(err, database.ErrFailed) || ran {
		t.Errorf("after the failure: %v, ran %v", err, ran)
	}
	if again, err := database.Open(ctx, "sqlite:"+path); err == nil {
		again.Close()
		t.Error("opened again as if nothing had happened")
	}
}

// Not parallel: the umask belongs to the whole process.
func TestFilesArePrivateWhateverTheUmask(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "est.db")
	db, err := database.Open(context.Background(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Write(context.Background(), "test.write", put("x")); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o", filepath.Base(path)+suffix, mode)
		}
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "est.db", "mysql://x", "sqlite3:/x", "postgres://%zz:secret-word@host/db", "postgres://user:secret-word@host:port/db"} {
		db, err := database.Open(context.Background(), address)
		if err == nil {
			db.Close()
			t.Errorf("%q opened", address)
		} else if strings.Contains(err.Error(), "secret-word") {
			t.Errorf("%q: the error shows the password: %v", address, err)
		}
	}
}
