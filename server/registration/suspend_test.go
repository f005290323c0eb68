// A suspended device: refused on every way, gone from the brokers, and back as it was.

package registration_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

func stateOf(t *testing.T, i *installation.Installation, c ca.Certificate) string {
	t.Helper()
	found, err := i.CA.Certificate(context.Background(), c.Serial)
	if err != nil {
		t.Fatal(err)
	}
	return found.State
}

func inBroker(t *testing.T, i *installation.Installation, id string) bool {
	t.Helper()
	list, err := i.Book.DevicesForBroker(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(list.Devices, func(d feedapi.Device) bool { return d.ID == id })
}

func TestSuspendAndResume(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		code, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		csr := installation.CSR(t, installation.Key(t), "dev-1", nil)
		first, err := i.EnrollWith("dev-1", code.Code, csr)
		if err != nil {
			t.Fatal(err)
		}
		renew := func() (ca.Certificate, error) {
			return i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
		}
		revoked, err := renew()
		if err != nil {
			t.Fatal(err)
		}
		held, err := renew()
		if err != nil {
			t.Fatal(err)
		}
		for c, reason := range map[string]string{revoked.Serial: "superseded", held.Serial: "certificateHold"} {
			if _, err := i.CA.Revoke(ctx, "test", c, reason); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the repeat changes nothing
			e, err := i.Book.SuspendDevice(ctx, "test", "dev-1")
			if err != nil || e.State != registration.StateGenerated || e.SuspendedAt.IsZero() {
				t.Fatalf("suspended: %+v, %v", e, err)
			}
		}
		if got := stateOf(t, i, first); got != ca.Held || inBroker(t, i, "dev-1") {
			t.Errorf("suspended: the certificate is %s, in the broker's list: %v", got, inBroker(t, i, "dev-1"))
		}
		_, err = i.EnrollWith("dev-1", code.Code, csr)
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
		_, err = renew()
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
		_, err = i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
		wantKind(t, err, registration.Conflict, "device_state")
		_, err = i.Book.Reissue(ctx, "test", "dev-1", "")
		wantKind(t, err, registration.Conflict, "device_suspended")
		if _, err := i.CA.Unhold(ctx, "test", first.Serial); err == nil {
			t.Error("a certificate left the suspension by itself")
		}
		crl, err := i.CA.CurrentCRL(ctx, "devices")
		if err != nil || crl.Entries != 3 {
			t.Errorf("the CRL lists %d certificates, %v", crl.Entries, err)
		}
		for range 2 {
			e, err := i.Book.ResumeDevice(ctx, "test", "dev-1")
			if err != nil || e.State != registration.StateGenerated || !e.SuspendedAt.IsZero() {
				t.Fatalf("resumed: %+v, %v", e, err)
			}
		}
		if a, b, c := stateOf(t, i, first), stateOf(t, i, held), stateOf(t, i, revoked); a != ca.Issued || b != ca.Held || c != ca.Revoked || !inBroker(t, i, "dev-1") {
			t.Errorf("resumed: %s, %s, %s, in the broker's list: %v", a, b, c, inBroker(t, i, "dev-1"))
		}
		if again, err := i.EnrollWith("dev-1", code.Code, csr); err != nil || again.Serial != first.Serial {
			t.Errorf("the repeat after the resumption: %v", err)
		}
		if _, err := renew(); err != nil {
			t.Errorf("a renewal after the resumption: %v", err)
		}
		if crl, err = i.CA.CurrentCRL(ctx, "devices"); err != nil || crl.Entries != 2 {
			t.Errorf("after the resumption the CRL lists %d certificates, %v", crl.Entries, err)
		}
	})
}

// A device that has not enrolled yet is suspended as well: its code and its birth certificate wait.
func TestSuspendedBeforeItEnrolled(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	code, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	factory := testpki.Root(t, "Factory", testpki.Valid(installation.Start.AddDate(-1, 0, 0), installation.Start.AddDate(20, 0, 0)))
	if _, err := i.Book.AddBirthCA(ctx, "test", registration.Default, factory.PEM()); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.AddDevice(ctx, "test", registration.NewDevice{ID: "dev-2", Label: registration.Default}); err != nil {
		t.Fatal(err)
	}
	birth := factory.Leaf(t, "dev-2", testpki.Valid(installation.Start.AddDate(-1, 0, 0), installation.Start.AddDate(20, 0, 0)))
	byCode := func() error {
		_, err := i.EnrollWith("dev-1", code.Code, installation.CSR(t, installation.Key(t), "dev-1", nil))
		return err
	}
	byBirth := func() error {
		_, err := enrollBirth(i, birth.Certificate, installation.CSR(t, installation.Key(t), "dev-2", nil))
		return err
	}
	for _, id := range []string{"dev-1", "dev-2"} {
		if _, err := i.Book.SuspendDevice(ctx, "test", id); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, byCode(), registration.NotAuthenticated, "not_authenticated")
	wantKind(t, byBirth(), registration.NotAuthenticated, "not_authenticated")
	for _, id := range []string{"dev-1", "dev-2"} {
		if _, err := i.Book.ResumeDevice(ctx, "test", id); err != nil {
			t.Fatal(err)
		}
	}
	if err := byCode(); err != nil {
		t.Errorf("the code after the resumption: %v", err)
	}
	if err := byBirth(); err != nil {
		t.Errorf("the birth certificate after the resumption: %v", err)
	}
}

func TestSuspendedDeviceEnds(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	one, two := i.EnrollByCode(t, "dev-1", installation.Key(t)), i.EnrollByCode(t, "dev-2", installation.Key(t))
	for _, id := range []string{"dev-1", "dev-2"} {
		if _, err := i.Book.SuspendDevice(ctx, "test", id); err != nil {
			t.Fatal(err)
		}
	}
	if e, err := i.Book.RevokeDevice(ctx, "test", "dev-1", "keyCompromise"); err != nil || !e.SuspendedAt.IsZero() {
		t.Errorf("revoked: %+v, %v", e, err)
	}
	if err := i.Book.RemoveDevice(ctx, "test", "dev-2"); err != nil {
		t.Error(err)
	}
	for _, c := range []ca.Certificate{one, two} {
		if got := stateOf(t, i, c); got != ca.Revoked {
			t.Errorf("certificate of %s is %s", c.Device, got)
		}
	}
	_, err := i.Book.ResumeDevice(ctx, "test", "dev-1")
	wantKind(t, err, registration.Conflict, "device_state")
	if _, err := i.Book.Reissue(ctx, "test", "dev-1", "keyCompromise"); err != nil {
		t.Error(err)
	}
}

// A certificate that an operator held stays held while its device is suspended: nothing of a suspended device is valid.
func TestUnholdWhileSuspended(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		c := i.EnrollByCode(t, "dev-1", installation.Key(t))
		if _, err := i.CA.Revoke(ctx, "test", c.Serial, "certificateHold"); err != nil {
			t.Fatal(err)
		}
		if _, err := i.Book.SuspendDevice(ctx, "test", "dev-1"); err != nil {
			t.Fatal(err)
		}
		var refused *ca.Error
		if _, err := i.CA.Unhold(ctx, "test", c.Serial); !errors.As(err, &refused) || refused.Rule != "device_suspended" || stateOf(t, i, c) != ca.Held {
			t.Errorf("%v: the certificate is %s", err, stateOf(t, i, c))
		}
		if _, err := i.Book.ResumeDevice(ctx, "test", "dev-1"); err != nil || stateOf(t, i, c) != ca.Held {
			t.Errorf("%v: after the resumption it is %s", err, stateOf(t, i, c))
		}
		if _, err := i.CA.Unhold(ctx, "test", c.Serial); err != nil || stateOf(t, i, c) != ca.Issued {
			t.Errorf("%v: the certificate is %s", err, stateOf(t, i, c))
		}
	})
}
