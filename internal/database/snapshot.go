// A copy of a SQLite database as it is at one moment, taken while others read and write.

package database

import (
	"context"
	"fmt"
	"net/url"

	"github.com/jmoiron/sqlx"
)

// SnapshotSQLite writes a copy of the database file at path to the new file out, mode 0600. Writers are not held up; what is committed after
// it began is not in it.
func SnapshotSQLite(ctx context.Context, path, out string) error {
	if err := createPrivate(out); err != nil { // SQLite takes an empty file for none, and keeps its mode
		return fmt.Errorf("snapshot: %w", err)
	}
	db, err := sqlx.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=rw&_pragma=busy_timeout(5000)")
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", out); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}
