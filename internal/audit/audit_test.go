// A log that was tampered with in any way is seen to be; one that is only being written to is not.

package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/storage"
)

var noon = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func write(t testing.TB, db *database.DB, at time.Time, objects ...string) {
	t.Helper()
	err := db.Write(context.Background(), "test.audit", func(tx *database.Tx) error {
		for _, o := range objects {
			e := audit.Entry{Actor: "test", Action: "tested", Object: o, Detail: map[string]string{"b": "2", "a": o}}
			if err := audit.Append(tx, at, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t *testing.T, db *database.DB, statements ...string) {
	t.Helper()
	err := db.Write(context.Background(), "test.tamper", func(tx *database.Tx) error {
		for _, s := range statements {
			if _, err := tx.Exec(s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tampering is what whoever can write to the database may try.
type tampering struct {
	name       string
	statements []string
	onlyByHead bool // the log is whole in itself: only a head that was kept elsewhere tells
}

func TestTamperingShows(t *testing.T) {
	t.Parallel()
	cases := []tampering{
		{name: "an actor changed", statements: []string{"UPDATE audit SET actor = 'cli:uid=0' WHERE seq = 4"}},
		{name: "an action changed", statements: []string{"UPDATE audit SET action = 'x' WHERE seq = 4"}},
		{name: "an object changed", statements: []string{"UPDATE audit SET object = 'x' WHERE seq = 4"}},
		{name: "a detail changed", statements: []string{"UPDATE audit SET detail = '{}' WHERE seq = 4"}},
		{name: "a time changed", statements: []string{"UPDATE audit SET at = at + 1 WHERE seq = 4"}},
		{name: "a hash changed", statements: []string{"UPDATE audit SET hash = lower(hash) || '0' WHERE seq = 4"}},
		{name: "text moved between fields", statements: []string{"UPDATE audit SET actor = actor || action, action = '' WHERE seq = 4"}},
		{name: "the first entry removed", statements: []string{"DELETE FROM audit WHERE seq = 1"}},
		{name: "an entry removed", statements: []string{"DELETE FROM audit WHERE seq = 4"}},
		{name: "an entry removed, the rest renumbered", statements: []string{"DELETE FROM audit WHERE seq = 4",
			"UPDATE audit SET seq = 4 WHERE seq = 5", "UPDATE audit SET seq = 5 WHERE seq = 6", "UPDATE audit SET seq = 6 WHERE seq = 7", "UPDATE audit_head SET seq = 6"}},
		{name: "the last entry changed", statements: []string{"UPDATE audit SET object = 'x' WHERE seq = 7"}},
		{name: "an entry inserted in between", statements: []string{"UPDATE audit SET seq = 8 WHERE seq = 7",
			"INSERT INTO audit SELECT 7, at, actor, action, object, detail, previous, hash FROM audit WHERE seq = 6", "UPDATE audit_head SET seq = 8"}},
		{name: "an entry of number 0", statements: []string{"INSERT INTO audit SELECT 0, at, actor, action, object, detail, previous, hash FROM audit WHERE seq = 1"}},
		{name: "an entry added at the end", statements: []string{"INSERT INTO audit SELECT 8, at, actor, action, object, detail, hash, 'abc' FROM audit WHERE seq = 7"}},
		{name: "two entries swapped", statements: []string{"UPDATE audit SET seq = 100 WHERE seq = 3", "UPDATE audit SET seq = 3 WHERE seq = 4", "UPDATE audit SET seq = 4 WHERE seq = 100"}},
		{name: "the end removed", statements: []string{"DELETE FROM audit WHERE seq > 5"}},
		{name: "everything removed", statements: []string{"DELETE FROM audit"}},
		{name: "the head changed", statements: []string{"UPDATE audit_head SET hash = 'x'"}},
		{name: "the head behind", statements: []string{"UPDATE audit_head SET seq = 6, hash = (SELECT hash FROM audit WHERE seq = 6)"}},
		{name: "the head missing", statements: []string{"DELETE FROM audit_head"}},
		{name: "the end removed and the head with it", onlyByHead: true, statements: []string{"DELETE FROM audit WHERE seq > 5",
			"UPDATE audit_head SET seq = 5, hash = (SELECT hash FROM audit WHERE seq = 5)"}},
		{name: "a gap that is no restore", statements: []string{"UPDATE audit SET seq = 1000 WHERE seq = 7", "UPDATE audit_head SET seq = 1000"}},
		{name: "a gap that calls itself a restore", statements: []string{"UPDATE audit SET seq = 1000, action = 'restored' WHERE seq = 7", "UPDATE audit_head SET seq = 1000"}},
		{name: "a time and its hash changed", statements: []string{"UPDATE audit SET at = at + 1, hash = previous WHERE seq = 4"}},
		{name: "everything removed and the head with it", onlyByHead: true, statements: []string{"DELETE FROM audit", "UPDATE audit_head SET seq = 0, hash = ''"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) { tamper(t, tc) })
	}
}

func tamper(t *testing.T, tc tampering) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx := context.Background()
		write(t, db, noon, "one", "two")
		write(t, db, noon.Add(time.Second), "three")
		write(t, db, noon.Add(time.Second), "four", "five", "six")
		write(t, db, noon.Add(time.Minute), "seven")
		head, err := audit.Verify(ctx, db, nil)
		if err != nil || head.Seq != 7 {
			t.Fatalf("the whole log: %v, %v", head, err)
		}
		exec(t, db, tc.statements...)
		if _, err := audit.Verify(ctx, db, nil); (err == nil) != tc.onlyByHead {
			t.Errorf("without a head: %v", err)
		} else if err != nil && !errors.Is(err, audit.ErrBroken) && tc.name != "the head missing" {
			t.Errorf("not said to be broken: %v", err)
		}
		if _, err := audit.Verify(ctx, db, &head); err == nil {
			t.Error("with the exported head: found whole")
		}
	})
}

// Everything after the exported head rewritten by somebody who knows the hashes, with as many entries: the head tells.
func TestRewrittenHistoryShowsAgainstTheHead(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := storage.Open(t, database.SQLite)
	write(t, db, noon, "one", "two", "three")
	head, err := audit.Verify(ctx, db, nil)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, db, "DELETE FROM audit WHERE seq > 1", "UPDATE audit_head SET seq = 1, hash = (SELECT hash FROM audit WHERE seq = 1)")
	write(t, db, noon, "another two", "three", "four")
	if _, err := audit.Verify(ctx, db, nil); err != nil {
		t.Fatalf("the forger did not do well: %v", err)
	}
	if _, err := audit.Verify(ctx, db, &head); !errors.Is(err, audit.ErrBroken) {
		t.Errorf("against the head: %v", err)
	}
}

func TestVerifyWhileTheLogGrows(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx, cancel := context.WithCancel(context.Background())
		write(t, db, noon, "first")
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					write(t, db, noon, fmt.Sprintf("%d-%d", w, i), "and its twin")
				}
			})
		}
		var last audit.Head
		for range 40 {
			head, err := audit.Verify(ctx, db, &last)
			if err != nil {
				t.Error(err)
				break
			}
			if head.Seq < last.Seq {
				t.Errorf("head %d after %d", head.Seq, last.Seq)
			}
			last = head
		}
		cancel()
		wg.Wait()
		if head, err := audit.Verify(context.Background(), db, &last); err != nil || head.Seq < last.Seq {
			t.Errorf("%v, %v", head, err)
		}
	})
}

// A change whose entry cannot be written does not happen, and an entry without its change is not written.
func TestEntryAndChangeAreOne(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := storage.Open(t, database.SQLite)
	write(t, db, noon, "first")
	refused := errors.New("refused")
	change := func(end error) error {
		return db.Write(ctx, "test.change", func(tx *database.Tx) error {
			if _, err := tx.Exec("INSERT INTO counters (name, value) VALUES ('changed', 1)"); err != nil {
				return err
			}
			if err := audit.Append(tx, noon, audit.Entry{Actor: "test", Action: "changed", Object: "x"}); err != nil {
				return err
			}
			return end
		})
	}
	count := func() (n int64) {
		if err := db.Get(ctx, &n, "SELECT COUNT(*) FROM counters WHERE name = 'changed'"); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := change(refused); !errors.Is(err, refused) || count() != 0 {
		t.Errorf("%v, %d", err, count())
	}
	if head, err := audit.Verify(ctx, db, nil); err != nil || head.Seq != 1 {
		t.Errorf("after a refused change: %v, %v", head, err)
	}
	exec(t, db, "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is full'); END")
	if err := change(nil); err == nil || !strings.Contains(err.Error(), "full") || count() != 0 {
		t.Errorf("with an audit log that takes nothing: %v, %d", err, count())
	}
	exec(t, db, "DROP TRIGGER full")
	if err := change(nil); err != nil || count() != 1 {
		t.Errorf("%v, %d", err, count())
	}
}

func TestNewestNeverGoesBack(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx := context.Background()
		if newest, err := audit.Newest(ctx, db); err != nil || !newest.IsZero() {
			t.Fatalf("of an empty log: %v, %v", newest, err)
		}
		for _, step := range []struct{ at, want time.Duration }{{0, 0}, {time.Hour, time.Hour}, {-time.Hour, time.Hour}, {time.Minute, time.Hour}, {2 * time.Hour, 2 * time.Hour}} {
			write(t, db, noon.Add(step.at), "x", "y")
			if newest, err := audit.Newest(ctx, db); err != nil || !newest.Equal(noon.Add(step.want)) {
				t.Errorf("newest is %v, want %v; %v", newest, noon.Add(step.want), err)
			}
		}
		if _, err := audit.Verify(ctx, db, nil); err != nil {
			t.Error(err)
		}
	})
}

// More than one page of the log, exported and read back as anybody would.
func TestExport(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := storage.Open(t, database.SQLite)
	odd := "a \"quoted\"\nline, \x1b[31m, \u009b31m, \u202e, \u2028, \U0001f511 and <tags>"
	write(t, db, noon, odd)
	objects := make([]string, 2100)
	for i := range objects {
		objects[i] = fmt.Sprint("object-", i)
	}
	write(t, db, noon, objects...)
	var out bytes.Buffer
	if err := audit.Export(ctx, db, &out, audit.Filter{}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2102 {
		t.Fatalf("%d lines", len(lines))
	}
	previous := ""
	for n, line := range lines[:2101] {
		var e struct {
			Seq                                           int64
			At                                            int64
			Actor, Action, Object, Detail, Previous, Hash string
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("line %d: %v", n+1, err)
		}
		if e.Seq != int64(n+1) || e.Previous != previous || e.At != noon.UnixMilli() || (n == 0 && e.Object != odd) {
			t.Fatalf("line %d: %s", n+1, line)
		}
		previous = e.Hash
	}
	for _, char := range out.Bytes() {
		if char != '\n' && (char < ' ' || char > '~') {
			t.Fatalf("octet %#x in the export", char)
		}
	}
	if head, err := audit.ReadHead(out.Bytes()); err != nil || head.Seq != 2101 || head.Hash != previous || head.Epoch != 1 {
		t.Errorf("the head of the export: %v, %v", head, err)
	}
	if head, err := audit.Verify(ctx, db, nil); err != nil || head.Hash != previous {
		t.Errorf("%v, %v", head, err)
	}
}
