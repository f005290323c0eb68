//go:build testhooks

// Recorded before signed, stored before sent (INV-1, INV-2): what the database holds in the moment in which the key is about to sign.

package ca_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

type recorded struct {
	Serial    string `db:"serial"`
	Issuer    string `db:"issuer"`
	State     string `db:"state"`
	Device    string `db:"device"`
	Profile   string `db:"profile"`
	SPKI      string `db:"spki_sha256"`
	Requester string `db:"requester_kind"`
	TBSSHA256 string `db:"tbs_sha256"`
	TBS       []byte `db:"tbs"`
	DER       []byte `db:"der"`
	CreatedAt int64  `db:"created_at"`
}

// Not parallel: fault points belong to the whole process.
func TestRecordedBeforeSigned(t *testing.T) {
	for _, dialect := range []string{database.SQLite, database.Postgres} {
		t.Run(dialect, func(t *testing.T) {
			db := storage.Open(t, dialect)
			i := installation.New(t, db)
			ctx := context.Background()
			var steps []string
			var before []recorded
			fault.Set(func(name string) fault.Mode {
				steps = append(steps, name)
				if name == "ca.sign" {
					if err := db.Select(ctx, &before, "SELECT serial, issuer, state, device, profile, spki_sha256, requester_kind, tbs_sha256, tbs, der, created_at FROM certificates WHERE state = 'intended'"); err != nil {
						t.Error(err)
					}
				}
				return fault.None
			})
			defer fault.Set(nil)
			c, err := i.CA.Issue(ctx, request("devices", "iot-device", "dev-1", installation.Key(t).Public()))
			if err != nil {
				t.Fatal(err)
			}
			if len(steps) != 3 || steps[0] != "ca.intend" || steps[1] != "ca.sign" || steps[2] != "ca.issued" {
				t.Errorf("steps: %v", steps)
			}
			if len(before) != 1 {
				t.Fatalf("%d intended certificates when the key signs", len(before))
			}
			r, signed := before[0], parse(t, c.DER)
			sum := sha256.Sum256(signed.RawTBSCertificate)
			if !bytes.Equal(r.TBS, signed.RawTBSCertificate) || r.TBSSHA256 != hex.EncodeToString(sum[:]) || r.DER != nil {
				t.Error("other bytes were signed than had been recorded")
			}
			if r.Serial != c.Serial || r.Issuer != "devices" || r.Device != "dev-1" || r.Profile != "iot-device" || r.Requester != "code" ||
				r.SPKI != ca.SPKISHA256(signed.RawSubjectPublicKeyInfo) || r.CreatedAt != installation.Start.UnixMilli() {
				t.Errorf("the record: %+v", r)
			}
			var intents int64
			if err := db.Get(ctx, &intents, "SELECT COUNT(*) FROM audit WHERE action = 'certificate_intended' AND object = ?", c.Serial); err != nil || intents != 1 {
				t.Errorf("%d entries of the intent, %v", intents, err)
			}
		})
	}
}

// A certificate that cannot be stored is not let out; the next try gets the bytes that are recorded.
func TestStoredBeforeSent(t *testing.T) {
	db := storage.Open(t, database.SQLite)
	i := installation.New(t, db)
	ctx := context.Background()
	r := request("devices", "iot-device", "dev-1", installation.Key(t).Public())
	r.ClaimKey = "code/x"
	for _, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
		fault.Set(func(name string) fault.Mode {
			if name == "ca.issued" {
				return mode
			}
			return fault.None
		})
		c, err := i.CA.Issue(ctx, r)
		wantError(t, err, ca.Unavailable, "storage")
		if len(c.DER) > 0 || c.Serial != "" {
			t.Errorf("mode %d: an answer beside the error: %+v", mode, c)
		}
		r.ClaimKey += "x"
	}
	fault.Set(nil)
	if n := count(t, db, "SELECT COUNT(*) FROM certificates WHERE state = 'intended'"); n != 1 {
		t.Fatalf("%d intended", n)
	}
	if completed, abandoned, err := i.CA.Sweep(ctx); completed != 1 || abandoned != 0 || err != nil {
		t.Errorf("sweep: %d completed, %d abandoned, %v", completed, abandoned, err)
	}
	if n := count(t, db, "SELECT COUNT(*) FROM certificates WHERE state = 'issued' AND device = 'dev-1'"); n != 2 {
		t.Errorf("%d issued", n)
	}
}

// What the sweep cannot sign it leaves, what it will never sign it closes (INV-4).
func TestSweep(t *testing.T) {
	db := storage.Open(t, database.SQLite)
	i := installation.New(t, db)
	ctx := context.Background()
	fault.Set(func(name string) fault.Mode {
		if name == "ca.sign" {
			return fault.NotDone
		}
		return fault.None
	})
	for _, device := range []string{"dev-1", "dev-2"} {
		_, err := i.CA.Issue(ctx, request("devices", "iot-device", device, installation.Key(t).Public()))
		wantError(t, err, ca.Unavailable, "ca_key_unavailable")
	}
	if completed, abandoned, err := i.CA.Sweep(ctx); completed != 0 || abandoned != 0 || err != nil {
		t.Errorf("with a key that fails: %d completed, %d abandoned, %v", completed, abandoned, err)
	}
	fault.Set(nil)
	list, err := i.CA.Certificates(ctx, ca.Filter{State: ca.Intended})
	if err != nil || len(list) != 2 {
		t.Fatalf("%d intended, %v", len(list), err)
	}
	_, err = i.CA.Revoke(ctx, "test", list[0].Serial, "certificateHold") // it would be signed later, and valid
	wantError(t, err, ca.Conflict, "certificate_state")
	if c, err := i.CA.Revoke(ctx, "test", list[0].Serial, "keyCompromise"); err != nil || c.State != ca.Revoked {
		t.Errorf("revoked while intended: %v, %s", err, c.State)
	}
	i.Clock.Advance(366 * 24 * 3600 * 1e9)
	again := installation.Open(t, db, i.Dir, i.Clock)
	if completed, abandoned, err := again.CA.Sweep(ctx); completed != 0 || abandoned != 1 || err != nil {
		t.Errorf("a year later: %d completed, %d abandoned, %v", completed, abandoned, err)
	}
	for n, want := range []string{ca.Revoked, ca.Abandoned} {
		if c, err := again.CA.Certificate(ctx, list[n].Serial); err != nil || c.State != want || len(c.DER) > 0 {
			t.Errorf("%v: %s, want %s", err, c.State, want)
		}
	}
	_, err = again.CA.Revoke(ctx, "test", list[1].Serial, "certificateHold")
	wantError(t, err, ca.Conflict, "certificate_state")
	if c, err := again.CA.Revoke(ctx, "test", list[1].Serial, "keyCompromise"); err != nil || c.State != ca.Revoked { // who knows what a broken key did
		t.Errorf("an abandoned one, revoked: %v, %s", err, c.State)
	}
}
