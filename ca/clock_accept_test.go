//go:build testhooks

// A clock that ran years ahead is put right: nothing is signed, until an operator takes the clock for right; then everything goes on.

package ca_test

import (
	"context"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

const years = 365 * 24 * time.Hour

// Not parallel: fault points belong to the whole process.
func TestAcceptClock(t *testing.T) {
	defer fault.Set(nil)
	for _, dialect := range []string{database.SQLite, database.Postgres} {
		t.Run(dialect, func(t *testing.T) {
			ctx := context.Background()
			i := installation.New(t, storage.Open(t, dialect))
			revoked := issue(t, i, "devices", "dev-1")
			if _, err := i.CA.Revoke(ctx, "test", revoked.Serial, "keyCompromise"); err != nil {
				t.Fatal(err)
			}
			if _, err := i.CA.AcceptClock(ctx, "test", "it is right"); err == nil {
				t.Error("a clock that is right was accepted")
			}
			i.Clock.Advance(5 * years)
			for range 2 { // the second no longer lists what has ended by that clock
				if _, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil {
					t.Fatal(err)
				}
			}
			ahead := issue(t, i, "devices", "dev-2")
			future, err := i.CA.CurrentCRL(ctx, "devices")
			if err != nil {
				t.Fatal(err)
			}
			i.Clock.Advance(-5 * years)
			i = installation.Open(t, i.DB, i.Dir, i.Clock)
			_, err = i.CA.Issue(ctx, request("devices", "iot-device", "dev-3", installation.Key(t).Public()))
			wantError(t, err, ca.Unavailable, "clock_behind")
			if behind, err := i.CA.ClockBehind(ctx); err != nil || behind != 5*years {
				t.Errorf("behind by %v, %v", behind, err)
			}

			fault.Set(func(name string) fault.Mode {
				if name == "clock.accept" {
					return fault.NotDone
				}
				return fault.None
			})
			if _, err := i.CA.AcceptClock(ctx, "test", "the battery"); err == nil {
				t.Error("no error")
			}
			fault.Set(nil)
			_, err = i.CA.IssueCRL(ctx, "test", "devices")
			wantError(t, err, ca.Unavailable, "clock_behind")

			found, err := i.CA.AcceptClock(ctx, "test", "the battery")
			if err != nil || found.CRLs < 2 || found.Certificates != 1 || found.Newest.Before(i.Clock.Clock().Now().Add(4*years)) {
				t.Fatalf("%+v, %v", found, err)
			}
			crl, err := i.CA.CurrentCRL(ctx, "devices")
			if err != nil {
				t.Fatal(err)
			}
			if crl.Number <= future.Number || crl.ThisUpdate.After(i.Clock.Clock().Now()) || crl.Entries != 1 {
				t.Errorf("CRL %d of %v with %d entries, after number %d", crl.Number, crl.ThisUpdate, crl.Entries, future.Number)
			}
			now := i.Clock.Clock().Now()
			c := issue(t, i, "devices", "dev-4")
			if c.NotBefore.Before(now.Add(-time.Hour)) || c.NotBefore.After(now) || !ahead.NotBefore.After(now) {
				t.Errorf("begins %v, it is %v", c.NotBefore, now)
			}
			if _, err := audit.Verify(ctx, i.DB, nil); err != nil {
				t.Error(err)
			}
		})
	}
}
