// The log of revocations: one entry for each that was committed, in that order, and none seen before an earlier one.

package ca_test

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

type logged struct {
	Seq       int64  `db:"seq"`
	Issuer    string `db:"issuer"`
	Serial    string `db:"serial"`
	Reason    string `db:"reason"`
	RevokedAt int64  `db:"revoked_at"`
	NotAfter  int64  `db:"not_after"`
}

func revocations(t *testing.T, db *database.DB, after int64) []logged {
	t.Helper()
	var rows []logged
	if err := db.Select(context.Background(), &rows, "SELECT seq, issuer, serial, reason, revoked_at, not_after FROM revocations WHERE seq > ? ORDER BY seq", after); err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestRevocationLog(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		c := issue(t, i, "devices", "dev-1")
		var want []logged
		step := func(serial, reason string) {
			t.Helper()
			i.Clock.Advance(time.Minute)
			at := i.Clock.Clock().Now().UnixMilli()
			if reason == "" {
				at = 0
			}
			want = append(want, logged{int64(len(want) + 1), "devices", serial, reason, at, c.NotAfter.UnixMilli()})
			var err error
			if reason == "" {
				_, err = i.CA.Unhold(ctx, "test", serial)
			} else {
				_, err = i.CA.Revoke(ctx, "test", serial, reason)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		step(c.Serial, "certificateHold")
		step(c.Serial, "")
		step(c.Serial, "certificateHold")
		step(c.Serial, "keyCompromise")
		if _, err := i.CA.Revoke(ctx, "test", c.Serial, "superseded"); err != nil { // the first reason counts: nothing happens
			t.Fatal(err)
		}
		if got := revocations(t, db, 0); !reflect.DeepEqual(got, want) {
			t.Errorf("the log is\n%+v, want\n%+v", got, want)
		}
	})
}

// A reader that follows the log while others write never passes an entry that comes later.
func TestRevocationLogHasNoGaps(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		const writers, each = 4, 6
		var writing sync.WaitGroup
		for w := range writers {
			serials := make([]string, each)
			for n := range each {
				serials[n] = issue(t, i, "devices", fmt.Sprintf("dev-%d-%d", w, n)).Serial
			}
			writing.Go(func() {
				for _, serial := range serials {
					if _, err := i.CA.Revoke(context.Background(), "test", serial, "superseded"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		ended := make(chan struct{})
		go func() { writing.Wait(); close(ended) }()
		var seen int64
		for last := false; ; {
			for _, r := range revocations(t, db, seen) {
				if seen++; r.Seq != seen {
					t.Fatalf("entry %d was passed before entry %d", r.Seq, seen)
				}
			}
			if last {
				break
			}
			select {
			case <-ended:
				last = true
			default:
			}
		}
		if seen != writers*each {
			t.Errorf("%d entries, want %d", seen, writers*each)
		}
	})
}
