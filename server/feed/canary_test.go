// How many canaries a bridge gets, and what the record of one says.

package feed

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

func TestCanaryLimit(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	other := start(t, w.Installation, func(*http.Request) (ca.Certificate, error) {
		return ca.Certificate{Profile: Profile, Device: "mqtt2.example.com"}, nil
	})
	if _, err := w.CA.Create(t.Context(), "test", ca.CreateRequest{Name: "devices-2", Parent: "root", Use: "broker"}); err != nil {
		t.Fatal(err)
	}
	w.Clock.Advance(10 * time.Minute) // 12:10
	csr := string(testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-256"), "x", nil)))
	ask := func(w *world, issuer string, revoke bool) (status int, reason, retryAfter string) {
		t.Helper()
		body, err := json.Marshal(feedapi.CanaryRequest{Issuer: issuer, CSR: csr, Revoke: revoke})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.Post(w.server.URL+"/bridge/v1/canary", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		var refused struct{ Reason string }
		if err := json.NewDecoder(answer.Body).Decode(&refused); err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, refused.Reason, answer.Header.Get("Retry-After")
	}
	for _, revoke := range []bool{false, true} {
		for n := range canariesPerHour {
			if status, reason, _ := ask(w, "devices", revoke); status != 200 {
				t.Fatalf("canary %d, revoked %v: %d %s", n, revoke, status, reason)
			}
		}
		if status, reason, retryAfter := ask(w, "devices", revoke); status != 429 || reason != "canary_limit" || retryAfter != "3000" {
			t.Errorf("one more, revoked %v: %d %s, Retry-After %s", revoke, status, reason, retryAfter)
		}
	}
	if status, _, _ := ask(w, "devices-2", false); status != 200 {
		t.Errorf("of another CA: %d", status)
	}
	if status, _, _ := ask(other, "devices", false); status != 200 {
		t.Errorf("of another bridge: %d", status)
	}
	w.Clock.Advance(50 * time.Minute) // 13:00
	if status, _, _ := ask(w, "devices", true); status != 200 {
		t.Errorf("an hour later: %d", status)
	}
	certs, err := w.CA.Certificates(t.Context(), ca.Filter{Profile: CanaryProfile})
	if err != nil || len(certs) != 2*canariesPerHour+3 {
		t.Fatalf("%d canaries, %v", len(certs), err)
	}
	for _, c := range certs {
		if c.RequesterKind != "canary" || (c.Requester != "mqtt.example.com" && c.Requester != "mqtt2.example.com") {
			t.Errorf("canary of %s %s", c.RequesterKind, c.Requester)
		}
	}
}

// Two requests that found the same slot free: one is told to wait, on both databases.
func TestCanarySlotIsTakenOnce(t *testing.T) {
	t.Parallel()
	for _, dialect := range []string{database.SQLite, database.Postgres} {
		t.Run(dialect, func(t *testing.T) {
			i := installation.New(t, storage.Open(t, dialect))
			key := testpki.Key(t, "ec:P-256")
			var group sync.WaitGroup
			results := make([]error, 4)
			for n := range results {
				group.Go(func() {
					_, results[n] = i.CA.Issue(t.Context(), ca.Request{
						Actor: "bridge:a", CA: "devices", Profile: CanaryProfile, Device: CanaryPrefix + "1", PublicKey: key.Public(),
						RequesterKind: RequesterKind, Requester: "a", ClaimKey: "canary/a", Claim: slotIsFree("canary/a"),
					})
				})
			}
			group.Wait()
			issued := 0
			for _, err := range results {
				var refused *refusal
				switch {
				case err == nil:
					issued++
				case !errors.As(err, &refused) || refused.status != http.StatusTooManyRequests:
					t.Error(err)
				}
			}
			if issued != 1 {
				t.Errorf("%d canaries in one slot", issued)
			}
		})
	}
}

// A CA of the brokers that has no CRL is left out; its neighbours stay, and it comes back with its CRL.
func TestTrustSetWithoutACRL(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	if _, err := w.CA.Create(t.Context(), "test", ca.CreateRequest{Name: "devices-2", Parent: "root", Use: "broker"}); err != nil {
		t.Fatal(err)
	}
	err := w.DB.Write(t.Context(), "test", func(tx *database.Tx) error {
		_, err := tx.Exec("DELETE FROM crls WHERE authority = 'devices-2'")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var set feedapi.TrustSet
	status, header := w.get(t, "/bridge/v1/trust-set", nil, &set)
	if status != 200 || len(set.Issuers) != 1 || len(set.CRLs) != 1 || len(set.Anchors) != 1 || set.Issuers[0].Name != "devices" {
		t.Fatalf("%d %+v", status, set)
	}
	if _, err := w.CA.IssueCRL(t.Context(), "test", "devices-2"); err != nil {
		t.Fatal(err)
	}
	if status, _ := w.get(t, "/bridge/v1/trust-set", http.Header{"If-None-Match": {header.Get("ETag")}}, &set); status != 200 || len(set.Issuers) != 2 || len(set.CRLs) != 2 {
		t.Errorf("after the CRL: %d %+v", status, set)
	}
}
