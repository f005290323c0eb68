// Package database is the one door to the project's storage: SQLite, which needs nothing, or
// PostgreSQL, for several servers on one database.
//
// All writes go through DB.Write. On SQLite one goroutine commits many waiting writes at once,
// a savepoint each (writer.go); on PostgreSQL each write is a READ COMMITTED transaction
// (postgres.go). Reads use a pool of their own and never wait for writes.
//
// It knows no table but its own bookkeeping: the schema stands in migrations/, the statements with
// the packages that own the tables. Statements are written with "?" placeholders in both dialects.
//
// Files: database.go (open, read), tx.go (what a write may do), writer.go (SQLite group commit), statements.go (prepared ones),
// postgres.go, readonly.go (for another process), configuration.go (a number that tells when to read anew), migrate.go.
package database

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	"github.com/jmoiron/sqlx"
	"github.com/natal-pki/natal/internal/fault"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrFailed is what every write returns after the storage has failed in a way that leaves unknown
// what is on disk (an I/O error of a write or of fsync). Only a restart clears it.
var ErrFailed = errors.New("storage has failed; nothing is written until a restart")

// Dialects.
const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// DB is an open database. It is safe for concurrent use.
type DB struct {
	dialect       string
	readOnly      bool
	pools         []*sqlx.DB
	reader        conn
	configuration configuration
	failed        atomic.Pointer[error]

	writer  *statements // SQLite: on its only writing connection
	closing sync.RWMutex
	closed  bool // guarded by closing
	queue   chan *request
	stopped chan struct{}
	pool    *sqlx.DB // PostgreSQL
}

// ErrClosed is what a write returns that comes after Close.
var ErrClosed = errors.New("the database is closed")

// Open opens "sqlite:PATH" (created with mode 0600 when missing) or a "postgres://..." URL and brings the schema
// up to date. A database that is damaged, or whose schema is newer than this program, is refused.
func Open(ctx context.Context, address string) (*DB, error) {
	return open(ctx, address, false)
}

// OpenExisting is Open for a database that must hold an installation already: one that is missing or empty is refused, so that a lost
// file or a wrong address is never answered by an empty database in its place.
func OpenExisting(ctx context.Context, address string) (*DB, error) {
	return open(ctx, address, true)
}

func open(ctx context.Context, address string, existing bool) (*DB, error) {
	if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
		return openSQLite(ctx, path, existing)
	}
	if strings.HasPrefix(address, "postgres://") || strings.HasPrefix(address, "postgresql://") {
		return openPostgres(ctx, address, existing)
	}
	return nil, errors.New("database address: want sqlite:PATH or postgres://USER@HOST/NAME")
}

func openSQLite(ctx context.Context, path string, existing bool) (*DB, error) {
	if existing {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("open database: %w", err)
		}
	} else if err := createPrivate(path); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?_txlock=immediate" +
		"&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_pragma=temp_store(2)"
	w, err := sqlx.Open("sqlite", dsn+"&_pragma=cache_size(-16384)")
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	w.SetMaxOpenConns(1)
	if err := quickCheck(ctx, w); err != nil {
		w.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if err := migrate(ctx, w, SQLite, existing); err != nil {
		w.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	r, err := sqlx.Open("sqlite", dsn+"&_pragma=query_only(1)&_pragma=cache_size(-4096)")
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	r.SetMaxOpenConns(4)
	r.SetMaxIdleConns(4)
	only, err := w.Connx(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), w.Close(), r.Close())
	}
	db := &DB{
		dialect: SQLite, pools: []*sqlx.DB{r, w}, reader: newStatements(r.PreparexContext), writer: newStatements(only.PreparexContext),
		queue: make(chan *request, 1024), stopped: make(chan struct{}),
	}
	go func() {
		defer close(db.stopped)
		db.commitLoop()
		db.writer.close()
		only.Close()
	}()
	return db, nil
}

// quickCheck looks at the structure of the whole file before anything is written to it, at about a gigabyte a second. Bits that changed
// inside a value it cannot see: those are found by the audit log's hashes and the certificates' signatures.
func quickCheck(ctx context.Context, db *sqlx.DB) error {
	var finding string
	if err := db.GetContext(ctx, &finding, "PRAGMA quick_check(1)"); err != nil {
		return err
	}
	if finding != "ok" {
		return fmt.Errorf("the file is damaged: %s", finding)
	}
	return nil
}

// Close waits for the writes under way and closes the database. Later writes return ErrClosed.
func (db *DB) Close() error {
	if db.dialect == SQLite && !db.readOnly {
		db.closing.Lock()
		if !db.closed {
			db.closed = true
			close(db.queue)
		}
		db.closing.Unlock()
		<-db.stopped
	}
	var errs []error
	for _, pool := range db.pools {
		errs = append(errs, pool.Close())
	}
	return errors.Join(errs...)
}

// Dialect is SQLite or Postgres.
func (db *DB) Dialect() string { return db.dialect }

// Healthy returns ErrFailed, with the cause, once the storage has failed.
func (db *DB) Healthy() error {
	if cause := db.failed.Load(); cause != nil {
		return fmt.Errorf("%w: %w", ErrFailed, *cause)
	}
	return nil
}

// Write runs fn in a transaction and returns once it is durable. When it returns an error, fn's own included,
// nothing of this write is acknowledged (after a lost connection to PostgreSQL it may still have been done).
//
// step names the write for fault tests. fn may run twice and must touch nothing but tx. ctx bounds
// only the wait for a turn: a transaction that has begun is carried to its end.
func (db *DB) Write(ctx context.Context, step string, fn func(tx *Tx) error) error {
	return fault.Step(step, func() error {
		if err := db.Healthy(); err != nil {
			return err
		}
		if db.readOnly {
			return ErrReadOnly
		}
		if db.dialect == SQLite {
			return db.enqueue(ctx, fn)
		}
		return db.writePostgres(ctx, fn)
	})
}

// Get reads one row into dest; sql.ErrNoRows when there is none.
func (db *DB) Get(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	return db.reader.GetContext(ctx, dest, db.rebind(query), args...)
}

// Select reads all rows into the slice that dest points to.
func (db *DB) Select(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	return db.reader.SelectContext(ctx, dest, db.rebind(query), args...)
}

// bounded keeps a read from waiting for ever for PostgreSQL; a local file needs no bound.
func (db *DB) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if db.dialect == SQLite {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, transactionTimeout)
}

func (db *DB) rebind(query string) string {
	if db.dialect == Postgres {
		return sqlx.Rebind(sqlx.DOLLAR, query)
	}
	return query
}

// IsUnique tells whether err comes from a unique index.
func IsUnique(err error) bool {
	var s *sqlite.Error
	if errors.As(err, &s) {
		return s.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || s.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	var p *pgconn.PgError
	return errors.As(err, &p) && p.Code == "23505"
}

// fatal tells whether err leaves unknown what SQLite has on disk. A full disk does not: SQLite rolls back.
func fatal(err error) bool {
	var s *sqlite.Error
	if !errors.As(err, &s) {
		return false
	}
	switch s.Code() & 0xff {
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	}
	return false
}
