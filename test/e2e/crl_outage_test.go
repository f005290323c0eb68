// The broker never sits on a CRL that has expired: neither at any hour of a day with the 24 hours of other systems, nor while the CA is down for half a day.
// With the seven days of the default TestThreeYears has steps of six and a half days.

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestBrokersCRLOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "faketime")
	c := newCalendar(t)
	s := harness.StartServer(t, harness.ServerOptions{Hooks: true, Env: []string{c.Env()}})
	for _, ca := range []string{"devices", "root"} {
		s.MustCLI(t, "crl", "set", ca, "--valid", "24h", "--interval", "1h")
		s.MustCLI(t, "crl", "issue", ca)
	}
	b := startBroker(t, s, brokerOptions{hooks: true, env: []string{c.Env()}, faketime: c.faketime(t), topics: []string{"write " + telemetryTopic},
		settings: map[string]string{"poll": "1s", "prove_every": "1s"}})
	dir := enrollDevice(t, s, "SN-000001")
	witness := b.witness(t, "-t", telemetryTopic)
	b.publishUntilSeen(t, witness, dir, telemetryTopic, "at first")

	// Jumps of an hour and of nearly a day: before each the broker's CRL is good for the time that comes, after each there is a fresh one.
	for _, shift := range []time.Duration{time.Hour, 2 * time.Hour, 24 * time.Hour} {
		if crl := b.bundleCRL(t); !crl.NextUpdate.After(time.Now().Add(shift)) {
			t.Fatalf("%v from the start the broker's CRL would be expired since %v", shift, crl.NextUpdate)
		}
		c.set(t, shift+5*time.Minute) // a little more than the interval, whenever the last one was made
		harness.Eventually(t, patience, fmt.Sprintf("a fresh CRL at the broker %v from the start", shift), func() bool {
			return c.now().Sub(b.bundleCRL(t).ThisUpdate) < time.Hour
		})
	}
	b.publishUntilSeen(t, witness, dir, telemetryTopic, "a day later")

	// The CA is down for twelve hours. The broker, restarted at the end of them, still takes the device.
	s.Stop(t)
	c.set(t, c.shift+12*time.Hour)
	if crl := b.bundleCRL(t); !crl.NextUpdate.After(c.now()) {
		t.Fatalf("after 12 hours without the CA the broker's CRL is expired since %v", crl.NextUpdate)
	}
	b.mosquitto.Stop(t)
	b.startMosquitto(t, c.faketime(t)...)
	again := b.witness(t, "-t", telemetryTopic)
	b.publishUntilSeen(t, again, dir, telemetryTopic, "while the CA is down")
	if strings.Contains(b.mosquitto.Output(), "expired") {
		t.Errorf("the broker speaks of something expired:\n%s", b.mosquitto.Output())
	}
}
