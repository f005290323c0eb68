//go:build testhooks

// A certificate that is under way when its device is suspended.

package ca_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func TestIssuedWhileItsDeviceIsSuspended(t *testing.T) {
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	code, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	fault.Set(func(name string) fault.Mode {
		if name == "ca.sign" {
			return fault.NotDone
		}
		return fault.None
	})
	_, err = i.EnrollWith("dev-1", code.Code, installation.CSR(t, installation.Key(t), "dev-1", nil))
	fault.Set(nil)
	if err == nil {
		t.Fatal("signed")
	}
	if _, err := i.Book.SuspendDevice(ctx, "test", "dev-1"); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		list, err := i.CA.Certificates(ctx, ca.Filter{Device: "dev-1"})
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return list[0].State
	}
	if _, _, err := i.CA.Sweep(ctx); err != nil || state() != ca.Held {
		t.Errorf("the certificate is %s, %v", state(), err)
	}
	if _, err := i.Book.ResumeDevice(ctx, "test", "dev-1"); err != nil || state() != ca.Issued {
		t.Errorf("after the resumption it is %s, %v", state(), err)
	}
}

// A CA that was revoked signs nothing more, not even what was recorded before.
func TestRevokedCACompletesNothing(t *testing.T) {
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	fault.Set(func(name string) fault.Mode {
		if name == "ca.sign" {
			return fault.NotDone
		}
		return fault.None
	})
	_, err := i.CA.Issue(ctx, request("devices", "iot-device", "dev-1", installation.Key(t).Public()))
	fault.Set(nil)
	if err == nil {
		t.Fatal("signed")
	}
	if _, err := i.CA.RevokeCA(ctx, "test", "devices", "cACompromise"); err != nil {
		t.Fatal(err)
	}
	completed, abandoned, err := i.CA.Sweep(ctx)
	if err != nil || completed != 0 || abandoned != 1 {
		t.Errorf("%d completed, %d abandoned, %v", completed, abandoned, err)
	}
}

// The suspension holds the lock on the certificate while that is about to be stored: the one that waited sees what it waited for.
func TestIssuedRightBehindASuspension(t *testing.T) {
	i := installation.New(t, storage.Open(t, database.Postgres))
	ctx := context.Background()
	fault.Set(func(name string) fault.Mode {
		if name == "ca.sign" {
			return fault.NotDone
		}
		return fault.None
	})
	_, err := i.CA.Issue(ctx, request("devices", "iot-device", "dev-1", installation.Key(t).Public()))
	fault.Set(nil)
	if err == nil {
		t.Fatal("signed")
	}
	locked, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 2)
	go func() {
		done <- i.DB.Write(ctx, "test.suspend", func(tx *database.Tx) error {
			_, err := i.CA.SuspendInTx(tx, i.Clock.Clock().Now(), "test", "dev-1")
			close(locked)
			<-release
			return err
		})
	}()
	<-locked
	go func() {
		_, _, err := i.CA.Sweep(ctx)
		done <- err
	}()
	harness.Eventually(t, 10*time.Second, "the sweep waits", func() bool {
		var waiting int64
		err := i.DB.Get(ctx, &waiting, "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
		return err == nil && waiting > 0
	})
	close(release)
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	list, err := i.CA.Certificates(ctx, ca.Filter{Device: "dev-1"})
	if err != nil || len(list) != 1 || list[0].State != ca.Held {
		t.Errorf("%+v, %v", list, err)
	}
}
