// Package storage opens an empty database for a test, on SQLite and on a real PostgreSQL, so that the same tests run on both.
package storage

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
)

// Each runs test once on each kind of database. Without PostgreSQL on the machine its half is skipped, visibly.
func Each(t *testing.T, test func(t *testing.T, db *database.DB)) {
	t.Helper()
	for _, dialect := range []string{database.SQLite, database.Postgres} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			test(t, Open(t, dialect))
		})
	}
}

// Open opens one empty database, closed when the test ends.
func Open(t testing.TB, dialect string) *database.DB {
	t.Helper()
	return OpenURL(t, URL(t, dialect))
}

// URL is the address of an empty database of a dialect.
func URL(t testing.TB, dialect string) string {
	t.Helper()
	if dialect == database.Postgres {
		return harness.PostgresURL(t)
	}
	return "sqlite:" + filepath.Join(t.TempDir(), "est.db")
}

// OpenURL opens a database that is closed when the test ends; a second server of a test opens the same URL again.
func OpenURL(t testing.TB, url string) *database.DB {
	t.Helper()
	db, err := database.Open(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}
