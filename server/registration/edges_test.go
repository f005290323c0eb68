// The edges of the life of labels, end entities and certificates.

package registration_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

// A certificate that was renewed twice has two successors, perhaps one of them a thief's. The first to authenticate ends the other's right, and the
// audit log shows it.
func TestOneSuccessorCounts(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	first := i.EnrollByCode(t, "dev-1", installation.Key(t))
	lost, err := i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
	if err != nil {
		t.Fatal(err)
	}
	used, err := i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
	if err != nil {
		t.Fatal(err)
	}
	i.Clock.Advance(200 * 24 * time.Hour)
	if _, err := i.Renew(t, used, installation.CSR(t, installation.Key(t), "dev-1", nil)); err != nil {
		t.Fatal(err)
	}
	_, err = i.Renew(t, lost, installation.CSR(t, installation.Key(t), "dev-1", nil))
	wantKind(t, err, registration.NotAuthorized, "superseded")
	var log bytes.Buffer
	if err := audit.Export(context.Background(), i.DB, &log, audit.Filter{}); err != nil || !strings.Contains(log.String(), "renewed twice") {
		t.Errorf("no signal in the audit log, %v", err)
	}
}

// The answer was lost, then the label's profile changed or its CA ended: the repeat still gets what was issued.
func TestRepeatAfterTheLabelChanged(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		code, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		key := installation.Key(t)
		first, err := i.EnrollWith("dev-1", code.Code, installation.CSR(t, key, "dev-1", nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.Book.SetLabel(ctx, "test", registration.Label{Name: registration.Default, Profile: "iot-device-rsa2048"}); err != nil {
			t.Fatal(err)
		}
		again, err := i.EnrollWith("dev-1", code.Code, installation.CSR(t, key, "dev-1", nil))
		if err != nil || again.Serial != first.Serial {
			t.Fatalf("the repeat: %v", err)
		}
		// What is not a repeat is refused, and uses nothing up.
		fresh, err := i.Book.CreateCode(ctx, "test", "dev-2", registration.Default, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = i.EnrollWith("dev-2", fresh.Code, installation.CSR(t, key, "dev-2", nil))
		var refused *ca.Error
		if !errors.As(err, &refused) || refused.Rule != "key_type" {
			t.Fatalf("an EC key at an RSA label: %v", err)
		}
		if codes, err := i.Book.Codes(ctx, registration.Filter{Device: "dev-2"}); err != nil || codes[0].State != registration.CodeActive {
			t.Errorf("the code of a refused request is %v, %v", codes, err)
		}
	})
}

// A revoked CA issues nothing, its certificates authenticate nobody, and the brokers are told.
func TestRevokedCA(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	device := i.EnrollByCode(t, "dev-1", installation.Key(t))
	code, err := i.Book.CreateCode(ctx, "test", "dev-2", registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := i.CA.Get(ctx, "devices")
	if err != nil {
		t.Fatal(err)
	}
	root, err := i.CA.Get(ctx, "root")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.CA.Revoke(ctx, "test", ca.SerialHex(root.Certificate.SerialNumber), "cACompromise"); err == nil {
		t.Error("a root revoked itself")
	}
	serial := ca.SerialHex(info.Certificate.SerialNumber)
	if _, err := i.CA.Revoke(ctx, "test", serial, "certificateHold"); err == nil {
		t.Error("a CA was held")
	}
	before, err := i.CA.Changes().TrustSetSeq(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.CA.Revoke(ctx, "test", serial, "cACompromise"); err != nil {
		t.Fatal(err)
	}
	if after, err := i.CA.Changes().TrustSetSeq(ctx); err != nil || after <= before {
		t.Errorf("the trust set's number went from %d to %d, %v", before, after, err)
	}
	if _, err := i.EnrollWith("dev-2", code.Code, installation.CSR(t, installation.Key(t), "dev-2", nil)); err == nil {
		t.Error("a revoked CA issued")
	}
	_, err = i.Renew(t, device, installation.CSR(t, installation.Key(t), "dev-1", nil))
	wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
	crl, err := i.CA.CurrentCRL(ctx, "root")
	if err != nil || crl.Entries != 1 {
		t.Errorf("the root's CRL lists %d certificates, %v", crl.Entries, err)
	}
}

// The session of a key that was compromised must end, whatever else the device has; only an orderly replacement lets it go on.
func TestSupersededIsForOrderlyReplacement(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for reason, want := range map[string]bool{"keyCompromise": false, "unspecified": false, "superseded": true, "affiliationChanged": true} {
		device := "dev-" + reason
		first := i.EnrollByCode(t, device, installation.Key(t))
		i.Clock.Advance(time.Second)
		if _, err := i.Renew(t, first, installation.CSR(t, installation.Key(t), device, nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := i.CA.Revoke(ctx, "test", first.Serial, reason); err != nil {
			t.Fatal(err)
		}
		list, err := i.CA.Changes().Since(ctx, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.Kind == feedapi.CertificateRevoked && c.Revoked.Device == device && c.Revoked.Superseded != want {
				t.Errorf("%s: superseded is %v", reason, c.Revoked.Superseded)
			}
		}
	}
}

func TestRemovedDeviceStaysRemoved(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	i.EnrollByCode(t, "dev-1", installation.Key(t))
	if err := i.Book.RemoveDevice(ctx, "test", "dev-1"); err != nil {
		t.Fatal(err)
	}
	_, err := i.Book.RevokeDevice(ctx, "test", "dev-1", "unspecified")
	wantKind(t, err, registration.Conflict, "device_state")
	_, err = i.Book.Reissue(ctx, "test", "dev-1", "")
	wantKind(t, err, registration.Conflict, "device_state")
	if _, err := i.Book.AddDevice(ctx, "test", registration.NewDevice{ID: "dev-1", Label: registration.Default}); err != nil {
		t.Errorf("added again: %v", err)
	}
}

func TestLabelKeepsItsUse(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	if _, err := i.Book.AddDevice(ctx, "test", registration.NewDevice{ID: "dev-1", Label: registration.Default}); err != nil {
		t.Fatal(err)
	}
	_, err := i.Book.SetLabel(ctx, "test", registration.Label{Name: registration.Default, CA: "management", Profile: "bridge"})
	wantKind(t, err, registration.Conflict, "label_use")
}

// Birth certificates that a CA of this installation issued serve like any other's, until they are revoked.
func TestOwnBirthCertificate(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	factory, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "factory", Parent: "root"})
	if err != nil {
		t.Fatal(err)
	}
	line, err := i.Book.AddLabel(ctx, "test", registration.Label{Name: "line1", CA: "factory", Profile: "birth", Auth: []string{registration.AuthCode}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.AddBirthCA(ctx, "test", registration.Default, pemOf(factory.Certificate.Raw)); err != nil {
		t.Fatal(err)
	}
	for _, revoked := range []bool{false, true} {
		id := map[bool]string{false: "SN-1", true: "SN-2"}[revoked]
		birth, err := i.CA.Issue(ctx, ca.Request{CA: line.CA, Profile: line.Profile, Label: line.Name, Device: id, PublicKey: installation.Key(t).Public(), RequesterKind: "station", Requester: "s", Actor: "test"})
		if err != nil {
			t.Fatal(err)
		}
		if revoked {
			if _, err := i.CA.Revoke(ctx, "test", birth.Serial, "unspecified"); err != nil {
				t.Fatal(err)
			}
		}
		certificate, err := x509.ParseCertificate(birth.DER)
		if err != nil {
			t.Fatal(err)
		}
		if certificate.Subject.String() != (pkix.Name{CommonName: id, SerialNumber: id}).String() {
			t.Errorf("birth certificate of %s", certificate.Subject)
		}
		l, err := i.Book.Label(ctx, registration.Default)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.Book.CheckOperational(ctx, l, certificate); err == nil {
			t.Error("a birth certificate passed for an operational one")
		}
		if _, err := enrollBirth(i, certificate, installation.CSR(t, installation.Key(t), id, nil)); (err == nil) == revoked {
			t.Errorf("revoked %v: %v", revoked, err)
		}
	}
}
