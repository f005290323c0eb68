// PostgreSQL: several servers on one database. READ COMMITTED with conditional updates whose row counts the callers
// check; SERIALIZABLE was measured at 6.8 retries a write.

package database

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
)

// Nothing waits for ever for a database that hangs: who asks is told to come back (INV-15).
const (
	connectTimeout     = 5 * time.Second
	lockTimeout        = 10 * time.Second
	statementTimeout   = 15 * time.Second
	transactionTimeout = 30 * time.Second
)

func openPostgres(ctx context.Context, address string, existing bool) (*DB, error) {
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, errors.New("open database: the postgres address cannot be read") // the cause may quote the password
	}
	config.ConnectTimeout = connectTimeout
	for name, limit := range map[string]time.Duration{"statement_timeout": statementTimeout, "lock_timeout": lockTimeout, "idle_in_transaction_session_timeout": transactionTimeout} {
		if config.RuntimeParams[name] == "" {
			config.RuntimeParams[name] = fmt.Sprint(limit.Milliseconds())
		}
	}
	pool := sqlx.NewDb(stdlib.OpenDB(*config), "pgx")
	pool.SetMaxOpenConns(16)
	pool.SetMaxIdleConns(16)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	if err := migrate(ctx, pool, Postgres, existing); err != nil {
		pool.Close()
		return nil, fmt.Errorf("open database %s/%s: %w", config.Host, config.Database, err)
	}
	return &DB{dialect: Postgres, pools: []*sqlx.DB{pool}, reader: pool, pool: pool}, nil
}

func (db *DB) writePostgres(ctx context.Context, fn func(tx *Tx) error) error {
	const attempts = 5
	for n := 1; ; n++ {
		err := db.tryPostgres(ctx, fn)
		if err == nil || n == attempts || !worthRepeating(err) {
			return err
		}
	}
}

func (db *DB) tryPostgres(ctx context.Context, fn func(tx *Tx) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(unbounded, transactionTimeout)
	defer cancel()
	t, err := db.pool.BeginTxx(limit, nil)
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	done := false
	defer func() {
		if !done {
			t.Rollback()
		}
	}()
	tx := &Tx{db: db, conn: t, limit: limit}
	if err := protect(tx, fn); err != nil {
		return err
	}
	done = true
	err = t.Commit()
	tx.committed()
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// worthRepeating: a deadlock, a serialization failure, or a unique index hit because another server wrote the same row between
// our look and our insert; the next run sees that row.
func worthRepeating(err error) bool {
	var p *pgconn.PgError
	if !errors.As(err, &p) {
		return false
	}
	return p.Code == "40001" || p.Code == "40P01" || p.Code == "23505"
}
