// A broker that does not do what the files say. The tests reach between the files and the broker, as a disk, an operator or a bug would.

package bridge

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
)

// saboteur spoils the bundle after it was written, while it is told to.
type saboteur struct {
	*Mosquitto
	spoil atomic.Pointer[func([]byte) []byte]
}

func (s *saboteur) Publish(m Material) error {
	if err := s.Mosquitto.Publish(m); err != nil {
		return err
	}
	if spoil := s.spoil.Load(); spoil != nil && m.Bundle != nil {
		if s.spoil.CompareAndSwap(spoil, nil) { // once: the way back is not spoiled
			return os.WriteFile(s.conf.Bundle, (*spoil)(m.Bundle), 0o640)
		}
	}
	return nil
}

func (r *rig) sabotage() *saboteur {
	s := &saboteur{}
	r.wrap = func(b Broker) Broker {
		s.Mosquitto = b.(*Mosquitto)
		return s
	}
	return s
}

// A crlfile without a CRL makes mosquitto 2.0 accept every revoked certificate. The revoked canary notices.
func TestFailOpenIsNoticedAndTakenBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-bad", "dev-good")
	s := r.sabotage()
	r.startBridge()
	r.ready()
	bad, first := r.device("dev-bad"), r.device("dev-first")
	r.feed.Revoke(first, "keyCompromise", false)
	r.ready()

	cut := func(b []byte) []byte { return b[:bytes.Index(b, []byte("-----BEGIN X509 CRL"))] }
	s.spoil.Store(&cut)
	r.feed.Revoke(bad, "keyCompromise", false)
	eventually(t, patience, "the set is taken back", func() bool { return r.counter("bridge_rollbacks_total", "") == 1 })
	eventually(t, patience, "the broker is right again", func() bool {
		return r.counter("bridge_fail_open", "") == 0 && r.counter("bridge_validation_failures_total", CodeProof) == 1
	})
	if !has(r.blog.String(), "ACCEPTS WHAT IT MUST REFUSE") {
		t.Error("the log does not say that the broker was open")
	}
	if _, err := r.dial(first); err == nil {
		t.Error("a device that was revoked before is in")
	}
	// The second try, unspoiled, succeeds.
	eventually(t, patience, "the set is proven after all", func() bool { _, err := r.dial(bad); return err != nil })
	r.ready()
	r.connect(r.device("dev-good"))
}

// A bundle that is torn anywhere, CRL included, keeps everybody out: it is the cafile as well. That is the better way to fail,
// and still has to be put right at once.
func TestFailClosedIsTakenBack(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func([]byte) []byte{
		"garbage":       func([]byte) []byte { return []byte("garbage\n") },
		"empty":         func([]byte) []byte { return nil },
		"torn in a CRL": func(b []byte) []byte { return b[:len(b)-60] },
		"torn in a CA":  func(b []byte) []byte { return b[:300] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "dev-bad", "dev-good")
			s := r.sabotage()
			r.startBridge()
			r.ready()
			s.spoil.Store(&spoil)
			bad := r.device("dev-bad")
			r.feed.Revoke(bad, "keyCompromise", false)
			eventually(t, patience, "the set is taken back", func() bool { return r.counter("bridge_rollbacks_total", "") == 1 })
			eventually(t, patience, "good devices connect", func() bool { _, err := r.dial(r.device("dev-good")); return err == nil })
			r.ready() // the second try
			if _, err := r.dial(bad); err == nil {
				t.Error("the revoked device is in")
			}
		})
	}
}

// A server certificate that was proven is no part of a later roll-back: the one before it may have ended.
func TestRollBackKeepsAProvenServerCertificate(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-bad", "dev-good")
	s := r.sabotage()
	r.startBridge()
	r.ready()
	renewed := r.newServerCertificate()
	r.bridge.ServerCertificate(renewed)
	eventually(t, patience, "the renewed server certificate", func() bool { return bytes.Equal(r.read("server.pem"), renewed) })
	r.feed.Revoke(r.device("dev-first"), "keyCompromise", false)
	r.ready()
	spoil := func([]byte) []byte { return []byte("garbage\n") }
	s.spoil.Store(&spoil)
	r.feed.Revoke(r.device("dev-bad"), "keyCompromise", false)
	eventually(t, patience, "the set is taken back", func() bool { return r.counter("bridge_rollbacks_total", "") == 1 })
	eventually(t, patience, "good devices connect", func() bool { _, err := r.dial(r.device("dev-good")); return err == nil })
	if !bytes.Equal(r.read("server.pem"), renewed) {
		t.Error("the server certificate went back with the set")
	}
	r.ready()
	if !bytes.Equal(r.read("server.pem"), renewed) {
		t.Error("the renewed server certificate is gone")
	}
}

// Somebody else writes the broker's file and sends SIGHUP: the minute's look puts it right.
func TestDriftIsPutRight(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-bad")
	r.conf.ProveEvery = Duration(300 * time.Millisecond)
	r.startBridge()
	r.ready()
	bad := r.device("dev-bad")
	r.feed.Revoke(bad, "keyCompromise", false)
	r.ready()
	want := r.read("bundle.pem")
	if err := os.WriteFile(r.path("bundle.pem"), want[:len(want)-60], 0o640); err != nil {
		t.Fatal(err)
	}
	hangUp(t, r)
	eventually(t, patience, "file and broker are right", func() bool {
		if !bytes.Equal(r.read("bundle.pem"), want) {
			return false
		}
		_, err := r.dial(bad)
		return err != nil
	})
}

func hangUp(t *testing.T, r *rig) {
	t.Helper()
	p, err := findProcess(r.path("mosquitto.pid"), r.conf.Broker.Executable)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.hangUp(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestBrokerDownAndBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-bad", "dev-good")
	r.startBridge()
	r.ready()
	r.stopMosquitto()
	bad := r.device("dev-bad")
	r.feed.Revoke(bad, "keyCompromise", false)
	eventually(t, patience, "the bridge notices", func() bool { return has(r.blog.String(), "not running") })
	r.startMosquitto()
	if _, err := r.dial(bad); err == nil {
		t.Error("the broker came up without the newest revocation")
	}
	r.ready()
	r.connect(r.device("dev-good"))
}

// stub is a broker in memory, for what a real one cannot be made to do on command.
type stub struct {
	files    Material
	outcomes func([]Probe) []Outcome
	kickErr  error
	kicked   []string
	reloads  int
}

func (s *stub) Published() (Material, error) { return s.files, nil }
func (s *stub) Publish(m Material) error {
	if m.Bundle != nil {
		s.files.Bundle = m.Bundle
	}
	if m.ACL != nil {
		s.files.ACL, s.files.Services = m.ACL, m.Services
	}
	return nil
}
func (s *stub) Reload(context.Context) (time.Duration, error) { s.reloads++; return 0, nil }
func (s *stub) Prove(_ context.Context, p []Probe) []Outcome  { return s.outcomes(p) }
func (s *stub) Kick(_ context.Context, d string) error {
	if s.kickErr != nil {
		return s.kickErr
	}
	s.kicked = append(s.kicked, d)
	return nil
}

func asWanted(probes []Probe) []Outcome {
	var out []Outcome
	for _, p := range probes {
		out = append(out, Outcome{Probe: p, Verdict: p.Want, Alert: p.Alert})
	}
	return out
}

// Nobody is put out before the broker was proven to refuse: he would come straight back.
func TestNoKickBeforeProof(t *testing.T) {
	t.Parallel()
	b := &stub{outcomes: asWanted}
	r := bareBridge(t, b)
	bad := r.feed.CA("devices").Leaf(t, "dev-bad")
	r.step()
	b.outcomes = func(p []Probe) []Outcome {
		out := asWanted(p)
		for i := range out {
			if out[i].Probe.Want == Refused {
				out[i].Verdict, out[i].Alert = Accepted, 0
			}
		}
		return out
	}
	r.feed.Revoke(bad, "keyCompromise", false)
	r.poll()
	r.step()
	if len(b.kicked) != 0 {
		t.Errorf("kicked %v although the proof failed", b.kicked)
	}
	if len(r.b.store.Kicks) != 1 {
		t.Errorf("queue %v, want one entry", r.b.store.Kicks)
	}
	b.outcomes = asWanted
	r.b.rejected.again = time.Time{}
	r.b.broken = failures{}
	r.step()
	if !slices.Equal(b.kicked, []string{"dev-bad"}) || len(r.b.store.Kicks) != 0 {
		t.Errorf("kicked %v, queue %v", b.kicked, r.b.store.Kicks)
	}
}

// The queue outlives the process, and an entry leaves it only when it was done.
func TestKickQueueSurvivesRestart(t *testing.T) {
	t.Parallel()
	b := &stub{outcomes: asWanted, kickErr: errors.New("control listener is away")}
	r := bareBridge(t, b)
	r.step()
	r.feed.Revoke(r.feed.CA("devices").Leaf(t, "dev-1"), "keyCompromise", false)
	r.feed.Revoke(r.feed.CA("devices").Leaf(t, "dev-2"), "privilegeWithdrawn", false)
	r.feed.Revoke(r.feed.CA("devices").Leaf(t, "dev-3"), "superseded", true)
	r.poll()
	r.step()
	if len(r.b.store.Kicks) != 2 {
		t.Fatalf("queue %v", r.b.store.Kicks)
	}
	r.restart()
	b.kickErr = nil
	r.b.recover(t.Context())
	if err := r.b.kickAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(b.kicked, []string{"dev-1", "dev-2"}) {
		t.Errorf("kicked %v", b.kicked)
	}
	r.restart()
	r.b.recover(t.Context())
	r.poll()
	r.step()
	if len(b.kicked) != 2 || len(r.b.store.Kicks) != 0 {
		t.Errorf("after another restart: kicked %v, queue %v", b.kicked, r.b.store.Kicks)
	}
}

// What was revoked before the bridge first came is put out while a CRL lists it, and does not count as a latency.
func TestFirstStartCatchesUp(t *testing.T) {
	t.Parallel()
	b := &stub{outcomes: asWanted}
	r := bareBridge(t, b)
	r.feed.Revoke(r.feed.CA("devices").Leaf(t, "dev-listed"), "keyCompromise", false)
	r.feed.mu.Lock()
	r.feed.note(feedapi.Change{Kind: feedapi.CertificateRevoked, Revoked: &feedapi.Revoked{Serial: "77", Issuer: "devices", Device: "dev-expired", RevokedAt: time.Now().Add(-time.Hour)}})
	r.feed.mu.Unlock()
	if err := r.b.readDevices(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.poll()
	r.step()
	if !slices.Equal(b.kicked, []string{"dev-listed"}) {
		t.Errorf("kicked %v", b.kicked)
	}
	if n := r.counter("bridge_revocation_to_kicked_seconds"); n != 0 {
		t.Errorf("%v latencies measured", n)
	}
}

// A restored server knows nothing of our place in its feed.
func TestFeedBeginsAnew(t *testing.T) {
	t.Parallel()
	b := &stub{outcomes: asWanted}
	r := bareBridge(t, b)
	r.feed.Add("dev-1")
	r.step()
	r.poll()
	r.b.cursor = 1 << 40
	r.poll()
	if r.b.devices != nil || r.b.cursor != 0 {
		t.Fatalf("devices %v, cursor %d: not begun anew", r.b.devices, r.b.cursor)
	}
	if err := r.b.readDevices(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.b.devices["dev-1"]; !ok {
		t.Error("the device list is not there again")
	}
}
