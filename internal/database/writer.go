// SQLite's group commit: one goroutine owns the only writing connection and commits whatever is waiting
// in one transaction, so that many writes share one fsync.

package database

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

const (
	maxBatch = 128
	linger   = time.Millisecond
)

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
		busy := len(batch) > 1
		batch = db.gather(append(batch[:0], first), busy)
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

// gather adds what waits to the batch. Under load it also waits a moment for more: a commit costs about the same for one write as for ten.
func (db *DB) gather(batch []*request, busy bool) []*request {
	var enough <-chan time.Time
	if busy {
		enough = time.After(linger)
	}
	for len(batch) < maxBatch {
		select {
		case r, ok := <-db.queue:
			if !ok {
				return batch
			}
			batch = append(batch, r)
			continue
		default:
		}
		if enough == nil {
			return batch
		}
		select {
		case r, ok := <-db.queue:
			if !ok {
				return batch
			}
			batch = append(batch, r)
		case <-enough:
			return batch
		}
	}
	return batch
}

// commitBatch returns an error when the transaction as a whole is lost: then nobody's write is acknowledged. A write
// refused by its own function only gets its own error and leaves the others alone.
//
// Savepoints cost a third of a write, and refusals are rare: the batch first runs without, and only if one of its writes is
// refused once more with a savepoint each.
func (db *DB) commitBatch(batch []*request) error {
	if err := db.Healthy(); err != nil {
		return err
	}
	refused, err := db.runBatch(batch, false)
	if err == nil && refused && len(batch) > 1 {
		_, err = db.runBatch(batch, true)
	}
	return err
}

// runBatch commits the batch, or without savepoints rolls all of it back as soon as one write is refused.
func (db *DB) runBatch(batch []*request, savepoints bool) (refused bool, err error) {
	exec := func(statement string) error {
		_, err := db.writer.ExecContext(unbounded, statement)
		return err
	}
	if err := exec("BEGIN IMMEDIATE"); err != nil {
		return false, err
	}
	defer func() {
		if err != nil || refused {
			exec("ROLLBACK")
		}
	}()
	done := make([]*Tx, 0, len(batch))
	for _, r := range batch {
		tx := &Tx{db: db, conn: db.writer, limit: unbounded}
		if savepoints {
			err = db.runInSavepoint(tx, r, exec)
		} else {
			r.err = protect(tx, r.fn)
			refused = r.err != nil
		}
		if err == nil {
			err = tx.broken
		}
		if err != nil || refused {
			return refused, err
		}
		done = append(done, tx)
	}
	if err := exec("COMMIT"); err != nil {
		return false, err
	}
	for _, tx := range done {
		tx.committed()
	}
	return false, nil
}

func (db *DB) runInSavepoint(tx *Tx, r *request, exec func(statement string) error) error {
	if err := exec("SAVEPOINT w"); err != nil {
		return err
	}
	r.err = protect(tx, r.fn)
	if r.err != nil && tx.broken == nil {
		if err := exec("ROLLBACK TO w"); err != nil { // SQLite has rolled back everything by itself, as on a full disk
			return fmt.Errorf("%w; then: %w", r.err, err)
		}
	}
	return exec("RELEASE w")
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
