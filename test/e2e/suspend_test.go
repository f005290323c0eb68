// A suspended device is out of the broker with its live session, refused by EST, and back as it was when it is resumed.

package e2e

import (
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestSuspendedDeviceIsOutUntilItIsResumed(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{})
	dir := enrollDevice(t, s, "SN-000001")
	witness := b.witness(t, "-t", telemetryTopic)
	b.publishUntilSeen(t, witness, dir, telemetryTopic, "before")
	session := b.mustConnect(t, dir)
	began := time.Now()
	s.MustCLI(t, "device", "suspend", "SN-000001")
	session.waitEnd(t, began)
	if _, err := b.connect(t, dir, tls.VersionTLS12); alertOf(err) != 44 {
		t.Errorf("reconnected while suspended: %v, want alert 44", err)
	}
	client := harness.Binary(t, "estclient-example")
	if r := harness.Run(t, client, "reenroll", "--server", s.URL(), "--dir", dir); r.Code == 0 || !strings.Contains(r.Output(), "401") {
		t.Errorf("renewed while suspended: %s", r.Output())
	}
	if got := certificates(t, s, "--device", "SN-000001"); len(got) != 1 || got[0].State != "held" {
		t.Errorf("%+v", got)
	}
	s.MustCLI(t, "device", "resume", "SN-000001")
	b.publishUntilSeen(t, witness, dir, telemetryTopic, "after")
	harness.MustRun(t, client, "reenroll", "--server", s.URL(), "--dir", dir)
}
