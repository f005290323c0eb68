package feed

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

// enrolledBridge is an end entity of the label bridge with a certificate.
func enrolledBridge(t *testing.T, i *installation.Installation, id string) {
	t.Helper()
	ctx := t.Context()
	code, err := i.Book.CreateCode(ctx, "test", id, "bridge", 0, []string{"dns:" + id})
	if err != nil {
		t.Fatal(err)
	}
	l, err := i.Book.Label(ctx, "bridge")
	if err != nil {
		t.Fatal(err)
	}
	r, err := i.Book.CheckCode(ctx, l, id, code.Code)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.Enroll(ctx, r, l, installation.CSR(t, installation.Key(t), id, nil), false); err != nil {
		t.Fatal(err)
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx := t.Context()
		w := start(t, installation.New(t, db), bridge) // whoever asks is mqtt.example.com
		info, err := w.CA.Rollover(ctx, "test", ca.RolloverRequest{CA: "devices"})
		if err != nil {
			t.Fatal(err)
		}
		behind := func(want ...string) {
			t.Helper()
			got, err := Behind(ctx, w.DB, w.CA, info, nil)
			if err != nil || len(got) != len(want) {
				t.Fatalf("behind: %q, %v, want %q", got, err, want)
			}
			for n := range want {
				if !strings.HasPrefix(got[n], want[n]) {
					t.Errorf("behind: %q, want %q", got[n], want[n])
				}
			}
		}
		ack := func(broker string, holds ...string) {
			t.Helper()
			if status := w.post(t, "/bridge/v1/ack", feedapi.Ack{Seq: 1, Broker: broker, VerifiedAt: time.Now(), Holds: holds}, nil); status != 204 {
				t.Fatal(status)
			}
		}
		behind() // nobody is registered
		if _, err := w.Book.CreateCode(ctx, "test", "early.example.com", "bridge", 0, nil); err != nil {
			t.Fatal(err)
		}
		behind() // a code alone is no bridge
		enrolledBridge(t, w.Installation, "mqtt.example.com")
		enrolledBridge(t, w.Installation, "silent.example.com")
		behind("mqtt.example.com (has never", "silent.example.com (has never")
		ack("m1", "00ff")
		ack("m2")
		behind("mqtt.example.com (broker m1", "mqtt.example.com (broker m2", "silent.example.com")
		ack("m1", "00ff", hex.EncodeToString(info.Certificate.SubjectKeyId))
		behind("mqtt.example.com (broker m2", "silent.example.com")
		ack("m2", hex.EncodeToString(info.Certificate.SubjectKeyId))
		behind("silent.example.com")
		if _, err := w.Book.RevokeDevice(ctx, "test", "silent.example.com", "cessationOfOperation"); err != nil {
			t.Fatal(err)
		}
		behind()

		// Brokers do not know the management CA; they know the root, by its certificate.
		if info, err = w.CA.Rollover(ctx, "test", ca.RolloverRequest{CA: "management"}); err != nil {
			t.Fatal(err)
		}
		behind()
		if info, err = w.CA.Rollover(ctx, "test", ca.RolloverRequest{CA: "root"}); err != nil {
			t.Fatal(err)
		}
		behind("mqtt.example.com (broker m1", "mqtt.example.com (broker m2")
		var set feedapi.TrustSet
		if status, _ := w.get(t, "/bridge/v1/trust-set", nil, &set); status != 200 || len(set.Anchors) != 2 || len(set.Crosses) != 2 || len(set.Issuers) != 2 {
			t.Errorf("%d: %d anchors, %d crosses, %d issuers", status, len(set.Anchors), len(set.Crosses), len(set.Issuers))
		}
	})
}
