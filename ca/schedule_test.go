// The schedule, over a month that takes seconds: the newest CRL is never expired, whatever the server was doing.

package ca_test

import (
	"context"
	"crypto"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func TestAMonthOfCRLs(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		validity, interval time.Duration // zero: the default
		step               time.Duration // the longest that the server does nothing
		days               time.Duration
	}{
		"7 days":                        {0, 0, 100 * time.Minute, 31},
		"24 hours":                      {day, 6 * time.Hour, 3 * time.Hour, 31},
		"7 days, away for days":         {0, 0, 6 * day, 31},
		"one hour, as short as it gets": {time.Hour, 30 * time.Minute, 25 * time.Minute, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := installation.New(t, storage.Open(t, database.SQLite))
			ctx := context.Background()
			validity, interval := 7*day, time.Hour
			if tc.validity > 0 {
				validity, interval = tc.validity, tc.interval
				info, err := i.CA.SetCRL(ctx, "test", "devices", validity, interval)
				if err != nil || info.CRLValidity != validity || info.CRLInterval != interval {
					t.Fatalf("%v, %+v", err, info)
				}
			}
			keepCRLs(t, i.DB)
			random := rand.New(rand.NewPCG(1, 2))
			now := i.Clock.Clock().Now
			for end := now().Add(tc.days * day); now().Before(end); {
				i.Clock.Advance(time.Duration(random.Int64N(int64(tc.step))))
				before, _ := current(t, i, "devices")
				if !before.NextUpdate.After(now()) {
					t.Fatalf("at %v the newest CRL is over since %v", now(), before.NextUpdate)
				}
				next, err := i.CA.IssueDueCRLs(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if next.Before(now()) || next.After(now().Add(time.Minute)) {
					t.Errorf("at %v the next look is at %v", now(), next)
				}
				crl, list := current(t, i, "devices")
				if age := now().Sub(crl.IssuedAt); age >= interval {
					t.Fatalf("at %v the newest CRL is %v old", now(), age)
				}
				if list.ThisUpdate.After(now()) || list.NextUpdate.Sub(crl.IssuedAt) > validity || list.NextUpdate.Sub(crl.IssuedAt) <= validity-time.Second {
					t.Fatalf("CRL %d from %v to %v, made at %v", crl.Number, list.ThisUpdate, list.NextUpdate, crl.IssuedAt)
				}
			}
			made := checkPublished(t, i.DB, "devices")
			if most := int(tc.days*day/interval) + 1; made > most || made < 5 {
				t.Errorf("%d CRLs, at most %d are due", made, most)
			}
		})
	}
}

// The schedule as the server runs it.
func TestRunCRLSchedule(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- i.CA.RunCRLSchedule(ctx) }()
	number := int64(1)
	for _, later := range []time.Duration{61 * time.Minute, time.Hour, 8 * day, 400 * day} { // the last two as after a long sleep of the machine
		i.Clock.Advance(later)
		harness.Eventually(t, 10*time.Second, "the next CRL", func() bool {
			crl, _ := current(t, i, "devices")
			return crl.Number > number && crl.NextUpdate.After(i.Clock.Clock().Now())
		})
		crl, _ := current(t, i, "devices")
		if number = crl.Number; i.Clock.Clock().Now().Sub(crl.IssuedAt) > time.Minute {
			t.Errorf("CRL %d is of %v", number, crl.IssuedAt)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// stuck is a key in a token that does not answer until it is let go.
type stuck struct {
	crypto.Signer
	asked chan struct{}
	free  chan struct{}
}

func (s stuck) Sign(random io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	select {
	case s.asked <- struct{}{}:
	default:
	}
	<-s.free
	return s.Signer.Sign(random, digest, o)
}

// A token that hangs delays the CRLs of its own CA and no others, neither those of the schedule nor those after a revocation.
func TestAKeyThatHangsDelaysNoOtherCA(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx, cancel := context.WithCancel(context.Background())
	key := stuck{asked: make(chan struct{}, 1), free: make(chan struct{})}
	err := i.CA.WrapKey(ctx, "devices", func(k crypto.Signer) crypto.Signer {
		key.Signer = k
		return key
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- i.CA.RunCRLSchedule(ctx) }()
	number := func(name string) int64 {
		crl, _ := current(t, i, name)
		return crl.Number
	}
	before := number("devices")
	for round := range 3 {
		last := number("management")
		i.Clock.Advance(61 * time.Minute)
		if round == 0 {
			<-key.asked
		}
		harness.Eventually(t, 30*time.Second, "the CRL of another CA", func() bool { return number("management") > last })
	}
	c, err := i.CA.Issue(ctx, request("management", "bridge", "bridge-1", installation.Key(t).Public()))
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	go func() {
		i.CA.PublishAfterRevocation(ctx, "devices", "management")
		close(begun)
	}()
	if _, err := i.CA.Revoke(ctx, "test", c.Serial, "superseded"); err != nil {
		t.Fatal(err)
	}
	if _, list := current(t, i, "management"); !slices.Contains(listed(list), c.Serial) {
		t.Error("a revocation waits for the key of another CA")
	}
	if now := number("devices"); now != before {
		t.Errorf("CRL %d of the CA whose key hangs", now)
	}
	close(key.free)
	<-begun
	harness.Eventually(t, 10*time.Second, "the CRL that waited", func() bool { return number("devices") > before })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A revocation whose CRL was never made - the server died - is made up for at the next start, also when it was
// recorded in the moment in which the last CRL was being made.
func TestRevocationBeforeACrashIsPublished(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]time.Duration{"after the last CRL": 0, "while the last CRL was made": 10 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := installation.New(t, storage.Open(t, database.SQLite))
			c := issue(t, i, "devices", "dev-1")
			if _, err := i.CA.IssueCRL(context.Background(), "test", "devices"); err != nil {
				t.Fatal(err)
			}
			err := i.DB.Write(context.Background(), "test.revoke", func(tx *database.Tx) error {
				_, err := i.CA.RevokeInTx(tx, i.Clock.Clock().Now().Add(time.Second-at), "test", c, "keyCompromise")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, list := current(t, i, "devices"); slices.Contains(listed(list), c.Serial) {
				t.Fatal("published already")
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error)
			go func() { ended <- installation.Open(t, i.DB, i.Dir, i.Clock).CA.RunCRLSchedule(ctx) }()
			harness.Eventually(t, 10*time.Second, "a CRL that lists it", func() bool {
				_, list := current(t, i, "devices")
				return slices.Contains(listed(list), c.Serial)
			})
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSetCRLRefuses(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for _, tc := range []struct {
		validity, interval time.Duration
		rule               string
	}{{59 * time.Minute, time.Minute, "crl_validity"}, {367 * day, day, "crl_validity"}, {day, 12*time.Hour + 1, "crl_interval"}, {day, 59 * time.Second, "crl_interval"}, {day, -time.Hour, "crl_interval"}} {
		_, err := i.CA.SetCRL(ctx, "test", "devices", tc.validity, tc.interval)
		wantError(t, err, ca.Invalid, tc.rule)
	}
	_, err := i.CA.SetCRL(ctx, "test", "nowhere", day, time.Hour)
	wantError(t, err, ca.NotFound, "unknown_ca")
	if info, err := i.CA.Get(ctx, "devices"); err != nil || info.CRLValidity != 7*day || info.CRLNumber != 1 {
		t.Errorf("%v, %+v", err, info)
	}
}

// A CA whose records cannot be made into a CRL holds up no other.
func TestOneBadCAHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	err := i.DB.Write(ctx, "test.damage", func(tx *database.Tx) error {
		_, err := tx.Exec("INSERT INTO revocations (seq, issuer, serial, reason, revoked_at, not_after) VALUES (1000, 'devices', 'no number', 'superseded', 1, 1)")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	before := map[string]int64{}
	for _, name := range []string{"devices", "management"} {
		crl, _ := current(t, i, name)
		before[name] = crl.Number
	}
	i.Clock.Advance(6 * day)
	if _, err := i.CA.IssueDueCRLs(ctx); err == nil {
		t.Error("a CRL of what cannot be listed")
	}
	for name, number := range before {
		crl, _ := current(t, i, name)
		if got := crl.Number > number; got != (name != "devices") {
			t.Errorf("%s: CRL %d after %d", name, crl.Number, number)
		}
	}
}
