// A server's feed in this process: real TLS, real certificates, and the liberty to lie.

package bridge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/test/testpki"
)

type fakeIssuer struct {
	name    string
	ca      *testpki.Authority
	number  int64
	revoked []*big.Int
	der     []byte
}

type fakeFeed struct {
	t          *testing.T
	root       *testpki.Authority
	management *testpki.Authority
	http       *httptest.Server

	mu       sync.Mutex
	seq      int64
	trust    int64 // seq of the last trust set change
	issuers  []*fakeIssuer
	ders     map[string][]byte
	devices  map[string]bool
	log      []feedapi.Change
	changed  chan struct{}
	acks     []feedapi.Ack
	tamper   func(*feedapi.TrustSet, map[string][]byte)
	down     bool
	reset    bool // answer the next poll with Reset
	serials  int64
	canarys  int
	noCanary string       // issuing CA that there is no canary for
	clock    *clock.Clock // nil: the system's
	codes    map[string]string
}

func newFakeFeed(t *testing.T, issuers ...string) *fakeFeed {
	f := &fakeFeed{t: t, root: testpki.Root(t, "root"), ders: map[string][]byte{}, devices: map[string]bool{},
		changed: make(chan struct{}), seq: 10, trust: 10, serials: time.Now().UnixNano()}
	f.management = f.root.Intermediate(t, "management")
	for _, name := range issuers {
		f.addIssuer(name, f.root.Intermediate(t, name))
	}
	leaf := f.management.Leaf(t, "127.0.0.1", testpki.Names("127.0.0.1"), testpki.EKU(x509.ExtKeyUsageServerAuth)).TLS()
	f.http = httptest.NewUnstartedServer(f.routes())
	f.http.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}, ClientAuth: tls.RequestClientCert}
	f.http.StartTLS()
	t.Cleanup(func() {
		f.http.CloseClientConnections()
		f.http.Close()
	})
	return f
}

func (f *fakeFeed) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bridge/v1/trust-set", f.getTrustSet)
	mux.HandleFunc("GET /bridge/v1/crls/{sum}", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		der, ok := f.ders[r.PathValue("sum")]
		if !ok {
			http.Error(w, `{"error":"no such CRL","reason":"not_found"}`, http.StatusNotFound)
			return
		}
		w.Write(der)
	})
	mux.HandleFunc("GET /bridge/v1/devices", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		d := feedapi.Devices{Seq: f.seq}
		for id := range f.devices {
			d.Devices = append(d.Devices, feedapi.Device{ID: id, Label: "default"})
		}
		json.NewEncoder(w).Encode(d)
	})
	mux.HandleFunc("GET /bridge/v1/changes", f.getChanges)
	mux.HandleFunc("POST /bridge/v1/ack", func(w http.ResponseWriter, r *http.Request) {
		var a feedapi.Ack
		json.NewDecoder(r.Body).Decode(&a)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.acks = append(f.acks, a)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /bridge/v1/canary", f.postCanary)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		down := f.down
		f.mu.Unlock()
		if strings.HasPrefix(r.URL.Path, "/.well-known/") {
			f.est(w, r)
		} else if peers := r.TLS.PeerCertificates; len(peers) == 0 || peers[0].CheckSignatureFrom(f.management.Certificate) != nil {
			http.Error(w, "not a bridge", http.StatusForbidden)
		} else if down {
			http.Error(w, `{"error":"down","reason":"unavailable"}`, http.StatusServiceUnavailable)
		} else {
			mux.ServeHTTP(w, r)
		}
	})
}

// trustSet describes the present state, before tampering.
func (f *fakeFeed) trustSet() feedapi.TrustSet {
	set := feedapi.TrustSet{Seq: f.trust, Anchors: []string{string(f.root.PEM())}}
	for _, i := range f.issuers {
		crl, err := x509.ParseRevocationList(i.der)
		if err != nil {
			f.t.Error(err)
		}
		id := hex.EncodeToString(i.ca.Certificate.SubjectKeyId)
		set.Issuers = append(set.Issuers, feedapi.Issuer{Name: i.name, KeyID: id, Certificate: string(i.ca.PEM())})
		set.CRLs = append(set.CRLs, announce(i.name, id, crl))
	}
	return set
}

func announce(name, keyID string, crl *x509.RevocationList) feedapi.CRL {
	return feedapi.CRL{Issuer: name, KeyID: keyID, Number: crl.Number.Int64(), ThisUpdate: crl.ThisUpdate, NextUpdate: crl.NextUpdate,
		Entries: len(crl.RevokedCertificateEntries), SHA256: fingerprint(crl.Raw)}
}

func (f *fakeFeed) getTrustSet(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	etag := strconv.Quote(strconv.FormatInt(f.trust, 10))
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	set := f.trustSet()
	if f.tamper != nil {
		f.tamper(&set, f.ders)
	}
	w.Header().Set("ETag", etag)
	json.NewEncoder(w).Encode(set)
}

func (f *fakeFeed) getChanges(w http.ResponseWriter, r *http.Request) {
	since, _ := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64)
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	timeout := time.After(wait)
	for {
		f.mu.Lock()
		out := feedapi.Changes{Seq: since, Reset: since > f.seq || f.reset && since > 0}
		f.reset = f.reset && !out.Reset
		for _, c := range f.log {
			if c.Seq > since {
				out.Changes, out.Seq = append(out.Changes, c), c.Seq
			}
		}
		changed := f.changed
		f.mu.Unlock()
		if len(out.Changes) > 0 || out.Reset {
			json.NewEncoder(w).Encode(out)
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-timeout:
			json.NewEncoder(w).Encode(out)
			return
		}
	}
}

func (f *fakeFeed) postCanary(w http.ResponseWriter, r *http.Request) {
	var req feedapi.CanaryRequest
	body, _ := io.ReadAll(r.Body)
	json.Unmarshal(body, &req)
	block, _ := pem.Decode([]byte(req.CSR))
	if block == nil {
		http.Error(w, "csr", http.StatusBadRequest)
		return
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.Issuer == f.noCanary {
		http.Error(w, `{"error":"its key is offline","reason":"unavailable"}`, http.StatusServiceUnavailable)
		return
	}
	f.canarys++
	i := f.issuers[slices.IndexFunc(f.issuers, func(i *fakeIssuer) bool { return i.name == req.Issuer })]
	cert := f.certify(i.ca, fmt.Sprintf("natal-canary-%d", f.canarys), csr.PublicKey)
	if req.Revoke {
		f.revoke(i, cert.SerialNumber, feedapi.Revoked{Device: cert.Subject.CommonName, Reason: "cessationOfOperation"})
	}
	json.NewEncoder(w).Encode(feedapi.Canary{Certificate: string(testpki.CertPEM(cert)), Chain: string(i.ca.PEM()),
		NotAfter: cert.NotAfter, Revoked: req.Revoke})
}

func (f *fakeFeed) now() time.Time {
	if f.clock != nil {
		return f.clock.Now()
	}
	return time.Now()
}

// certify works in any goroutine, where a testing.TB may not fail.
func (f *fakeFeed) certify(ca *testpki.Authority, cn string, public any) *x509.Certificate {
	f.serials++
	now := f.now()
	der, err := x509.CreateCertificate(nil, &x509.Certificate{
		SerialNumber: big.NewInt(f.serials), Subject: pkix.Name{CommonName: cn},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Certificate, public, ca.Key)
	if err != nil {
		panic(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return cert
}

func (f *fakeFeed) addIssuer(name string, ca *testpki.Authority) *fakeIssuer {
	i := &fakeIssuer{name: name, ca: ca}
	f.issuers = append(f.issuers, i)
	f.sign(i)
	return i
}

func (f *fakeFeed) sign(i *fakeIssuer) {
	i.number++
	i.der = i.ca.CRL(f.t, i.number, 7*24*time.Hour, i.revoked...)
	f.ders[fingerprint(i.der)] = i.der
}

// note appends to the change log; callers hold the mutex.
func (f *fakeFeed) note(c feedapi.Change) {
	f.seq++
	c.Seq, c.At = f.seq, time.Now()
	f.log = append(f.log, c)
	if c.Kind == feedapi.TrustSetChanged {
		f.trust = f.seq
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeFeed) revoke(i *fakeIssuer, serial *big.Int, r feedapi.Revoked) {
	r.Serial, r.Issuer, r.RevokedAt = serial.Text(16), i.name, time.Now()
	i.revoked = append(i.revoked, serial)
	f.sign(i)
	f.note(feedapi.Change{Kind: feedapi.CertificateRevoked, Revoked: &r})
	f.note(feedapi.Change{Kind: feedapi.TrustSetChanged})
}

// Revoke revokes a device's certificate, as an operator does.
func (f *fakeFeed) Revoke(leaf *testpki.Leaf, reason string, superseded bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.issuers[slices.IndexFunc(f.issuers, func(i *fakeIssuer) bool { return i.ca == leaf.Issuer })]
	f.revoke(i, leaf.Certificate.SerialNumber, feedapi.Revoked{Device: leaf.Certificate.Subject.CommonName, Reason: reason, Superseded: superseded})
}

// Add and Remove change the device list.
func (f *fakeFeed) Add(ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		f.devices[id] = true
		f.note(feedapi.Change{Kind: feedapi.DeviceAdded, Device: &feedapi.Device{ID: id, Label: "default"}})
	}
}

func (f *fakeFeed) Remove(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.devices, id)
	f.note(feedapi.Change{Kind: feedapi.DeviceRemoved, Device: &feedapi.Device{ID: id}})
}

// Change does anything and tells that the trust set changed.
func (f *fakeFeed) Change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	f.note(feedapi.Change{Kind: feedapi.TrustSetChanged})
}

func (f *fakeFeed) issuer(name string) *fakeIssuer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.issuers[slices.IndexFunc(f.issuers, func(i *fakeIssuer) bool { return i.name == name })]
}

// CA is the issuing CA's key, to make devices with.
func (f *fakeFeed) CA(name string) *testpki.Authority { return f.issuer(name).ca }

func (f *fakeFeed) lastAck() feedapi.Ack {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.acks) == 0 {
		return feedapi.Ack{}
	}
	return f.acks[len(f.acks)-1]
}

func (f *fakeFeed) trustSeq() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trust
}

// Restore makes the server answer like one that was restored from a backup, once.
func (f *fakeFeed) Restore() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reset = true
	f.note(feedapi.Change{Kind: feedapi.TrustSetChanged})
}

// eventually polls until ok, and fails the test with what after limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %s", limit, what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func has(text, part string) bool { return strings.Contains(text, part) }
