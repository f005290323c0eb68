//go:build testhooks

// Every step at which the bridge makes something durable fails once, not done or done with the answer lost, and the bridge either
// goes on or is restarted at that moment. Whatever happens: mosquitto can start with what is on disk, nobody revoked is let in, and
// in the end everything is in place.

package bridge

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/test/testpki"
)

// faultRows are the steps of the loop. Steps of setup have their own test.
var faultRows = []string{"bridge.acl", "bridge.bundle", "bridge.canary", "bridge.generation", "bridge.kicked", "bridge.queue", "bridge.reset",
	"bridge.server_certificate", "bridge.services_acl", "bridge.synced", "bridge.verified"}

var otherRows = []string{"bridge.approve", "bridge.setup_file", "bridge.setup_mark"}

func TestFaultRowsAreComplete(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	step := regexp.MustCompile(`fault\.Step\((.*?),`)
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, m := range step.FindAllSubmatch(data, -1) {
			literal, err := strconv.Unquote(string(m[1]))
			if err != nil {
				t.Errorf("%s: step %s is not a string literal", name, m[1])
			} else if !slices.Contains(faultRows, literal) && !slices.Contains(otherRows, literal) {
				t.Errorf("%s: step %s has no row", name, literal)
			}
		}
	}
}

// failingKick makes kicks fail while it is told to, so that the queue is worked off on its own.
type failingKick struct {
	*Mosquitto
	fail atomic.Bool
}

func (f *failingKick) Kick(ctx context.Context, device string) error {
	if f.fail.Load() {
		return errors.New("no kick for now")
	}
	return f.Mosquitto.Kick(ctx, device)
}

func TestEveryStepFailsBothWays(t *testing.T) {
	r := newRig(t, "dev-good")
	kicker := &failingKick{}
	r.wrap = func(b Broker) Broker {
		kicker.Mosquitto = b.(*Mosquitto)
		return kicker
	}
	var out []*testpki.Leaf
	n := 0
	for _, step := range faultRows {
		for mode, modeName := range map[fault.Mode]string{fault.NotDone: "not done", fault.Lost: "lost"} {
			for _, restart := range []bool{false, true} {
				n++
				c := faultCase{rig: r, kicker: kicker, step: step, mode: mode, restart: restart, n: n, out: &out}
				t.Run(step+" "+modeName+map[bool]string{true: " restart"}[restart], c.run)
			}
		}
	}
}

type faultCase struct {
	rig     *rig
	kicker  *failingKick
	step    string
	mode    fault.Mode
	restart bool
	n       int
	out     *[]*testpki.Leaf // revoked so far: never let in again
}

func (c faultCase) run(t *testing.T) {
	r := c.rig
	r.t = t
	if err := os.RemoveAll(r.conf.State); err != nil {
		t.Fatal(err)
	}
	var hit sync.Once
	reached := make(chan struct{})
	fault.Set(func(name string) fault.Mode {
		mode := fault.None
		if name == c.step {
			hit.Do(func() {
				mode = c.mode
				close(reached)
			})
		}
		return mode
	})
	defer fault.Set(nil)

	defer r.stopBridge()
	r.startBridge()
	eventually(t, patience, "ready at first", func() bool { return r.bridge.Status().Ready })
	id := "dev-" + strconv.Itoa(c.n)
	bad := r.device(id)
	live := r.connect(bad)
	server := r.newServerCertificate()
	c.kicker.fail.Store(c.step == "bridge.kicked")
	r.feed.Add(id + "-new")
	r.bridge.ServerCertificate(server)
	r.feed.Revoke(bad, "keyCompromise", false)
	if c.step == "bridge.reset" {
		r.feed.Restore()
	}
	if c.step == "bridge.kicked" {
		r.ready()
		eventually(t, patience, "everything else is done", func() bool {
			return has(string(r.read("devices.acl")), "user "+id+"-new\n") && bytes.Equal(r.read("server.pem"), server)
		})
		failed := r.counter("bridge_kicks_total", "error")
		eventually(t, patience, "kicks fail by themselves", func() bool { return r.counter("bridge_kicks_total", "error") >= failed+2 })
		c.kicker.fail.Store(false)
	}
	select {
	case <-reached:
	case <-time.After(patience):
		t.Fatal("the step was not reached")
	}
	if c.restart {
		r.stopBridge()
		c.check(t)
		r.startBridge()
		r.bridge.ServerCertificate(server)
	}
	*c.out = append(*c.out, bad)
	eventually(t, patience, "the revoked device's session ends", func() bool { return !live.alive() })
	r.ready()
	eventually(t, patience, "the new device is in the list, the server certificate in place, the queue empty", func() bool {
		return has(string(r.read("devices.acl")), "user "+id+"-new\n") && has(string(r.read("services.acl")), "user "+id+"-new\n") &&
			bytes.Equal(r.read("server.pem"), server) && c.settled()
	})
	r.stopBridge()
	c.check(t)
	state, err := ReadState(r.conf.State)
	if err != nil || len(state.Kicks) != 0 {
		t.Errorf("state %+v, %v", state, err)
	}
	good, err := os.ReadFile(filepath.Join(r.conf.State, generationDir, "0000000"+strconv.Itoa(state.Good)+".pem"))
	if err != nil || !bytes.Equal(good, r.read("bundle.pem")) {
		t.Errorf("the proven generation %d is not what is on disk: %v", state.Good, err)
	}
}

// settled reports whether the feed was read to its end and nobody waits to be put out.
func (c faultCase) settled() bool {
	state, err := ReadState(c.rig.conf.State)
	return err == nil && state.Verified == c.rig.feed.trustSeq() && state.Since >= c.rig.feed.trustSeq() && len(state.Kicks) == 0
}

// check does what logrotate does, and then what a revoked device does.
func (c faultCase) check(t *testing.T) {
	t.Helper()
	if err := loadable(c.rig.read("bundle.pem")); err != nil {
		t.Errorf("mosquitto could not start with what is on disk: %v", err)
	}
	hangUp(t, c.rig)
	for _, leaf := range *c.out {
		if s, err := c.rig.dial(leaf); err == nil {
			s.conn.Close()
			t.Errorf("%s is revoked and was let in", leaf.Certificate.Subject.CommonName)
		}
	}
	if s, err := c.rig.dial(c.rig.device("dev-good")); err != nil {
		t.Errorf("the good device is out: %v", err)
	} else {
		s.conn.Close()
	}
}
