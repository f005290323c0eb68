// One transaction for many writers: what one of them does wrong, and what breaks under all of them.

package database_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/storage"
)

// put returns a write that inserts a counter.
func put(name string) func(*database.Tx) error {
	return func(tx *database.Tx) error {
		_, err := tx.Exec("INSERT INTO counters (name, value) VALUES (?, 1)", name)
		return err
	}
}

func stored(t *testing.T, db *database.DB, pattern string) []string {
	t.Helper()
	var names []string
	if err := db.Select(context.Background(), &names, "SELECT name FROM counters WHERE name LIKE ? ORDER BY name", pattern); err != nil {
		t.Fatal(err)
	}
	return names
}

// together runs writes so that SQLite commits them as one batch: the first waits inside its transaction until all others are queued.
func together(t *testing.T, db *database.DB, writes ...func(*database.Tx) error) []error {
	t.Helper()
	ctx := context.Background()
	inside, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		db.Write(ctx, "test.first", func(*database.Tx) error {
			close(inside)
			<-goOn
			return nil
		})
	})
	<-inside
	errs := make([]error, len(writes))
	var queued atomic.Int32
	for i, fn := range writes {
		wg.Go(func() {
			queued.Add(1)
			errs[i] = db.Write(ctx, "test.write", fn)
		})
	}
	for queued.Load() < int32(len(writes)) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // from the counter into the queue: a straggler would only be committed alone
	close(goOn)
	wg.Wait()
	return errs
}

func TestRefusedWriteLeavesTheOthers(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		errRefused := errors.New("refused")
		ctx := context.Background()
		var wg sync.WaitGroup
		var errs [60]error
		for i := range errs {
			wg.Go(func() {
				errs[i] = db.Write(ctx, "test.write", func(tx *database.Tx) error {
					if err := put(fmt.Sprintf("batch-%02d", i))(tx); err != nil {
						return err
					}
					switch i % 6 {
					case 1:
						return errRefused
					case 2:
						panic("a bug in a closure")
					case 3:
						tx.AtEnd(func() error { return errRefused })
					case 4:
						tx.AtEnd(func() error { panic("a bug at the end") })
					}
					return nil
				})
			})
		}
		wg.Wait()
		var want []string
		for i, err := range errs {
			switch i % 6 {
			case 1, 3:
				if !errors.Is(err, errRefused) {
					t.Errorf("write %d: %v", i, err)
				}
			case 2, 4:
				if err == nil || !strings.Contains(err.Error(), "panic in a write: a bug") {
					t.Errorf("write %d: %v", i, err)
				}
			default:
				want = append(want, fmt.Sprintf("batch-%02d", i))
				if err != nil {
					t.Errorf("write %d: %v", i, err)
				}
			}
		}
		if got := stored(t, db, "batch-%"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("stored %v, want %v", got, want)
		}
	})
}

// When the transaction itself is lost, whose fault ever, nobody is told that he was heard.
func TestLostTransactionAcknowledgesNobody(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*database.Tx) error{
		"everything is rolled back under it": func(tx *database.Tx) error { // as SQLite does when a statement fails badly
			_, err := tx.Exec("ROLLBACK")
			return errors.Join(err, errors.New("the statement failed"))
		},
		"the commit fails": func(tx *database.Tx) error {
			_, err := tx.Exec("INSERT INTO child (parent) VALUES ('nobody')")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := storage.Open(t, database.SQLite)
			err := db.Write(context.Background(), "test.schema", func(tx *database.Tx) error {
				_, err := tx.Exec("CREATE TABLE child (parent TEXT NOT NULL REFERENCES counters (name) DEFERRABLE INITIALLY DEFERRED)")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			errs := together(t, db, put("lost-1"), put("lost-2"), spoil, put("lost-3"), put("lost-4"))
			acknowledged := 0
			for i, err := range errs {
				if err == nil && i != 2 {
					acknowledged++
				}
			}
			if errs[2] == nil {
				t.Error("the one who spoiled it was told that all is well")
			}
			if got := stored(t, db, "lost-%"); len(got) != acknowledged || acknowledged == 4 {
				t.Errorf("%d acknowledged, %d stored: %v", acknowledged, len(got), errs)
			}
			if err := db.Healthy(); err != nil {
				t.Errorf("nothing is unknown here: %v", err)
			}
			if err := db.Write(context.Background(), "test.write", put("after")); err != nil {
				t.Errorf("the next write: %v", err)
			}
		})
	}
}

// A full disk refuses writes and nothing else, until there is room again.
func TestFullDiskRecovers(t *testing.T) {
	t.Parallel()
	db := storage.Open(t, database.SQLite)
	limit := func(pages int64) error {
		return db.Write(context.Background(), "test.limit", func(tx *database.Tx) error {
			var got int64
			return tx.Get(&got, fmt.Sprintf("PRAGMA max_page_count = %d", pages))
		})
	}
	if err := limit(1); err != nil { // SQLite takes the present size instead
		t.Fatal(err)
	}
	big := strings.Repeat("x", 100_000)
	errs := together(t, db, put("small-1"), put(big), put("small-2"))
	if errs[1] == nil || !strings.Contains(errs[1].Error(), "full") {
		t.Errorf("100 kB on a full disk: %v", errs[1])
	}
	for i, err := range errs {
		if acknowledged, there := err == nil, len(stored(t, db, fmt.Sprintf("small-%d", i/2+1))) == 1; i != 1 && acknowledged != there {
			t.Errorf("write %d: %v, stored %v", i, err, there)
		}
	}
	if err := db.Healthy(); err != nil {
		t.Errorf("a full disk is no reason to stop for good: %v", err)
	}
	if err := limit(1 << 30); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(context.Background(), "test.write", put(big)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// The caller's context bounds the wait for a turn, nothing that has begun.
func TestContext(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		err := db.Write(ended, "test.write", put("left"))
		if there := len(stored(t, db, "left")) == 1; (err == nil) != there || (err != nil && !errors.Is(err, context.Canceled)) {
			t.Errorf("a write for a caller who has left: %v, stored %v", err, there)
		}
		leaving, leave := context.WithCancel(context.Background())
		err = db.Write(leaving, "test.write", func(tx *database.Tx) error {
			if err := put("carried-1")(tx); err != nil {
				return err
			}
			leave()
			var one int64
			if err := tx.Get(&one, "SELECT value FROM counters WHERE name = 'carried-1'"); err != nil {
				return err
			}
			return put("carried-2")(tx)
		})
		if err != nil || len(stored(t, db, "carried-%")) != 2 {
			t.Errorf("a caller who leaves in the middle: %v, stored %v", err, stored(t, db, "carried-%"))
		}
	})
}

func TestWritesAndClose(t *testing.T) {
	t.Parallel()
	url := storage.URL(t, database.SQLite)
	db, err := database.Open(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var acknowledged atomic.Int64
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				err := db.Write(context.Background(), "test.write", put(fmt.Sprintf("w%d-%d", w, i)))
				if errors.Is(err, database.ErrClosed) {
					return
				}
				if err != nil {
					t.Errorf("write while closing: %v", err)
					return
				}
				acknowledged.Add(1)
			}
		})
	}
	for acknowledged.Load() < 50 {
		time.Sleep(time.Millisecond)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := db.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	again := storage.OpenURL(t, url)
	if got := len(stored(t, again, "w%")); int64(got) != acknowledged.Load() {
		t.Errorf("%d acknowledged, %d stored", acknowledged.Load(), got)
	}
}

// Two servers look, see nothing, and insert: the second runs again and sees the first one's row.
func TestUniqueRaceRunsAgain(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		var inserted, found atomic.Int64
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				was := false
				err := db.Write(context.Background(), "test.race", func(tx *database.Tx) error {
					var n int64
					if err := tx.Get(&n, "SELECT COUNT(*) FROM counters WHERE name = 'race'"); err != nil {
						return err
					}
					if was = n > 0; was {
						return nil
					}
					return put("race")(tx)
				})
				switch {
				case err != nil:
					t.Error(err)
				case was:
					found.Add(1)
				default:
					inserted.Add(1)
				}
			})
		}
		wg.Wait()
		if inserted.Load() != 1 || found.Load() != 15 {
			t.Errorf("%d inserted, %d found", inserted.Load(), found.Load())
		}
	})
}

func TestReadersCannotWrite(t *testing.T) {
	t.Parallel()
	db := storage.Open(t, database.SQLite)
	var n int64
	if err := db.Get(context.Background(), &n, "INSERT INTO counters (name, value) VALUES ('by a reader', 1) RETURNING value"); err == nil {
		t.Error("the read path wrote a row")
	}
}

// AtEnd runs last, in the order of the calls, what was added meanwhile included; Local lasts for one transaction.
func TestAtEndAndLocal(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		for range 2 {
			var order []string
			err := db.Write(context.Background(), "test.order", func(tx *database.Tx) error {
				order = nil
				note := func(s string) func() error {
					return func() error { order = append(order, s); return nil }
				}
				tx.AtEnd(note("a"))
				tx.AtEnd(func() error { tx.AtEnd(note("c")); return note("b")() })
				for range 3 {
					*tx.Local("key", func() any { order = append(order, "made"); return new(int) }).(*int)++
				}
				if n := *tx.Local("key", nil).(*int); n != 3 {
					return fmt.Errorf("local is %d", n)
				}
				order = append(order, "body")
				return nil
			})
			if got := strings.Join(order, " "); err != nil || got != "made body a b c" {
				t.Errorf("%v, %v", got, err)
			}
		}
	})
}

func TestConfigurationIsSeenAtOnce(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx := context.Background()
		last, err := db.Configuration(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			err := db.Write(ctx, "test.touch", func(tx *database.Tx) error { return tx.TouchConfiguration() })
			if err != nil {
				t.Fatal(err)
			}
			number, err := db.Configuration(ctx)
			if err != nil || number != last+1 {
				t.Fatalf("number %d after %d, %v", number, last, err)
			}
			last = number
		}
		refused := errors.New("refused")
		db.Write(ctx, "test.touch", func(tx *database.Tx) error {
			tx.TouchConfiguration()
			return refused
		})
		if number, err := db.Configuration(ctx); err != nil || number != last {
			t.Errorf("number %d after a refused change of %d, %v", number, last, err)
		}
	})
}
