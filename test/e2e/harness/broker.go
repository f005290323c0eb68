// A mosquitto that broker-bridge has set up and keeps, beside an est-server.

package harness

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// BrokerOptions say how to set the broker up; the zero value is the release build with the default topics.
type BrokerOptions struct {
	Hooks  bool     // the testhooks build of the bridge
	Topics []string // --topic
	Env    []string // of the bridge
}

// Broker is a running mosquitto with its bridge. Its certificate is for localhost and 127.0.0.1.
type Broker struct {
	Mosquitto, Bridge *Process
	Dir               string
	Binary            string // broker-bridge
	CA                string // file that a client verifies the broker with

	Devices string // HOST:PORT of the listener with mutual TLS
	Plain   string // HOST:PORT of a listener without TLS for independent subscribers, who may do anything
	Metrics string // HOST:PORT of the bridge's metrics and health

	addresses []string
	env       []string
}

// StartBroker enrolls a bridge at s, starts mosquitto and the bridge, and waits until the bridge has proven the broker.
func StartBroker(t testing.TB, s *Server, o BrokerOptions) *Broker {
	t.Helper()
	RequirePrograms(t, "mosquitto")
	control := FreeAddress(t)
	b := &Broker{Binary: Binary(t, "broker-bridge"), CA: s.Trust(), Devices: FreeAddress(t), Plain: FreeAddress(t), Metrics: FreeAddress(t), env: o.Env}
	if o.Hooks {
		b.Binary = HooksBinary(t, "broker-bridge")
	}
	b.addresses = []string{b.Devices, control, b.Plain}
	b.Dir = brokerDir(t)
	args := []string{"setup", "mosquitto", "--server", s.URL(), "--trust", s.Trust(), "--host", "localhost", "--san", "ip:127.0.0.1",
		"--code-file", s.CodeFile(t, "localhost", "--label", "bridge", "--san", "ip:127.0.0.1"),
		"--out", b.Dir, "--listen", b.Devices, "--control-listen", control, "--metrics-listen", b.Metrics}
	for _, topic := range o.Topics {
		args = append(args, "--topic", topic)
	}
	if os.Getuid() != 0 {
		args = append(args, "--user", "-")
	}
	Command{Path: b.Binary, Args: args, Env: o.Env}.MustRun(t)
	plain := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\n", Port(t, b.Plain))
	if err := os.WriteFile(filepath.Join(b.Dir, "conf.d", "plain.conf"), []byte(plain), 0o644); err != nil {
		t.Fatal(err)
	}
	b.StartMosquitto(t)
	b.StartBridge(t)
	return b
}

// brokerDir lies outside the test's own directory, which mosquitto's user may not enter.
func brokerDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "natal-broker-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "mosquitto")
}

// StartMosquitto starts the broker (again).
func (b *Broker) StartMosquitto(t testing.TB) {
	t.Helper()
	b.Mosquitto = StartMosquitto(t, filepath.Join(b.Dir, "mosquitto.conf"), b.addresses...)
}

// Config is the bridge's configuration file.
func (b *Broker) Config() string { return filepath.Join(b.Dir, "bridge.yaml") }

// StartBridge starts the bridge (again) and waits until it has proven the broker.
func (b *Broker) StartBridge(t testing.TB) {
	t.Helper()
	b.Bridge = Command{Path: b.Binary, Args: []string{"run", "--config", b.Config()}, Env: b.env}.Start(t)
	client := http.Client{Timeout: 2 * time.Second}
	Eventually(t, 30*time.Second, "the bridge to be ready", func() bool {
		if !b.Bridge.Running() {
			t.Fatalf("the bridge ended by itself:\n%s", b.Bridge.Output())
		}
		answer, err := client.Get("http://" + b.Metrics + "/readyz")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}
