// From enrollment to the broker and out again, with a real mosquitto: what a device may, and when it may no longer.

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

const telemetry = "v1/devices/me/telemetry"

// CONNACK 0 proves little: mosquitto silently drops what the ACL forbids. What counts is what somebody else receives.
func TestDevicesPublishWithMosquittoPub(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "mosquitto", "mosquitto_pub", "mosquitto_sub", "openssl")
	s := harness.StartServer(t, harness.ServerOptions{})
	b := harness.StartBroker(t, s, harness.BrokerOptions{Topics: []string{"write " + telemetry, "write /admin/{id}/attrs"}})
	subscriber := subscribe(t, b, "#")

	factory := testpki.Root(t, "Factory")
	factoryFile := testpki.WriteFile(t, filepath.Join(t.TempDir(), "factory.pem"), factory.PEM())
	s.MustCLI(t, "birth-ca", "add", "default", factoryFile)
	birth := factory.Birth(t, "SN-000002")
	birthDir := t.TempDir()
	devices := map[string]string{
		"SN-000001": agent(t, s, "SN-000001", withCode(t, s, "SN-000001")...),
		"SN-000002": agent(t, s, "SN-000002", "--birth-cert", testpki.WriteFile(t, filepath.Join(birthDir, "cert.pem"), birth.PEM()),
			"--birth-key", testpki.WriteFile(t, filepath.Join(birthDir, "key.pem"), testpki.KeyPEM(t, birth.Key))),
	}
	for id, dir := range devices {
		bundle := filepath.Join(dir, "bundle.pem")
		enrolled := time.Now()
		harness.Eventually(t, 5*time.Second, id+" to be in the ACL", func() bool {
			publish(t, b, bundle, bundle, telemetry, "hello from "+id)
			return strings.Contains(subscriber.Output(), "hello from "+id)
		})
		if waited := time.Since(enrolled); waited > 2*time.Second {
			t.Errorf("%s: its ACL line came after %v, want less than 2 s", id, waited)
		}
		// One file for both, as people type it; then split by openssl; then the agent's own two files.
		if r := publish(t, b, bundle, bundle, "/admin/"+id+"/attrs", "bundle of "+id); r.Code != 0 {
			t.Errorf("%s with its bundle: exit code %d: %s", id, r.Code, r.Output())
		}
		delivered(t, subscriber, "/admin/"+id+"/attrs", "bundle of "+id)
		openssl(t, dir, "pkey", "-in", "bundle.pem", "-out", "deviceKey.pem")
		openssl(t, dir, "x509", "-in", "bundle.pem", "-out", "deviceCert.pem")
		if r := publish(t, b, filepath.Join(dir, "deviceCert.pem"), filepath.Join(dir, "deviceKey.pem"), telemetry, "split by openssl, "+id); r.Code != 0 {
			t.Errorf("%s split by openssl: exit code %d: %s", id, r.Code, r.Output())
		}
		delivered(t, subscriber, telemetry, "split by openssl, "+id)
		if r := publish(t, b, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), telemetry, "own files of "+id); r.Code != 0 {
			t.Errorf("%s with cert.pem and key.pem: exit code %d: %s", id, r.Code, r.Output())
		}
		delivered(t, subscriber, telemetry, "own files of "+id)
	}

	// Another device's topic, and the broker's own: not delivered, although the broker says yes.
	bundle := filepath.Join(devices["SN-000001"], "bundle.pem")
	publish(t, b, bundle, bundle, "/admin/SN-000002/attrs", "forged")
	publish(t, b, bundle, bundle, "$CONTROL/dynamic-security/v1", `{"commands":[{"command":"deleteClient","username":"x"}]}`)
	publish(t, b, bundle, bundle, telemetry, "after the forgery")
	delivered(t, subscriber, telemetry, "after the forgery")
	if strings.Contains(subscriber.Output(), "forged") {
		t.Errorf("a device has published for another:\n%s", subscriber.Output())
	}
}

func TestRevocationCutsTheLiveSession(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "mosquitto", "mosquitto_pub", "mosquitto_sub")
	s := harness.StartServer(t, harness.ServerOptions{})
	b := harness.StartBroker(t, s, harness.BrokerOptions{})
	reasons := []string{"keyCompromise", "cessationOfOperation", "privilegeWithdrawn", "unspecified", "affiliationChanged"}
	staying := filepath.Join(agent(t, s, "SN-STAYS", withCode(t, s, "SN-STAYS")...), "bundle.pem")
	var bundles []string
	for i := range reasons {
		id := fmt.Sprintf("SN-%d", i)
		bundles = append(bundles, filepath.Join(agent(t, s, id, withCode(t, s, id)...), "bundle.pem"))
	}
	stays, err := connect(t, b, staying)
	if err != nil {
		t.Fatal(err)
	}
	var worst time.Duration
	for i, bundle := range bundles {
		id := filepath.Base(filepath.Dir(bundle))
		live, err := connect(t, b, bundle)
		if err != nil {
			t.Fatalf("%s before its revocation: %v", id, err)
		}
		s.MustCLI(t, "device", "revoke", id, "--reason", reasons[i])
		revoked := time.Now()
		live.cut(t, 10*time.Second)
		worst = max(worst, time.Since(revoked))
		if _, err := connect(t, b, bundle); err == nil {
			t.Errorf("%s connects again after its revocation", id)
		}
	}
	t.Logf("from the confirmed revocation to the cut session: %v at worst", worst)
	if worst > time.Second {
		t.Errorf("a live session was cut %v after its revocation", worst)
	}
	if !stays.alive(t) {
		t.Error("another device's session was cut as well")
	}
	if _, err := connect(t, b, staying); err != nil {
		t.Errorf("another device is refused: %v", err)
	}
}

// The agent alone: empty directory, code, broker. It enrolls by itself and its telemetry arrives.
func TestAgentEnrollsAndPublishes(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "mosquitto", "mosquitto_pub", "mosquitto_sub")
	s := harness.StartServer(t, harness.ServerOptions{})
	b := harness.StartBroker(t, s, harness.BrokerOptions{})
	subscriber := subscribe(t, b, telemetry)
	dir := filepath.Join(t.TempDir(), "device")
	p := harness.Command{Path: harness.Binary(t, "estclient-example"), Args: append([]string{"run", "--server", s.URL(), "--dir", dir, "--trust", s.Trust(),
		"--mqtt", "localhost:" + harness.Port(t, b.Devices), "--mqtt-ca", b.CA, "--interval", "1s"}, withCode(t, s, "SN-AGENT")...)}.Start(t)
	harness.Eventually(t, 20*time.Second, "the agent's telemetry", func() bool { return strings.Contains(subscriber.Output(), telemetry+" ") })
	s.MustCLI(t, "device", "revoke", "SN-AGENT", "--reason", "keyCompromise")
	harness.Eventually(t, 10*time.Second, "the agent to be put out", func() bool {
		return strings.Contains(b.Mosquitto.Output(), "SN-AGENT been disconnected by administrative action")
	})
	quiet := len(subscriber.Output())
	time.Sleep(2500 * time.Millisecond) // two intervals in which nothing may come
	if len(subscriber.Output()) != quiet {
		t.Errorf("telemetry of a revoked device:\n%s", subscriber.Output()[quiet:])
	}
	if !p.Running() {
		t.Errorf("the agent has given up:\n%s", p.Output())
	}
}
