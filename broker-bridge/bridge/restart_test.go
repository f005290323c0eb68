// A new process looks before it touches.

package bridge

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestRestartLeavesARightBrokerAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.startBridge()
	r.ready()
	live := r.connect(r.device("dev-1"))
	r.stopBridge()
	r.feed.mu.Lock()
	r.feed.down = true
	r.feed.mu.Unlock()
	before, reloads := r.read("bundle.pem"), strings.Count(r.mlog.String(), "Reloading config")
	r.startBridge()
	eventually(t, patience, "the server is asked in vain", func() bool { return has(r.blog.String(), "server answered 503") })
	if !bytes.Equal(before, r.read("bundle.pem")) || strings.Count(r.mlog.String(), "Reloading config") != reloads {
		t.Error("the broker was touched although it was right and the server is away")
	}
	r.feed.mu.Lock()
	r.feed.down = false
	r.feed.mu.Unlock()
	r.ready()
	if !live.alive() {
		t.Error("a session was lost")
	}
}

func TestRestartPutsATornFileRight(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1", "dev-bad")
	r.startBridge()
	r.ready()
	bad := r.device("dev-bad")
	r.feed.Revoke(bad, "keyCompromise", false)
	r.ready()
	want := r.read("bundle.pem")
	r.stopBridge()
	r.feed.mu.Lock()
	r.feed.down = true // the last good set is enough
	r.feed.mu.Unlock()
	for name, broken := range map[string][]byte{"torn": want[:len(want)/2], "empty": {}, "without CRL": want[:bytes.Index(want, []byte("-----BEGIN X509"))]} {
		if err := os.WriteFile(r.path("bundle.pem"), broken, 0o640); err != nil {
			t.Fatal(err)
		}
		hangUp(t, r)
		r.startBridge()
		eventually(t, patience, name+": the file is whole again", func() bool { return bytes.Equal(r.read("bundle.pem"), want) })
		eventually(t, patience, name+": devices connect", func() bool { _, err := r.dial(r.device("dev-1")); return err == nil })
		eventually(t, patience, name+": the revoked device is out", func() bool { _, err := r.dial(bad); return err != nil })
		r.stopBridge()
	}
	r.stopMosquitto()
	if err := os.WriteFile(r.path("bundle.pem"), want[:len(want)/2], 0o640); err != nil {
		t.Fatal(err)
	}
	r.startBridge()
	eventually(t, patience, "a broker that is down finds a whole file", func() bool { return bytes.Equal(r.read("bundle.pem"), want) })
	r.startMosquitto()
	r.connect(r.device("dev-1"))
}

func TestSecondBridgeOnOneStateDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	b := &stub{outcomes: asWanted}
	r := bareBridge(t, b)
	if s, err := openStore(r.conf.State); err == nil {
		s.close()
		t.Error("two bridges share a state directory")
	}
}

func TestRevocationWhileTheBridgeWasDownIsCaughtUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-bad")
	r.startBridge()
	r.ready()
	first, bad := r.device("dev-first"), r.device("dev-bad")
	r.feed.Revoke(first, "keyCompromise", false) // so that there is a place in the feed to return to
	r.ready()
	live := r.connect(bad)
	r.stopBridge()
	r.feed.Revoke(bad, "keyCompromise", false)
	if !live.alive() {
		t.Fatal("the session ended by itself")
	}
	r.startBridge()
	eventually(t, patience, "the session is ended", func() bool { return !live.alive() })
	if _, err := r.dial(bad); err == nil {
		t.Error("the revoked device is in")
	}
}
