// Devices come and go: their rights follow within two seconds, and are exactly theirs. Seen by an independent subscriber, since
// mosquitto drops silently what is forbidden.

package bridge

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

const denied = 0x87

// delivered publishes until the subscriber has it or the limit is over.
func delivered(t *testing.T, s *session, sub *subscriber, topic string, limit time.Duration) (time.Duration, bool) {
	t.Helper()
	start := time.Now()
	for n := 0; time.Since(start) < limit; n++ {
		payload := fmt.Sprintf("%s-%d-end", t.Name(), start.UnixNano()+int64(n))
		if s.publish(topic, payload) == denied {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		eventually(t, patience, "delivery of an accepted message", func() bool { return sub.saw(topic + " " + payload) })
		return time.Since(start), true
	}
	return 0, false
}

func TestDeviceAddedAndRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-0")
	r.startBridge()
	r.ready()
	sub := r.subscribe("#")
	s := r.connect(r.device("dev-1"))
	if _, ok := delivered(t, s, sub, "/admin/dev-1/attrs", 100*time.Millisecond); ok {
		t.Fatal("a device without entry may publish")
	}
	r.feed.Add("dev-1")
	took, ok := delivered(t, s, sub, "/admin/dev-1/attrs", promised(2*time.Second))
	if !ok {
		t.Fatal("an added device may not publish after 2 s")
	}
	t.Logf("added to published: %s", took)
	if _, ok := delivered(t, s, sub, "v1/devices/me/telemetry", patience); !ok {
		t.Error("the topic without id is not allowed")
	}
	r.feed.Remove("dev-1")
	start := time.Now()
	eventually(t, promised(2*time.Second), "a removed device loses its rights", func() bool { return s.publish("/admin/dev-1/attrs", "x") == denied })
	t.Logf("removed to denied: %s", time.Since(start))
	s0 := r.connect(r.device("dev-0"))
	if _, ok := delivered(t, s0, sub, "/admin/dev-0/attrs", patience); !ok {
		t.Error("another device lost its rights")
	}
}

func TestRightsAreExactlyTheDevices(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev", "dev-1", "dev-10")
	r.startBridge()
	r.ready()
	sub := r.subscribe("#")
	s := r.connect(r.device("dev-1"))
	for _, topic := range []string{"/admin/dev/attrs", "/admin/dev-10/attrs", "/admin/DEV-1/attrs", "/admin/dev-1", "/admin/dev-1/attrs/x", "x", "cmd/dev-1",
		"$SYS/broker/uptime", "$CONTROL/dynamic-security/v1"} {
		if code := s.publish(topic, "foreign-payload"); code != denied {
			t.Errorf("publish to %s: reason %#x", topic, code)
		}
	}
	if _, ok := delivered(t, s, sub, "/admin/dev-1/attrs", patience); !ok {
		t.Error("its own topic is not allowed")
	}
	if sub.saw("foreign-payload") {
		t.Error("a forbidden message was delivered")
	}
}

// Whatever names certificates bear, on the device listener they have no rights but a device's.
func TestNamesThatAreNotDevicesGainNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.startBridge()
	r.ready()
	sub := r.subscribe("#")
	victim := r.connect(r.device("dev-1"))
	for _, cn := range []string{"mqtt.example.com", "natal-bridge", "natal-canary-1", "iotagent", "+", "#", "dev-1\nuser x", "%u", "DEV-1"} {
		s, err := r.dial(r.device(cn))
		if err != nil {
			continue // not even let in
		}
		for _, topic := range []string{"/admin/dev-1/attrs", "/admin/" + strings.ReplaceAll(cn, "+", "x") + "/attrs", "v1/devices/me/telemetry",
			"$CONTROL/dynamic-security/v1"} {
			if strings.ContainsAny(topic, "#\n") {
				continue
			}
			if code := s.publish(topic, "stolen-payload"); code != denied {
				t.Errorf("%q publishes to %s: reason %#x", cn, topic, code)
			}
		}
		s.subscribe("#")
		s.subscribe("$CONTROL/dynamic-security/v1/response")
		if _, ok := delivered(t, victim, sub, "/admin/dev-1/attrs", patience); !ok {
			t.Fatal("the device itself cannot publish")
		}
		select {
		case p := <-s.got:
			t.Errorf("%q received %s", cn, p.Topic)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if sub.saw("stolen-payload") {
		t.Error("a message of a name that is no device was delivered")
	}
}

// The reserved names do not reach the list even when the server sends them.
func TestReservedNamesFromTheServerAreLeftOut(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-1")
	r.startBridge()
	r.ready()
	r.feed.Add("iotagent", "Natal-Canary-1", "MQTT.example.com", "x\nuser dev-1\ntopic readwrite #", "dev-2")
	eventually(t, patience, "the good one arrives", func() bool { return has(string(r.read("devices.acl")), "user dev-2\n") })
	acl := string(r.read("devices.acl"))
	if strings.Count(acl, "user ") != 2 || has(acl, "#\ntopic") || has(strings.ToLower(acl), "natal") {
		t.Errorf("devices.acl:\n%s", acl)
	}
	if got := r.counter("bridge_validation_failures_total", CodeDeviceID); got != 4 {
		t.Errorf("%v refusals counted, want 4", got)
	}
}

func TestABurstOfDevicesIsFewReloads(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.startBridge()
	r.ready()
	before := strings.Count(r.mlog.String(), "Reloading config")
	for i := range 200 {
		r.feed.Add(fmt.Sprintf("burst-%03d", i))
	}
	eventually(t, patience, "all devices are in the list", func() bool { return has(string(r.read("devices.acl")), "user burst-199\n") })
	if n := strings.Count(r.mlog.String(), "Reloading config") - before; n > 10 {
		t.Errorf("%d reloads for 200 devices", n)
	}
	info, err := os.Stat(r.path("devices.acl"))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if services := string(r.read("services.acl")); !strings.HasPrefix(services, "user iotagent\ntopic read #\n") || !has(services, "user burst-000\n") {
		t.Errorf("services.acl begins %.80q", services)
	}
}
