//go:build testhooks

// A certificate that is under way when its device is suspended.

package ca_test

import (
	"context"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/server/registration"
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
