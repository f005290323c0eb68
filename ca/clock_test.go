// A clock that is behind the server's own records signs nothing, and nothing that is logged meanwhile makes it credible again (INV-16).

package ca_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func TestClockBehind(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		waitingCA(t, i, "field")
		csr, err := i.CA.CSR(ctx, "field")
		if err != nil {
			t.Fatal(err)
		}
		i.Clock.Advance(time.Hour)
		c := issue(t, i, "devices", "dev-1")

		i.Clock.Advance(-5 * time.Minute)
		i = installation.Open(t, db, i.Dir, i.Clock)
		issue(t, i, "devices", "dev-2")

		i.Clock.Advance(-time.Second)
		for range 2 {
			i = installation.Open(t, db, i.Dir, i.Clock)
			_, err = i.CA.Issue(ctx, request("devices", "iot-device", "dev-3", installation.Key(t).Public()))
			wantError(t, err, ca.Unavailable, "clock_behind")
			_, err = i.CA.Create(ctx, "test", ca.CreateRequest{Name: "late", Parent: "root"})
			wantError(t, err, ca.Unavailable, "clock_behind")
			_, err = i.CA.Sign(ctx, "test", "root", csr, 5)
			wantError(t, err, ca.Unavailable, "clock_behind")
			_, err = i.CA.IssueCRL(ctx, "test", "devices")
			wantError(t, err, ca.Unavailable, "clock_behind")
			// What an operator does is logged, with the time that the clock shows.
			if _, err := i.Book.AddDevice(ctx, "test", registration.NewDevice{ID: "dev-" + time.Now().Format("150405.000000000"), Label: registration.Default}); err != nil {
				t.Fatal(err)
			}
		}
		// A revocation counts all the same; its CRL comes when the clock is right again.
		if r, err := i.CA.Revoke(ctx, "test", c.Serial, "keyCompromise"); err != nil || r.State != ca.Revoked {
			t.Errorf("revoked with a clock behind: %v, %s", err, r.State)
		}
		i.Clock.Advance(time.Minute)
		i = installation.Open(t, db, i.Dir, i.Clock)
		issue(t, i, "devices", "dev-4")
		if _, err := i.CA.IssueDueCRLs(ctx); err != nil {
			t.Fatal(err)
		}
		if _, list := current(t, i, "devices"); !slices.Contains(listed(list), c.Serial) {
			t.Error("the revocation is not on the CRL")
		}
	})
}

// Far ahead and back again. Nothing is dated back, and the CRLs do not go back either.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	keepCRLs(t, i.DB)
	for _, jump := range []time.Duration{-time.Hour, time.Hour, -day, day, 3000 * day, -3000 * day, 3000 * day} {
		i.Clock.Advance(jump)
		i = installation.Open(t, i.DB, i.Dir, i.Clock)
		now := i.Clock.Clock().Now()
		c, err := i.CA.Issue(ctx, request("devices", "iot-device", "dev-1", installation.Key(t).Public()))
		if jump < 0 {
			wantError(t, err, ca.Unavailable, "clock_behind")
		} else if err != nil || c.NotBefore.Before(now.Add(-5*time.Minute)) {
			t.Errorf("at %v: %v, from %v", now, err, c.NotBefore)
		}
		if _, err := i.CA.IssueCRL(ctx, "test", "devices"); (err == nil) != (jump > 0) {
			t.Errorf("a CRL at %v: %v", now, err)
		}
	}
	checkPublished(t, i.DB, "devices")
}
