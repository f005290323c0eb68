// A bundle is made once; what is left of it here is the certificate.

package registration_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func TestBundleOnce(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		code, err := i.Book.CreateCode(ctx, "test", "SN-1", registration.Default, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := i.Book.IssueBundle(ctx, "test", "SN-1", "", "", "pem")
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(bundle.Certificate.DER)
		if err != nil || leaf.Subject.String() != "CN=SN-1" || !bundle.Key.Public().(*ecdsa.PublicKey).Equal(leaf.PublicKey) || bundle.Certificate.RequesterKind != "bundle" {
			t.Fatalf("%v of %s, %v", leaf.Subject, bundle.Certificate.RequesterKind, err)
		}
		if e, err := i.Book.Device(ctx, "SN-1"); err != nil || e.State != registration.StateGenerated || e.BoundKind != "bundle" {
			t.Errorf("%+v, %v", e, err)
		}
		_, err = i.Book.IssueBundle(ctx, "test", "SN-1", "", "", "pem")
		wantKind(t, err, registration.Conflict, "bundle_delivered")
		_, err = i.EnrollWith("SN-1", code.Code, installation.CSR(t, installation.Key(t), "SN-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
		if _, err := i.Renew(t, bundle.Certificate, installation.CSR(t, installation.Key(t), "SN-1", nil)); err != nil {
			t.Errorf("renewed by the device: %v", err)
		}
		// The way back from a bundle that was lost.
		if _, err := i.Book.Reissue(ctx, "test", "SN-1", ""); err != nil {
			t.Fatal(err)
		}
		second, err := i.Book.IssueBundle(ctx, "test", "SN-1", registration.Default, "rsa:2048", "pem")
		if err != nil || second.Certificate.Serial == bundle.Certificate.Serial || stateOf(t, i, bundle.Certificate) != ca.Revoked {
			t.Errorf("after the reissue: %v", err)
		}
	})
}

func TestBundleRefusals(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	i.EnrollByCode(t, "enrolled", installation.Key(t))
	i.EnrollByCode(t, "removed", installation.Key(t))
	if err := i.Book.RemoveDevice(ctx, "test", "removed"); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.AddDevice(ctx, "test", registration.NewDevice{ID: "waits", Label: registration.Default}); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.SuspendDevice(ctx, "test", "waits"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id, label, key string
		kind           registration.Kind
		reason         string
	}{
		{"enrolled", "", "", registration.Conflict, "device_state"}, {"removed", "", "", registration.Conflict, "device_state"},
		{"waits", "", "", registration.Conflict, "device_suspended"}, {"enrolled", "bridge", "", registration.Conflict, "device_label"},
		{"fresh", "nowhere", "", registration.UnknownLabel, "unknown_label"}, {"fresh", "", "rsa:1024", registration.Invalid, "key_type"},
		{"natal-x", "", "", registration.Invalid, "device_id_reserved"}, {"a b", "", "", registration.Invalid, "device_id"},
	} {
		_, err := i.Book.IssueBundle(ctx, "test", c.id, c.label, c.key, "pem")
		wantKind(t, err, c.kind, c.reason)
	}
	if _, err := i.Book.Device(ctx, "fresh"); err == nil {
		t.Error("a refused bundle left a device")
	}
	_, err := i.Book.IssueBundle(ctx, "test", "fresh", "", "", "jks")
	wantKind(t, err, registration.Invalid, "bundle_format")
	if fresh, err := i.Book.IssueBundle(ctx, "test", "fresh", "", "ec:P-384", "pem"); err != nil || fresh.Certificate.Device != "fresh" || !inBroker(t, i, "fresh") {
		t.Errorf("a new device: %v", err)
	}
}
