//go:build testhooks

// Storing the parts of a large CRL may fail at any of them: what was published before stays, and the next try makes it good.

package ca_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

// Not parallel: fault points belong to the whole process.
func TestPartsFail(t *testing.T) {
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	first := 0
	more := func(n int) { revokeMany(t, i, first, n); first += n }
	more(12000)
	if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
		t.Fatal(err)
	}
	for range 20 { // as many as are kept: from now on each one has some parts to remove
		more(20)
		if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []string{"crl.part", "crl.part_prune"} {
		for _, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
			before, _ := published(t, i, 0)
			more(20) // in every part
			var once atomic.Bool
			fault.Set(func(name string) fault.Mode {
				if name == step && once.CompareAndSwap(false, true) {
					return mode
				}
				return fault.None
			})
			_, err := i.CA.IssueCRL(ctx, "test", "devices")
			fault.Set(nil)
			if !once.Load() {
				t.Fatalf("%s was not reached", step)
			}
			if failed := err != nil; failed != (step == "crl.part") { // old parts may stay: the next CRL removes them
				t.Errorf("%s: %v", step, err)
			}
			p, _ := published(t, i, 0)
			if step == "crl.part" && p.Number != before.Number {
				t.Errorf("%s: CRL %d was published without all its parts", step, p.Number)
			}
			for range 2 {
				if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
					t.Fatal(err)
				}
			}
			fresh, _ := published(t, installation.Open(t, i.DB, i.Dir, i.Clock), 0) // read anew, its hash checked
			if fresh.Entries != first {
				t.Errorf("%s: %d entries, want %d", step, fresh.Entries, first)
			}
			if n := storedParts(t, i.DB); n > 20*4 {
				t.Errorf("%s: %d parts are kept", step, n)
			}
		}
	}
}
