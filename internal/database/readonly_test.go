// A database that is open for reading only follows the one that writes, and writes nothing.

package database_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestOpenReadOnly(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for dialect, url := range map[string]func() string{
		database.SQLite:   func() string { return "sqlite:" + filepath.Join(t.TempDir(), "est.db") },
		database.Postgres: func() string { return harness.PostgresURL(t) },
	} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			address := url()
			if _, err := database.OpenReadOnly(ctx, address); err == nil {
				t.Error("what does not exist, or is empty, was opened")
			}
			db, err := database.Open(ctx, address)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			reader, err := database.OpenReadOnly(ctx, address)
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			set := func(value int) func(tx *database.Tx) error {
				return func(tx *database.Tx) error {
					_, err := tx.Exec("UPDATE counters SET value = ? WHERE name = 'changes'", value)
					return err
				}
			}
			if err := db.Write(ctx, "test", set(41)); err != nil {
				t.Fatal(err)
			}
			var value int
			if err := reader.Get(ctx, &value, "SELECT value FROM counters WHERE name = 'changes'"); err != nil || value != 41 {
				t.Errorf("it reads %d, %v", value, err)
			}
			if err := reader.Write(ctx, "test", set(42)); !errors.Is(err, database.ErrReadOnly) {
				t.Errorf("a write: %v", err)
			}
			if err := reader.Get(ctx, &value, "UPDATE counters SET value = 43 WHERE name = 'changes' RETURNING value"); err == nil {
				t.Error("a write dressed up as a read went through")
			}
			if err := db.Write(ctx, "test", func(tx *database.Tx) error {
				_, err := tx.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, ?)", true)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := database.OpenReadOnly(ctx, address); err == nil {
				t.Error("a schema of another program was opened")
			}
		})
	}
}
