// What a write may do: the statements of one transaction.

package database

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jmoiron/sqlx"
)

// Tx is a transaction under way. It is valid only inside the function given to Write.
type Tx struct {
	db      *DB
	conn    conn
	limit   context.Context // SQLite: unbounded; PostgreSQL: ends with transactionTimeout
	atEnd   []func() error
	locals  map[any]any
	touched bool  // the configuration
	suspect error // a statement failed; the write counts as refused even if its function does not say so
	broken  error // set when the transaction itself is lost, as opposed to a statement refused
}

type conn interface {
	GetContext(ctx context.Context, dest any, query string, args ...any) error
	SelectContext(ctx context.Context, dest any, query string, args ...any) error
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

var (
	_ conn = (*statements)(nil)
	_ conn = (*sqlx.DB)(nil)
	_ conn = (*sqlx.Tx)(nil)
)

// Statements inside a transaction never see a caller's context: a context cancelled inside a savepoint rolls back the
// whole SQLite transaction, other callers' writes included.
var unbounded = context.Background()

// Get reads one row into dest; sql.ErrNoRows when there is none.
func (tx *Tx) Get(dest any, query string, args ...any) error {
	return tx.note(tx.conn.GetContext(tx.limit, dest, tx.db.rebind(query), args...))
}

// Select reads all rows into the slice that dest points to.
func (tx *Tx) Select(dest any, query string, args ...any) error {
	return tx.note(tx.conn.SelectContext(tx.limit, dest, tx.db.rebind(query), args...))
}

// Exec runs a statement and returns how many rows it touched.
func (tx *Tx) Exec(query string, args ...any) (rows int64, err error) {
	result, err := tx.conn.ExecContext(tx.limit, tx.db.rebind(query), args...)
	if err != nil {
		return 0, tx.note(err)
	}
	rows, err = result.RowsAffected()
	return rows, tx.note(err)
}

// AtEnd runs fn as the last thing of the transaction, in the order of the calls. What many transactions contend for (the
// head of the audit log, the counter of the change feed) is locked there, so that it is held briefly.
func (tx *Tx) AtEnd(fn func() error) {
	tx.atEnd = append(tx.atEnd, fn)
}

// Local returns what make made for this key at the first call in this transaction: several entries that one package writes at the end
// can share one look at what they continue.
func (tx *Tx) Local(key any, make func() any) any {
	if tx.locals == nil {
		tx.locals = map[any]any{}
	}
	v, ok := tx.locals[key]
	if !ok {
		v = make()
		tx.locals[key] = v
	}
	return v
}

// Dialect is SQLite or Postgres, for the rare statement that differs.
func (tx *Tx) Dialect() string { return tx.db.dialect }

// note keeps what a statement's error means for the transaction: whoever goes on after an error that is not about his rows may go on
// without a transaction, because SQLite rolls back by itself when, say, the disk is full.
func (tx *Tx) note(err error) error {
	switch {
	case err == nil || errors.Is(err, sql.ErrNoRows) || IsUnique(err):
	case fatal(err):
		tx.broken = err
	default:
		tx.suspect = err
	}
	return err
}

// run calls fn and what it left for the end.
func (tx *Tx) run(fn func(tx *Tx) error) error {
	if err := fn(tx); err != nil {
		return err
	}
	for len(tx.atEnd) > 0 {
		last := tx.atEnd[0]
		tx.atEnd = tx.atEnd[1:]
		if err := last(); err != nil {
			return err
		}
	}
	return tx.suspect
}
