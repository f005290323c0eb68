// One certificate at a time: a device whose renewal's answer was lost gets that certificate again, and nothing else; and names that are somebody's.

package registration_test

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

const singleProfile = `name: single
use: broker
keys: [ec:P-256]
validity: 30d
backdate: 5m
single_active: true
subject: {common_name: device}
san:
  requested:
    dns: {suffixes: [any]}
extended_key_usage: [clientAuth]
`

// withSingle has the default label issue by a profile with one certificate at a time.
func withSingle(t *testing.T, db *database.DB) *installation.Installation {
	t.Helper()
	i := installation.New(t, db)
	if _, err := i.CA.AddProfile(context.Background(), "test", []byte(singleProfile)); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.SetLabel(context.Background(), "test", registration.Label{Name: registration.Default, Profile: "single"}); err != nil {
		t.Fatal(err)
	}
	return i
}

func TestSingleActiveAndALostAnswer(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := withSingle(t, db)
		ctx := context.Background()
		state := func(c ca.Certificate) string {
			now, err := i.CA.Certificate(ctx, c.Serial)
			if err != nil {
				t.Fatal(err)
			}
			return now.State + " " + now.Reason
		}
		first := i.EnrollByCode(t, "dev-1", installation.Key(t))
		key := installation.Key(t)
		second, err := i.Renew(t, first, installation.CSR(t, key, "dev-1", nil))
		if err != nil || state(first) != "revoked superseded" || state(second) != "issued " {
			t.Fatalf("%v: the first is %s, the second %s", err, state(first), state(second))
		}
		// The answer was lost: the same request with the certificate that has just ended.
		again, err := i.Renew(t, first, installation.CSR(t, key, "dev-1", nil))
		if err != nil || again.Serial != second.Serial {
			t.Fatalf("the repeat: %v, certificate %s, want %s", err, again.Serial, second.Serial)
		}
		_, err = i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
		i.Clock.Advance(registration.RedeliveryWindow + time.Second)
		_, err = i.Renew(t, first, installation.CSR(t, key, "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")

		// The device goes on with its new certificate, also with the key that it has.
		third, err := i.Renew(t, second, installation.CSR(t, key, "dev-1", nil))
		if err != nil || state(second) != "revoked superseded" || state(third) != "issued " {
			t.Fatalf("%v: the second is %s, the third %s", err, state(second), state(third))
		}
		// A revocation for another reason opens nothing.
		fourth, err := i.Renew(t, third, installation.CSR(t, key, "dev-1", nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.CA.Revoke(ctx, "test", fourth.Serial, "keyCompromise"); err != nil {
			t.Fatal(err)
		}
		_, err = i.Renew(t, fourth, installation.CSR(t, key, "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
		_, err = i.Renew(t, third, installation.CSR(t, key, "dev-1", nil)) // its successor is revoked now
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
	})
}

func TestNamesOfOthersAreReserved(t *testing.T) {
	t.Parallel()
	i := withSingle(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for _, d := range []registration.NewDevice{{ID: "pump-7", Label: registration.Default}, {ID: "broker.example.com", Label: "bridge", SANs: []string{"dns:mqtt.example.com"}}} {
		if _, err := i.Book.AddDevice(ctx, "test", d); err != nil {
			t.Fatal(err)
		}
	}
	for name, reserved := range map[string]bool{
		"pump-7": true, "PUMP-7": true, "broker.example.com": true, "mqtt.example.com": true, "dev-1": false, "localhost": false, "free.example.com": false, "qtt.example.com": false,
	} {
		code, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = i.EnrollWith("dev-1", code.Code, installation.CSR(t, installation.Key(t), "dev-1", func(r *x509.CertificateRequest) { r.DNSNames = []string{name} }))
		var refused *ca.Error
		if got := errors.As(err, &refused) && refused.Rule == "san_reserved"; got != reserved || !reserved && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if _, err := i.Book.Reissue(ctx, "test", "dev-1", ""); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A device could enroll by a profile without clientAuth and never renew.
func TestLabelNeedsClientAuth(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	_, err := i.Book.AddLabel(context.Background(), "test", registration.Label{Name: "servers", CA: "management", Profile: "mqtt-server", Auth: []string{"code"}})
	wantKind(t, err, registration.Invalid, "label_client_auth")
}

// A clock that was put back: the certificate of before has the later time, and the new one counts all the same.
func TestSingleActiveAfterTheClockWentBack(t *testing.T) {
	t.Parallel()
	i := withSingle(t, storage.Open(t, database.SQLite))
	first := i.EnrollByCode(t, "dev-1", installation.Key(t))
	i.Clock.Advance(-2 * time.Minute)
	second, err := i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
	if err != nil {
		t.Fatal(err)
	}
	if now, err := i.CA.Certificate(context.Background(), second.Serial); err != nil || now.State != ca.Issued {
		t.Errorf("the new certificate is %s (%s), %v", now.State, now.Reason, err)
	}
}

// A name with a wildcard stands for names that are somebody's, and a name below a registered wildcard is somebody's.
func TestWildcardsOverReservedNames(t *testing.T) {
	t.Parallel()
	i := withSingle(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for _, d := range []registration.NewDevice{{ID: "b-1", Label: "bridge", SANs: []string{"dns:mqtt.example.com"}}, {ID: "b-2", Label: "bridge", SANs: []string{"dns:*.example.org"}}} {
		if _, err := i.Book.AddDevice(ctx, "test", d); err != nil {
			t.Fatal(err)
		}
	}
	reserved := i.Book.Reserved(ctx, "dev-1")
	for name, want := range map[string]bool{
		"dns:*.example.com": true, "dns:x.example.org": true, "dns:*.example.org": true, "dns:example.com": false, "dns:x.y.example.org": false, "dns:*.example.net": false, "dns:*.com": false,
	} {
		if got := reserved(name); got != want {
			t.Errorf("%s: reserved %t, want %t", name, got, want)
		}
	}
}
