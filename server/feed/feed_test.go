// The feed as a bridge sees it: over HTTP, on a real database, with the wall clock for latencies only.

package feed

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

type world struct {
	*installation.Installation
	server *httptest.Server
	stop   chan struct{}
}

func bridge(*http.Request) (ca.Certificate, error) {
	return ca.Certificate{Profile: Profile, Device: "mqtt.example.com"}, nil
}

func start(t *testing.T, i *installation.Installation, identify func(*http.Request) (ca.Certificate, error)) *world {
	t.Helper()
	w := &world{Installation: i, stop: make(chan struct{})}
	w.server = httptest.NewServer(New(Config{
		DB: i.DB, CA: i.CA, Book: i.Book, Clock: i.Clock.Clock(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Identify: identify, Stop: w.stop,
	}))
	t.Cleanup(w.server.Close)
	return w
}

func fresh(t *testing.T) *world {
	t.Helper()
	return start(t, installation.New(t, storage.Open(t, database.SQLite)), bridge)
}

// get reads into out, if not nil, and returns status and header.
func (w *world) get(t *testing.T, path string, header http.Header, out any) (int, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		r.Header[k] = v
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Error(err)
		return 0, nil
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Error(err)
	}
	if b, ok := out.(*[]byte); ok {
		*b = body
	} else if out != nil && answer.StatusCode == 200 {
		if err := json.Unmarshal(body, out); err != nil {
			t.Errorf("%s: %v: %s", path, err, body)
		}
	}
	return answer.StatusCode, answer.Header
}

func (w *world) post(t *testing.T, path string, in, out any) int {
	t.Helper()
	body, ok := in.([]byte)
	if !ok {
		var err error
		if body, err = json.Marshal(in); err != nil {
			t.Fatal(err)
		}
	}
	answer, err := http.Post(w.server.URL+path, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if out != nil {
		if err := json.NewDecoder(answer.Body).Decode(out); err != nil {
			t.Fatal(err)
		}
	}
	return answer.StatusCode
}

func (w *world) seq(t *testing.T) int64 {
	t.Helper()
	seq, err := w.CA.Changes().Seq(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func TestOnlyBridges(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	for name, c := range map[string]struct {
		cert   ca.Certificate
		err    error
		status int
		reason string
	}{
		"no certificate":   {err: errors.New("none"), status: 401, reason: "not_authenticated"},
		"device":           {cert: ca.Certificate{Profile: "iot-device", Device: "mqtt.example.com"}, status: 403, reason: "not_authorized"},
		"canary":           {cert: ca.Certificate{Profile: "canary", Device: "natal-canary-1"}, status: 403, reason: "not_authorized"},
		"administrator":    {cert: ca.Certificate{Profile: "admin", Device: "natal-admin-admin"}, status: 403, reason: "not_authorized"},
		"the broker's own": {cert: ca.Certificate{Profile: "mqtt-server", Device: "mqtt.example.com"}, status: 403, reason: "not_authorized"},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, i, func(*http.Request) (ca.Certificate, error) { return c.cert, c.err })
			for _, path := range []string{"/trust-set", "/crls/00", "/devices", "/changes?since=0"} {
				var body []byte
				if got, _ := w.get(t, "/bridge/v1"+path, nil, &body); got != c.status || !strings.Contains(string(body), c.reason) {
					t.Errorf("GET %s: %d %s", path, got, body)
				}
			}
			for _, path := range []string{"/ack", "/canary"} {
				if got := w.post(t, "/bridge/v1"+path, []byte("{}"), nil); got != c.status {
					t.Errorf("POST %s: %d", path, got)
				}
			}
		})
	}
}

func TestTrustSetIsWhole(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	var set feedapi.TrustSet
	status, header := w.get(t, "/bridge/v1/trust-set", nil, &set)
	if status != 200 || header.Get("ETag") != strconv.Quote(strconv.FormatInt(set.Seq, 10)) {
		t.Fatalf("%d, ETag %s, seq %d", status, header.Get("ETag"), set.Seq)
	}
	if len(set.Anchors) != 1 || len(set.Issuers) != 1 || len(set.CRLs) != 1 || set.Issuers[0].Name != "devices" {
		t.Fatalf("want the CA of devices, its root and its CRL: %+v", set)
	}
	anchor, issuer := testpki.ParsePEM(t, []byte(set.Anchors[0]))[0], testpki.ParsePEM(t, []byte(set.Issuers[0].Certificate))[0]
	if err := issuer.CheckSignatureFrom(anchor); err != nil {
		t.Error(err)
	}
	var der []byte
	if status, _ := w.get(t, "/bridge/v1/crls/"+set.CRLs[0].SHA256, nil, &der); status != 200 {
		t.Fatalf("CRL: %d", status)
	}
	sum := sha256.Sum256(der)
	crl, err := x509.ParseRevocationList(der)
	if err != nil || hex.EncodeToString(sum[:]) != set.CRLs[0].SHA256 || crl.Number.Int64() != set.CRLs[0].Number || crl.CheckSignatureFrom(issuer) != nil ||
		!crl.NextUpdate.Equal(set.CRLs[0].NextUpdate) {
		t.Errorf("CRL %v does not fit %+v: %v", crl, set.CRLs[0], err)
	}
	if status, _ := w.get(t, "/bridge/v1/trust-set", http.Header{"If-None-Match": {header.Get("ETag")}}, nil); status != 304 {
		t.Errorf("unchanged set: %d", status)
	}
	if status, _ := w.get(t, "/bridge/v1/crls/"+strings.Repeat("0", 64), nil, nil); status != 404 {
		t.Errorf("unknown CRL: %d", status)
	}
}

// An imported chain with an intermediate: issuer, what is between, anchor - each in its place; a waiting CA is in no set.
func TestTrustSetOfAnExternalCA(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	ctx := t.Context()
	if _, err := w.CA.Create(ctx, "test", ca.CreateRequest{Name: "external", External: true, Use: "broker", PublicURL: "http://x"}); err != nil {
		t.Fatal(err)
	}
	var set feedapi.TrustSet
	if w.get(t, "/bridge/v1/trust-set", nil, &set); len(set.Issuers) != 1 {
		t.Fatalf("a waiting CA is in the trust set: %+v", set.Issuers)
	}
	before := set.Seq
	csrPEM, err := w.CA.CSR(ctx, "external")
	if err != nil {
		t.Fatal(err)
	}
	chain := signExternal(t, csrPEM, w.Clock.Clock().Now())
	if _, err := w.CA.Import(ctx, "test", "external", chain, nil); err != nil {
		t.Fatal(err)
	}
	w.get(t, "/bridge/v1/trust-set", nil, &set)
	i := slices.IndexFunc(set.Issuers, func(i feedapi.Issuer) bool { return i.Name == "external" })
	if i < 0 || len(set.Issuers[i].Chain) != 1 || len(set.Anchors) != 2 || len(set.CRLs) != 2 || set.Seq <= before {
		t.Errorf("after the import: %+v", set)
	}
}

func signExternal(t *testing.T, csrPEM []byte, now time.Time) []byte {
	t.Helper()
	valid := testpki.Valid(now.Add(-time.Hour), now.AddDate(9, 0, 0))
	root := testpki.Root(t, "their root", valid)
	middle := root.Intermediate(t, "their middle", valid, testpki.PathLen(1))
	csr := parseCSR(t, csrPEM)
	leaf := middle.Intermediate(t, "external", valid, testpki.PathLen(0), testpki.Edit(func(c *x509.Certificate) { c.RawSubject = csr.RawSubject }), testpki.WithKey(publicOnly{csr.PublicKey}))
	return slices.Concat(leaf.PEM(), middle.PEM(), root.PEM())
}

// Both long polls answer soon after the commit, and 304 or an empty list when nothing comes.
func TestLongPolls(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	device := w.EnrollByCode(t, "SN-1", installation.Key(t))
	for _, c := range []struct {
		name string
		poll func() (arrived bool)
		act  func() error
	}{
		{"changes", func() bool {
			var got feedapi.Changes
			w.get(t, fmt.Sprintf("/bridge/v1/changes?since=%d&wait=20s", w.seq(t)), nil, &got)
			return len(got.Changes) > 0 && got.Changes[0].Kind == feedapi.DeviceAdded && got.Changes[0].Device.ID == "SN-2"
		}, func() error {
			_, err := w.Book.AddDevice(t.Context(), "test", registration.NewDevice{ID: "SN-2", Label: registration.Default})
			return err
		}},
		{"trust set", func() bool {
			_, header := w.get(t, "/bridge/v1/trust-set", nil, nil)
			var set feedapi.TrustSet
			status, _ := w.get(t, "/bridge/v1/trust-set?wait=20s", http.Header{"If-None-Match": {header.Get("ETag")}}, &set)
			return status == 200 && set.CRLs[0].Entries == 1
		}, func() error {
			_, err := w.CA.Revoke(t.Context(), "test", device.Serial, "keyCompromise")
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			type result struct {
				arrived bool
				at      time.Time
			}
			results := make(chan result, 1)
			go func() { arrived := c.poll(); results <- result{arrived, time.Now()} }()
			select {
			case <-results:
				t.Fatal("answered without a change")
			case <-time.After(100 * time.Millisecond): // the poll is waiting by now
			}
			if err := c.act(); err != nil {
				t.Fatal(err)
			}
			committed := time.Now()
			r := <-results
			if late := r.at.Sub(committed); !r.arrived || late > time.Second {
				t.Errorf("arrived: %v, %v after the commit", r.arrived, late)
			} else {
				t.Logf("%v after the commit", late)
			}
		})
	}
	began := time.Now()
	var none feedapi.Changes
	since := w.seq(t)
	if w.get(t, fmt.Sprintf("/bridge/v1/changes?since=%d&wait=150ms", since), nil, &none); none.Seq != since || none.Changes == nil || len(none.Changes) != 0 || none.Reset {
		t.Errorf("nothing new: %+v", none)
	}
	if waited := time.Since(began); waited < 150*time.Millisecond {
		t.Errorf("answered after %v, before the wait was over", waited)
	}
}

// A change of another server on the same database arrives too.
func TestLongPollAcrossServers(t *testing.T) {
	t.Parallel()
	db := storage.Open(t, database.Postgres)
	first := installation.New(t, db)
	w := start(t, first, bridge)
	second := installation.Open(t, db, first.Dir, first.Clock)
	since := w.seq(t)
	got := make(chan feedapi.Changes, 1)
	go func() {
		var c feedapi.Changes
		w.get(t, fmt.Sprintf("/bridge/v1/changes?since=%d&wait=20s", since), nil, &c)
		got <- c
	}()
	if _, err := second.Book.AddDevice(t.Context(), "test", registration.NewDevice{ID: "SN-1", Label: registration.Default}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if c := <-got; len(c.Changes) != 1 || time.Since(began) > 3*time.Second {
		t.Errorf("%+v after %v", c, time.Since(began))
	}
}

// When the server stops, nobody keeps it waiting.
func TestStopEndsLongPolls(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	done := make(chan int, 2)
	_, header := w.get(t, "/bridge/v1/trust-set", nil, nil)
	go func() {
		status, _ := w.get(t, fmt.Sprintf("/bridge/v1/changes?since=%d&wait=50s", w.seq(t)), nil, nil)
		done <- status
	}()
	go func() {
		status, _ := w.get(t, "/bridge/v1/trust-set?wait=50s", http.Header{"If-None-Match": {header.Get("ETag")}}, nil)
		done <- status
	}()
	select {
	case <-done:
		t.Fatal("answered before the stop")
	case <-time.After(50 * time.Millisecond):
	}
	close(w.stop)
	for range 2 {
		select {
		case status := <-done:
			if status != 200 && status != 304 {
				t.Errorf("status %d", status)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("still waiting")
		}
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	w.EnrollByCode(t, "SN-1", installation.Key(t))
	start := w.seq(t)
	if _, err := w.Book.RevokeDevice(t.Context(), "test", "SN-1", "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	var got feedapi.Changes
	w.get(t, fmt.Sprintf("/bridge/v1/changes?since=%d", start), nil, &got)
	kinds := map[string]int{}
	for _, c := range got.Changes {
		kinds[c.Kind]++
		if c.Kind == feedapi.CertificateRevoked && (c.Revoked.Device != "SN-1" || c.Revoked.Reason != "keyCompromise" || c.Revoked.Issuer != "devices" || c.Revoked.Superseded) {
			t.Errorf("revoked: %+v", c.Revoked)
		}
	}
	if kinds[feedapi.CertificateRevoked] != 1 || kinds[feedapi.DeviceRemoved] != 1 || kinds[feedapi.TrustSetChanged] != 1 || got.Seq != w.seq(t) {
		t.Errorf("%+v", got)
	}
	var devices feedapi.Devices
	if w.get(t, "/bridge/v1/devices", nil, &devices); len(devices.Devices) != 0 || devices.Seq != got.Seq {
		t.Errorf("devices after the revocation: %+v", devices)
	}
	var reset feedapi.Changes
	if w.get(t, fmt.Sprintf("/bridge/v1/changes?since=%d&wait=20s", got.Seq+1), nil, &reset); !reset.Reset || reset.Seq != got.Seq {
		t.Errorf("since the future: %+v", reset)
	}
	err := w.DB.Write(t.Context(), "test", func(tx *database.Tx) error {
		_, err := tx.Exec("UPDATE changes SET seq = seq + 1000 WHERE seq = ?", got.Seq)
		if err == nil {
			_, err = tx.Exec("UPDATE counters SET value = value + 1000 WHERE name = 'changes'")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for since, want := range map[int64]bool{got.Seq - 1: false, got.Seq: true, got.Seq + 999: true, got.Seq + 1000: false, 0: false} { // restored: the numbers in the gap are lost ones
		var page feedapi.Changes
		if w.get(t, fmt.Sprintf("/bridge/v1/changes?since=%d", since), nil, &page); page.Reset != want {
			t.Errorf("since %d of %d: reset %v", since, got.Seq+1000, page.Reset)
		}
	}
	for _, query := range []string{"", "?since=", "?since=x", "?since=-1", "?since=0&wait=x", "?since=0&wait=-1s"} {
		if status, _ := w.get(t, "/bridge/v1/changes"+query, nil, nil); status != 400 {
			t.Errorf("changes%s: %d", query, status)
		}
	}
}

func TestCanary(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	csr := string(testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-256"), "SN-000001", nil)))
	for _, revoke := range []bool{false, true} {
		var got feedapi.Canary
		if status := w.post(t, "/bridge/v1/canary", feedapi.CanaryRequest{Issuer: "devices", CSR: csr, Revoke: revoke}, &got); status != 200 {
			t.Fatalf("%d %+v", status, got)
		}
		leaf, chain := testpki.ParsePEM(t, []byte(got.Certificate))[0], testpki.ParsePEM(t, []byte(got.Chain))
		if !strings.HasPrefix(leaf.Subject.CommonName, CanaryPrefix) || leaf.CheckSignatureFrom(chain[0]) != nil || got.Revoked != revoke {
			t.Errorf("canary of %s, chain of %d, revoked %v", leaf.Subject, len(chain), got.Revoked)
		}
		record, err := w.CA.ByDER(t.Context(), leaf)
		if err != nil || (record.State == ca.Revoked) != revoke {
			t.Errorf("recorded as %s, %v", record.State, err)
		}
		crl, err := w.CA.CurrentCRL(t.Context(), "devices")
		if err != nil || (crl.Entries == 1) != revoke {
			t.Errorf("CRL with %d entries, %v", crl.Entries, err)
		}
	}
	var devices feedapi.Devices
	if w.get(t, "/bridge/v1/devices", nil, &devices); len(devices.Devices) != 0 {
		t.Errorf("a canary is among the devices: %+v", devices)
	}
	weak := string(testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "rsa:2048"), "x", nil)))
	for name, c := range map[string]struct {
		in     any
		status int
	}{
		"management CA": {feedapi.CanaryRequest{Issuer: "management", CSR: csr}, 400},
		"root":          {feedapi.CanaryRequest{Issuer: "root", CSR: csr}, 400},
		"unknown CA":    {feedapi.CanaryRequest{Issuer: "nope", CSR: csr}, 404},
		"other key":     {feedapi.CanaryRequest{Issuer: "devices", CSR: weak}, 422},
		"no CSR":        {feedapi.CanaryRequest{Issuer: "devices"}, 400},
		"not JSON":      {[]byte("{"), 400},
		"too large":     {bytes.Repeat([]byte(" "), maxBody+10), 400},
	} {
		if status := w.post(t, "/bridge/v1/canary", c.in, nil); status != c.status {
			t.Errorf("%s: %d, want %d", name, status, c.status)
		}
	}
}

func TestAcksAndLag(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	now := func() time.Time { return w.Clock.Clock().Now() }
	var set feedapi.TrustSet
	w.get(t, "/bridge/v1/trust-set", nil, &set)
	ack := feedapi.Ack{Seq: set.Seq, Broker: "local", VerifiedAt: now()}
	if status := w.post(t, "/bridge/v1/ack", ack, nil); status != 204 {
		t.Fatalf("ack: %d", status)
	}
	lag := func() Progress {
		t.Helper()
		list, err := Bridges(t.Context(), w.DB, now())
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0]
	}
	if p := lag(); p.Lag != 0 || p.Bridge != "mqtt.example.com" || p.Broker != "local" || !p.VerifiedAt.Equal(ack.VerifiedAt.Truncate(time.Millisecond)) {
		t.Errorf("up to date: %+v", p)
	}
	if _, err := w.CA.IssueCRL(t.Context(), "test", "devices"); err != nil {
		t.Fatal(err)
	}
	w.Clock.Advance(90 * time.Second)
	if p := lag(); p.Lag != 90*time.Second {
		t.Errorf("behind for %v, want 90s", p.Lag)
	}
	ack.Seq, ack.Error = w.seq(t), strings.Repeat("é", 400)
	if status := w.post(t, "/bridge/v1/ack", ack, nil); status != 204 {
		t.Errorf("second ack: %d", status)
	}
	if p := lag(); p.Lag != 0 || len(p.Error) == 0 || len(p.Error) > maxErrorText {
		t.Errorf("after the second: lag %v, error of %d bytes", p.Lag, len(p.Error))
	}
	for name, bad := range map[string]any{
		"future set": feedapi.Ack{Seq: w.seq(t) + 1, Broker: "local"},
		"negative":   feedapi.Ack{Seq: -1, Broker: "local"},
		"no broker":  feedapi.Ack{Seq: 0},
		"bad broker": feedapi.Ack{Seq: 0, Broker: "a b"},
		"not JSON":   []byte("x"),
	} {
		if status := w.post(t, "/bridge/v1/ack", bad, nil); status != 400 {
			t.Errorf("%s: %d", name, status)
		}
	}
}
