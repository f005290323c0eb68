// The control listener: who may use it, and what a kick does and does not.

package bridge

import (
	"context"
	"crypto/tls"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/test/testpki"
)

// dialControl connects to the control listener with user and password.
func (r *rig) control(leaf *testpki.Leaf, user, password string) error {
	pair := leaf.TLS()
	conf := r.conf.Broker
	conf.ControlUser = user
	conf.ControlPasswordFile = filepath.Join(r.t.TempDir(), "password")
	testpki.WriteFile(r.t, conf.ControlPasswordFile, []byte(password))
	c := newMosquittoControl(conf, &tls.Config{RootCAs: testpki.Pool(r.feed.root), ServerName: "mqtt.example.com", Time: clock.System().Now},
		func() (*tls.Certificate, error) { return &pair, nil })
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	defer c.close()
	return c.connect(ctx)
}

func TestOnlyTheBridgeControlsTheBroker(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	bridge := r.feed.management.Leaf(t, "mqtt.example.com")
	if err := r.control(bridge, "natal-bridge", "secret"); err != nil {
		t.Fatalf("the bridge itself: %v", err)
	}
	// A device's chain ends at the same root, so TLS alone would let it in, whatever CN it has.
	cases := []struct {
		name           string
		leaf           *testpki.Leaf
		user, password string
	}{
		{"device", r.device("dev-1"), "", ""},
		{"device that names itself like the bridge", r.device("mqtt.example.com"), "", ""},
		{"device that names itself like the client", r.device("natal-bridge"), "natal-bridge", ""},
		{"device with a wrong password", r.device("natal-bridge"), "natal-bridge", "guess"},
		{"management certificate without password", r.feed.management.Leaf(t, "admin"), "natal-bridge", ""},
		{"bridge's certificate without password", bridge, "natal-bridge", ""},
		{"foreign certificate with the password", testpki.Root(t, "foreign").Leaf(t, "mqtt.example.com"), "natal-bridge", "secret"},
	}
	for _, c := range cases {
		if err := r.control(c.leaf, c.user, c.password); err == nil {
			t.Errorf("%s controls the broker", c.name)
		}
	}
}

func TestKick(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1", "dev-2", "known")
	r.startBridge()
	r.ready()
	one, same, two := r.connect(r.device("dev-1")), r.connect(r.device("dev-1")), r.connect(r.device("dev-2"))
	if err := r.broker.Kick(t.Context(), "dev-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "all its sessions end", func() bool { return !one.alive() && !same.alive() })
	if !two.alive() {
		t.Error("another device's session ended")
	}
	if err := r.broker.Kick(t.Context(), "dev-1"); err != nil {
		t.Errorf("a second time, without sessions: %v", err)
	}
	if err := r.broker.Kick(t.Context(), "never-seen"); err != nil {
		t.Errorf("a device that never connected: %v", err)
	}
	for _, name := range []string{"natal-bridge", "NATAL-bridge", "natal-canary-1"} {
		if err := r.broker.Kick(t.Context(), name); err == nil {
			t.Errorf("%s was kicked", name)
		}
	}
	hangUp(t, r)
	again := r.connect(r.device("dev-1"))
	if err := r.broker.Kick(t.Context(), "dev-1"); err != nil {
		t.Errorf("after a SIGHUP: %v", err)
	}
	eventually(t, patience, "kick after SIGHUP", func() bool { return !again.alive() })
	r.stopMosquitto()
	if err := r.broker.Kick(t.Context(), "dev-2"); err == nil {
		t.Error("a kick was reported although there is no broker")
	}
	r.startMosquitto()
	back := r.connect(r.device("dev-2"))
	if err := r.broker.Kick(t.Context(), "dev-2"); err != nil {
		t.Errorf("after the broker came back: %v", err)
	}
	eventually(t, patience, "kick after a restart", func() bool { return !back.alive() })
}

// A client that the plugin knows, because an operator made it, is still there afterwards.
func TestKickKeepsAClientThatThePluginKnows(t *testing.T) {
	t.Parallel()
	r := newRig(t, "known")
	r.startBridge()
	r.ready()
	if _, err := r.broker.control.command(t.Context(), "known", "createClient"); err != nil {
		t.Fatal(err)
	}
	s := r.connect(r.device("known"))
	if err := r.broker.Kick(t.Context(), "known"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "its session ends", func() bool { return !s.alive() })
	if known, err := r.broker.control.command(t.Context(), "known", "getClient"); err != nil || !known {
		t.Errorf("the client is gone: %v", err)
	}
}

// The pid file names a process that is not the broker: it is not signalled.
func TestAnotherProcessIsNeverSignalled(t *testing.T) {
	t.Parallel()
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Skip(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	path := filepath.Join(t.TempDir(), "pid")
	for name, content := range map[string]string{
		"another program": strconv.Itoa(sleep.Process.Pid), "nobody": "4194303\n", "init": "1\n", "nothing": "", "text": "mosquitto\n", "negative": "-1\n",
	} {
		testpki.WriteFile(t, path, []byte(content))
		if p, err := findProcess(path, "mosquitto"); err == nil {
			p.close()
			t.Errorf("%s was taken for the broker", name)
		}
	}
	if p, err := findProcess(filepath.Join(t.TempDir(), "none"), "mosquitto"); err == nil {
		p.close()
		t.Error("there is no pid file")
	}
	testpki.WriteFile(t, path, []byte(strconv.Itoa(sleep.Process.Pid)))
	p, err := findProcess(path, "sleep")
	if err != nil {
		t.Fatal(err)
	}
	p.close()
}

// SIGHUP kills a broker that has just started; the bridge waits.
func TestReloadRightAfterStartDoesNotKillTheBroker(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.startBridge()
	r.ready()
	r.stopMosquitto()
	r.startMosquitto()
	r.feed.Revoke(r.device("dev-1"), "keyCompromise", false)
	r.ready()
	if conn, err := net.Dial("tcp", r.services); err != nil {
		t.Errorf("the broker is gone: %v", err)
	} else {
		conn.Close()
	}
}
