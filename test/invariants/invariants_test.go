// The checker finds nothing in what the server made, and every kind of harm done to it.

package invariants_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/invariants"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

// busy makes an installation in which everything has happened once, and returns what clients hold.
func busy(t *testing.T, url string) (*installation.Installation, []invariants.Received) {
	t.Helper()
	ctx := context.Background()
	i := installation.New(t, storage.OpenURL(t, url))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var received []invariants.Received
	got := func(device, credential string, c ca.Certificate) ca.Certificate {
		received = append(received, invariants.Received{Device: device, Credential: credential, Certificate: c.DER})
		return c
	}
	one := got("dev-1", "code of dev-1", i.EnrollByCode(t, "dev-1", installation.Key(t)))
	renewed, err := i.Renew(t, one, installation.CSR(t, installation.Key(t), "dev-1", nil))
	must(err)
	got("dev-1", "renewal of dev-1", renewed)
	two := got("dev-2", "code of dev-2", i.EnrollByCode(t, "dev-2", installation.Key(t)))
	_, err = i.CA.Revoke(ctx, "test", two.Serial, "certificateHold")
	must(err)
	_, err = i.CA.Unhold(ctx, "test", two.Serial)
	must(err)
	i.EnrollByCode(t, "dev-3", installation.Key(t))
	i.Clock.Advance(time.Minute)
	_, err = i.Book.RevokeDevice(ctx, "test", "dev-3", "keyCompromise")
	must(err)
	code, err := i.Book.Reissue(ctx, "test", "dev-3", "")
	must(err)
	three, err := i.EnrollWith("dev-3", code.Code, installation.CSR(t, installation.Key(t), "dev-3", nil))
	must(err)
	got("dev-3", "second code of dev-3", three)
	_, err = i.Book.CreateCode(ctx, "test", "dev-4", registration.Default, 0, nil)
	must(err)
	i.EnrollByCode(t, "dev-5", installation.Key(t))
	must(i.Book.RemoveDevice(ctx, "test", "dev-5"))

	factory := testpki.Root(t, "Factory", testpki.Valid(installation.Start.AddDate(-1, 0, 0), installation.Start.AddDate(20, 0, 0)))
	_, err = i.Book.AddBirthCA(ctx, "test", registration.Default, factory.PEM())
	must(err)
	l, err := i.Book.Label(ctx, registration.Default)
	must(err)
	birth := factory.Leaf(t, "dev-6", testpki.Valid(installation.Start.AddDate(-1, 0, 0), installation.Start.AddDate(20, 0, 0)))
	r, err := i.Book.CheckBirth(ctx, l, birth.Certificate, nil)
	must(err)
	six, err := i.Book.Enroll(ctx, r, l, installation.CSR(t, installation.Key(t), "dev-6", nil), false)
	must(err)
	got("dev-6", "birth certificate of dev-6", six)
	got("dev-7", "code of dev-7", i.EnrollByCode(t, "dev-7", installation.Key(t)))
	_, err = i.Book.SuspendDevice(ctx, "test", "dev-7")
	must(err)
	got("dev-8", "code of dev-8", i.EnrollByCode(t, "dev-8", installation.Key(t)))
	_, err = i.Book.SuspendDevice(ctx, "test", "dev-8")
	must(err)
	_, err = i.Book.ResumeDevice(ctx, "test", "dev-8")
	must(err)
	_, err = i.CA.Create(ctx, "test", ca.CreateRequest{Name: "waiting", External: true})
	must(err)
	return i, received
}

func TestNothingIsBroken(t *testing.T) {
	t.Parallel()
	for _, dialect := range []string{database.SQLite, database.Postgres} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			url := storage.URL(t, dialect)
			i, received := busy(t, url)
			invariants.Require(t, url, invariants.State{Now: i.Clock.Clock().Now(), Settled: true}, received...)
		})
	}
}

func TestHarmIsFound(t *testing.T) {
	t.Parallel()
	device := func(id string) string { return "(SELECT serial FROM certificates WHERE device = '" + id + "')" }
	for _, tc := range []struct {
		name, invariant string
		statements      []string
	}{
		{"other bytes were signed", "INV-1", []string{"UPDATE certificates SET tbs_sha256 = lower(hex(randomblob(32))) WHERE device = 'dev-2'"}},
		{"a certificate of other bytes", "INV-1", []string{"UPDATE certificates SET der = (SELECT der FROM certificates WHERE device = 'dev-6') WHERE device = 'dev-2'"}},
		{"a damaged certificate", "INV-1", []string{"UPDATE certificates SET der = substr(der, 1, 100) WHERE device = 'dev-2'"}},
		{"a changed signature", "INV-1", []string{"UPDATE certificates SET der = substr(der, 1, length(der) - 1) || x'00' WHERE device = 'dev-2'"}},
		{"another key on record", "INV-1", []string{"UPDATE certificates SET spki_sha256 = 'x' WHERE device = 'dev-2'"}},
		{"another end on record", "INV-1", []string{"UPDATE certificates SET not_after = not_after + 1000 WHERE device = 'dev-2'"}},
		{"another device on record", "INV-1", []string{"UPDATE certificates SET device = 'dev-9' WHERE device = 'dev-2'"}},
		{"another CA on record", "INV-1", []string{"UPDATE certificates SET issuer = 'management' WHERE device = 'dev-2'"}},
		{"nobody asked for it", "INV-1", []string{"UPDATE certificates SET requester = '' WHERE device = 'dev-6'"}},
		{"a client's certificate is not on record", "INV-2", []string{"DELETE FROM certificates WHERE device = 'dev-2'"}},
		{"a client's certificate was never stored", "INV-2", []string{"UPDATE certificates SET state = 'intended', der = NULL WHERE device = 'dev-2'"}},
		{"a short serial number", "INV-3", []string{"UPDATE certificates SET serial = '01' WHERE device = 'dev-2'"}},
		{"a number used twice", "INV-3", []string{"CREATE TABLE c AS SELECT * FROM certificates", "INSERT INTO c SELECT * FROM c WHERE device = 'dev-2'", "DROP TABLE certificates", "ALTER TABLE c RENAME TO certificates"}},
		{"left intended", "INV-4", []string{"UPDATE certificates SET state = 'intended', issued_at = 0, tbs = x'00', der = NULL WHERE device = 'dev-2'"}},
		{"issued without a certificate", "INV-4", []string{"UPDATE certificates SET der = NULL WHERE device = 'dev-2'"}},
		{"abandoned and issued", "INV-4", []string{"UPDATE certificates SET state = 'abandoned' WHERE device = 'dev-2'"}},
		{"revoked without a reason", "INV-4", []string{"UPDATE certificates SET state = 'revoked' WHERE device = 'dev-2'"}},
		{"a state of its own", "INV-4", []string{"UPDATE certificates SET state = 'valid' WHERE device = 'dev-2'"}},
		{"a code used and still active", "INV-5", []string{"UPDATE enrollment_codes SET state = 'active' WHERE device = 'dev-2'"}},
		{"a code used for nothing", "INV-5", []string{"UPDATE enrollment_codes SET state = 'used', used_at = 1 WHERE device = 'dev-4'"}},
		{"a code used for another's certificate", "INV-5", []string{"UPDATE enrollment_codes SET serial = " + device("dev-6") + " WHERE device = 'dev-2'"}},
		{"a code good for two", "INV-5", []string{"UPDATE certificates SET requester = (SELECT id FROM enrollment_codes WHERE device = 'dev-2'), requester_kind = 'code' WHERE device = 'dev-6'"}},
		{"two first certificates of a device", "INV-5", []string{"UPDATE certificates SET generation = 1 WHERE device = 'dev-3'"}},
		{"a right used up twice", "INV-5", []string{"DROP INDEX certificates_claim", "UPDATE certificates SET claim = 'x'"}},
		{"a code that was forgotten", "INV-5", []string{"DELETE FROM enrollment_codes WHERE device = 'dev-2'"}},
		{"a device that may enroll again", "INV-5", []string{"UPDATE end_entities SET state = 'new' WHERE id = 'dev-2'"}},
		{"a state that no device has", "INV-5", []string{"UPDATE end_entities SET state = 'retired' WHERE id = 'dev-5'"}},
		{"a suspended device with a certificate", "INV-8", []string{"UPDATE certificates SET state = 'issued', reason = '', revoked_at = 0 WHERE device = 'dev-7'"}},
		{"a device that was resumed by half", "INV-8", []string{"UPDATE end_entities SET suspended_at = 0 WHERE id = 'dev-7'"}},
		{"revoked and suspended", "INV-8", []string{"UPDATE end_entities SET suspended_at = 1 WHERE id = 'dev-5'"}},
		{"suspended by nobody", "INV-11", []string{"UPDATE end_entities SET suspended_at = 1 WHERE id = 'dev-4'"}},
		{"a CA in no state that there is", "INV-1", []string{"UPDATE authorities SET state = 'asleep' WHERE name = 'management'"}},
		{"a CA and its successor both issue", "INV-1", []string{"UPDATE authorities SET replaces = 'devices' WHERE name = 'management'"}},
		{"a CRL number used up and forgotten", "INV-7", []string{"UPDATE authorities SET crl_number = 1"}},
		{"CRLs in another order", "INV-7", []string{"UPDATE crls SET number = 100 WHERE authority = 'devices' AND number = 2"}},
		{"a damaged CRL", "INV-7", []string{"UPDATE crls SET der = substr(der, 1, 50) WHERE authority = 'devices' AND number = 2"}},
		{"another CA's CRL", "INV-7", []string{"UPDATE crls SET der = (SELECT der FROM crls WHERE authority = 'management' AND number = 1) WHERE authority = 'devices' AND number = 1"}},
		{"a CRL from the future", "INV-7", []string{"UPDATE crls SET issued_at = issued_at + 100000000 WHERE authority = 'devices' AND number = 1"}},
		{"a revocation that was not published", "INV-7", []string{"UPDATE certificates SET state = 'revoked', reason = 'superseded', revoked_at = created_at WHERE device = 'dev-6'"}},
		{"a revocation undone", "INV-7", []string{"UPDATE certificates SET state = 'issued', reason = '', revoked_at = 0 WHERE state = 'revoked'"}},
		{"a CA without a CRL", "INV-7", []string{"DELETE FROM crls WHERE authority = 'management'"}},
		{"an audit entry changed", "INV-11", []string{"UPDATE audit SET actor = 'x' WHERE seq = 7"}},
		{"an audit entry removed", "INV-11", []string{"DELETE FROM audit WHERE seq = 7"}},
		{"the end of the audit log removed", "INV-11", []string{"DELETE FROM audit WHERE seq > 20"}},
		{"a device from nowhere", "INV-11", []string{"INSERT INTO end_entities SELECT 'dev-9', label, 'new', '', '', sans, generation, service, suspended_at, created_at, updated_at FROM end_entities WHERE id = 'dev-4'"}},
		{"a revocation from nowhere", "INV-11", []string{"UPDATE certificates SET state = 'revoked', reason = 'superseded', revoked_at = 1 WHERE device = 'dev-6'"}},
		{"a CRL from nowhere", "INV-11", []string{"UPDATE crls SET number = 3 WHERE authority = 'management'"}},
		{"a gap in the changes", "INV-11", []string{"DELETE FROM changes WHERE seq = 2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			url := storage.URL(t, database.SQLite)
			i, received := busy(t, url)
			err := i.DB.Write(context.Background(), "test.harm", func(tx *database.Tx) error {
				for _, s := range tc.statements {
					if n, err := tx.Exec(s); err != nil {
						return fmt.Errorf("%s: %w", s, err)
					} else if n == 0 && strings.HasPrefix(s, "UPDATE") {
						return fmt.Errorf("%s: nothing there", s)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			found := invariants.Check(context.Background(), url, invariants.State{Now: i.Clock.Clock().Now(), Settled: true}, received...)
			for _, f := range found {
				if strings.HasPrefix(f.Error(), tc.invariant+": ") {
					return
				}
			}
			t.Errorf("%s was not found broken: %v", tc.invariant, found)
		})
	}
}

// What clients hold is judged too, and so is the hour.
func TestHarmAtTheClients(t *testing.T) {
	t.Parallel()
	url := storage.URL(t, database.SQLite)
	i, received := busy(t, url)
	now := i.Clock.Clock().Now()
	foreign := selfMade(t)
	for name, tc := range map[string]struct {
		invariant string
		state     invariants.State
		received  []invariants.Received
	}{
		"a certificate of somebody else's": {"INV-2", invariants.State{Now: now}, []invariants.Received{{Device: "dev-2", Certificate: received[0].Certificate}}},
		"a certificate from nowhere":       {"INV-2", invariants.State{Now: now}, []invariants.Received{{Device: "dev-1", Certificate: foreign}}},
		"two certificates for one code":    {"INV-5", invariants.State{Now: now}, []invariants.Received{{Device: "dev-1", Credential: "x", Certificate: received[0].Certificate}, {Device: "dev-1", Credential: "x", Certificate: received[1].Certificate}}},
		"CRLs that are over":               {"INV-7", invariants.State{Now: now.AddDate(0, 1, 0)}, nil},
		"a database that cannot be read":   {"read", invariants.State{Now: now}, nil},
	} {
		address := url
		if tc.invariant == "read" {
			address = "sqlite:/nonexistent/est.db"
		}
		found := invariants.Check(context.Background(), address, tc.state, tc.received...)
		if len(found) == 0 || !strings.HasPrefix(found[0].Error(), tc.invariant) {
			t.Errorf("%s: %v", name, found)
		}
	}
}

func selfMade(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
