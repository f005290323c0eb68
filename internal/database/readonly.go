// A database that is only read, by a process beside the one that writes: it needs no right to write, and could not if it had.

package database

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

// ErrReadOnly is what a write to such a database returns.
var ErrReadOnly = errors.New("the database is open for reading only")

// OpenReadOnly opens a database that exists and has the schema of this program. Nothing is migrated. A SQLite database must be on a
// file system of this machine; while no other process has it open, its directory must be writable for SQLite's index of the log.
func OpenReadOnly(ctx context.Context, address string) (*DB, error) {
	db := &DB{readOnly: true}
	if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("open database: %w", err)
		}
		dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?mode=ro&_pragma=busy_timeout(5000)&_pragma=query_only(1)&_pragma=cache_size(-4096)"
		r, err := sqlx.Open("sqlite", dsn)
		if err != nil {
			return nil, fmt.Errorf("open database %s: %w", path, err)
		}
		r.SetMaxOpenConns(4)
		r.SetMaxIdleConns(4)
		db.dialect, db.pools, db.reader = SQLite, []*sqlx.DB{r}, newStatements(r.PreparexContext)
	} else {
		config, err := pgx.ParseConfig(address)
		if err != nil {
			return nil, errors.New("open database: want sqlite:PATH or postgres://USER@HOST/NAME") // the cause may quote the password
		}
		config.ConnectTimeout = connectTimeout
		config.RuntimeParams["default_transaction_read_only"] = "on"
		config.RuntimeParams["statement_timeout"] = fmt.Sprint(statementTimeout.Milliseconds())
		pool := sqlx.NewDb(stdlib.OpenDB(*config), "pgx")
		pool.SetMaxOpenConns(16)
		pool.SetMaxIdleConns(16)
		db.dialect, db.pools, db.reader, db.pool = Postgres, []*sqlx.DB{pool}, pool, pool
	}
	if err := db.checkSchema(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// checkSchema compares the newest migration that was applied with the newest one that this program has.
func (db *DB) checkSchema(ctx context.Context) error {
	files, err := fs.Glob(migrations, "migrations/"+db.dialect+"/*.sql")
	if err != nil {
		return err
	}
	var have, want int64
	for _, file := range files {
		version, err := goose.NumericComponent(file)
		if err != nil {
			return err
		}
		want = max(want, version)
	}
	if err := db.Get(ctx, &have, "SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version"); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if have != want {
		return fmt.Errorf("open database: schema version %d is not this program's %d: use the same program as the server", have, want)
	}
	return nil
}
