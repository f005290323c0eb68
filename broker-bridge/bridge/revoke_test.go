// A revoked device is out: its live session ends, it does not come back, and nobody else notices.

package bridge

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestRevokedDeviceIsPutOut(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-bad", "dev-good", "dev-other")
	r.startBridge()
	r.ready()
	bad, good := r.device("dev-bad"), r.device("dev-good")
	badSession, second, goodSession := r.connect(bad), r.connect(bad), r.connect(good)

	start := time.Now()
	r.feed.Revoke(bad, "keyCompromise", false)
	select {
	case <-badSession.ended:
	case <-time.After(patience):
		t.Fatal("the live session of the revoked device was not ended")
	}
	t.Logf("revoked to disconnected: %s", time.Since(start))
	eventually(t, patience, "its second session ended too", func() bool { return !second.alive() })
	if badSession.code != 0x98 {
		t.Errorf("DISCONNECT reason %#x, want 0x98 (administrative action)", badSession.code)
	}
	if s, err := r.dial(bad); err == nil {
		t.Errorf("the revoked device came back: %v", s)
	} else if !has(err.Error(), "revoked certificate") {
		t.Errorf("refused with %v, want the alert certificate_revoked", err)
	}
	if !goodSession.alive() || goodSession.publish("/admin/dev-good/attrs", "x") != 0 && goodSession.publish("/admin/dev-good/attrs", "x") != 0x10 {
		t.Error("the good device lost its session or its rights")
	}
	r.ready()
	eventually(t, patience, "the server is told", func() bool { return r.feed.lastAck().Seq == r.feed.trustSeq() })
	if n := r.bridge.Status().Pending; n != 0 {
		t.Errorf("%d sessions still queued", n)
	}
}

func TestSupersededCertificateKeepsTheSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.startBridge()
	r.ready()
	old, renewed := r.device("dev-1"), r.device("dev-1")
	session := r.connect(renewed)
	r.feed.Revoke(old, "superseded", true)
	r.ready()
	if _, err := r.dial(old); err == nil {
		t.Error("the superseded certificate is still accepted")
	}
	if !session.alive() {
		t.Error("the session of the newer certificate was ended")
	}
}

// The figure that counts, over many revocations, each with a live session and a crowd of others that must not notice.
func TestRevocationLatency(t *testing.T) {
	t.Parallel()
	const revocations, crowd = 30, 20
	r := newRig(t, "dev-good")
	r.startBridge()
	r.ready()
	var others []*session
	for range crowd {
		others = append(others, r.connect(r.device("dev-good")))
	}
	var took []time.Duration
	for i := range revocations {
		bad := r.device(fmt.Sprintf("dev-%d", i))
		live := r.connect(bad)
		start := time.Now()
		r.feed.Revoke(bad, "keyCompromise", false)
		select {
		case <-live.ended:
			took = append(took, time.Since(start))
		case <-time.After(patience):
			t.Fatalf("session %d was not ended", i)
		}
		if _, err := r.dial(bad); err == nil {
			t.Fatalf("device %d came back", i)
		}
	}
	for i, s := range others {
		if !s.alive() {
			t.Errorf("session %d of the crowd was lost", i)
		}
	}
	slices.Sort(took)
	t.Logf("revoked to refused and disconnected: p50 %s, max %s", took[len(took)/2], took[len(took)-1])
	if worst := took[len(took)-1]; worst > promised(time.Second) {
		t.Errorf("the slowest took %s", worst)
	}
}
