// What a bridge relies on: no change is seen before one with a lower number, none is lost, and who waits is woken.

package changes_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/changes"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/test/storage"
)

var noon = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func added(id string) feedapi.Change {
	return feedapi.Change{At: noon, Kind: feedapi.DeviceAdded, Device: &feedapi.Device{ID: id, Label: "default", Profile: "iot-device"}}
}

func write(db *database.DB, log *changes.Log, end error, list ...feedapi.Change) error {
	return db.Write(context.Background(), "test.change", func(tx *database.Tx) error {
		for _, c := range list {
			log.Append(tx, c)
		}
		return end
	})
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx := context.Background()
		log := changes.New(db)
		list := []feedapi.Change{
			added("dev-1"),
			{At: noon, Kind: feedapi.DeviceRemoved, Device: &feedapi.Device{ID: "dev-2", Label: "l", Profile: "p"}},
			{At: noon, Kind: feedapi.CertificateRevoked, Revoked: &feedapi.Revoked{Serial: "01ab", Issuer: "devices", Device: "dev-3", Reason: "keyCompromise", RevokedAt: noon, Superseded: true}},
			{At: noon, Kind: feedapi.CertificateRevoked, Revoked: &feedapi.Revoked{Serial: "01ac", Issuer: "devices", Device: "dev-3", Reason: "superseded", RevokedAt: noon}},
			{At: noon, Kind: feedapi.TrustSetChanged},
			added("dev-4"),
		}
		refused := errors.New("refused")
		if err := write(db, log, refused, added("never")); !errors.Is(err, refused) {
			t.Fatal(err)
		}
		if err := write(db, log, nil, list[:4]...); err != nil {
			t.Fatal(err)
		}
		if err := write(db, log, nil, list[4:]...); err != nil {
			t.Fatal(err)
		}
		for i := range list {
			list[i].Seq = int64(i + 1)
		}
		got, err := log.Since(ctx, 0, 100)
		if err != nil || !reflect.DeepEqual(got, list) {
			t.Errorf("%v\n got %v\nwant %v", err, got, list)
		}
		if got, err := log.Since(ctx, 2, 2); err != nil || !reflect.DeepEqual(got, list[2:4]) {
			t.Errorf("two after the second: %v, %v", got, err)
		}
		if got, err := log.Since(ctx, 6, 100); err != nil || got == nil || len(got) != 0 {
			t.Errorf("after the last: %#v, %v", got, err)
		}
		if seq, err := log.Seq(ctx); err != nil || seq != 6 {
			t.Errorf("newest is %d, %v", seq, err)
		}
		if seq, err := log.TrustSetSeq(ctx); err != nil || seq != 5 {
			t.Errorf("newest of the trust set is %d, %v", seq, err)
		}
	})
}

// Writers at two servers, and a follower that never looks back: he gets every change, once, in order.
func TestFollowerMissesNothing(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		const writers, each = 12, 15
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		log := changes.New(db)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if err := write(db, log, nil, added(fmt.Sprintf("dev-%d-%d", w, i)), added(fmt.Sprintf("twin-%d-%d", w, i))); err != nil {
						t.Error(err)
					}
					log.Announce()
				}
			})
		}
		seen := map[string]bool{}
		for next := int64(1); len(seen) < 2*writers*each; {
			announced := log.Announced()
			list, err := log.Since(ctx, next-1, 7)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range list {
				if c.Seq != next || seen[c.Device.ID] {
					t.Fatalf("change %d (%s) where %d was due", c.Seq, c.Device.ID, next)
				}
				seen[c.Device.ID] = true
				next++
			}
			if len(list) > 0 {
				continue
			}
			select {
			case <-announced:
			case <-ctx.Done():
				t.Fatalf("%d of %d seen, and nobody announces more", len(seen), 2*writers*each)
			}
		}
		wg.Wait()
	})
}
