// SQLite's group commit: one goroutine owns the only writing connection and commits whatever is waiting
// in one transaction, so that many writes share one fsync.

package database

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
)

const maxBatch = 128

type request struct {
	fn   func(tx *Tx) error
	err  error
	done chan struct{}
}

func (db *DB) enqueue(ctx context.Context, fn func(tx *Tx) error) error {
	r := &request{fn: fn, done: make(chan struct{})}
	if err := db.await(ctx, r); err != nil {
		return err
	}
	<-r.done
	return r.err
}

// await puts r into the queue, which stays open meanwhile.
func (db *DB) await(ctx context.Context, r *request) error {
	db.closing.RLock()
	defer db.closing.RUnlock()
	if db.closed {
		return ErrClosed
	}
	select {
	case db.queue <- r:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (db *DB) commitLoop() {
	batch := make([]*request, 0, maxBatch)
	for first := range db.queue {
		batch = append(batch[:0], first)
	drain:
		for len(batch) < maxBatch {
			select {
			case r, ok := <-db.queue:
				if !ok {
					break drain
				}
				batch = append(batch, r)
			default:
				break drain
			}
		}
		if err := db.commitBatch(batch); err != nil {
			if fatal(err) {
				db.failed.CompareAndSwap(nil, &err)
			}
			for _, r := range batch {
				r.err = fmt.Errorf("write: %w", err)
			}
		}
		for _, r := range batch {
			close(r.done)
		}
	}
}

// commitBatch returns an error when the transaction as a whole is lost: then nobody's write is acknowledged. A write
// refused by its own function only gets its own error and leaves the others alone.
func (db *DB) commitBatch(batch []*request) (err error) {
	if err := db.Healthy(); err != nil {
		return err
	}
	exec := func(statement string) error {
		_, err := db.writer.ExecContext(unbounded, statement)
		return err
	}
	if err := exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			exec("ROLLBACK")
		}
	}()
	done := make([]*Tx, 0, len(batch))
	for _, r := range batch {
		if err := exec("SAVEPOINT w"); err != nil {
			return err
		}
		tx := &Tx{db: db, conn: db.writer}
		r.err = protect(tx, r.fn)
		if tx.broken != nil {
			return tx.broken
		}
		if r.err != nil {
			if err := exec("ROLLBACK TO w"); err != nil { // SQLite has rolled back everything by itself, as on a full disk
				return fmt.Errorf("%w; then: %w", r.err, err)
			}
		}
		if err := exec("RELEASE w"); err != nil {
			return err
		}
		done = append(done, tx)
	}
	if err := exec("COMMIT"); err != nil {
		return err
	}
	for _, tx := range done {
		tx.committed()
	}
	return nil
}

// protect turns a panic in fn into an error: the goroutine serves everybody.
func protect(tx *Tx, fn func(tx *Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a write: %v\n%s", p, debug.Stack())
		}
	}()
	return tx.run(fn)
}

// createPrivate makes the database file before SQLite does, so that it and the files beside it
// are readable by the owner only whatever the umask is.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}
