// A broker as an operator sets it up: mosquitto with the files of `broker-bridge setup mosquitto`, a running bridge, and a listener of
// the operator's own, at which an independent subscriber sees what the broker really delivers.

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// patience is for what has no figure of its own: the machine may be busy with other tests.
const patience = 30 * time.Second

// brokerOptions are what a test wants differently.
type brokerOptions struct {
	topics   []string          // --topic; default: the bridge's
	head     string            // --acl-head
	operator string            // more lines for the operator's listener
	settings map[string]string // other values in bridge.yaml
	hooks    bool              // testhooks build of the bridge
	env      []string          // of the bridge
	faketime []string          // environment of mosquitto
	idle     bool              // do not start the bridge
}

// broker is the whole of it. Its server certificate names localhost and 127.0.0.1.
type broker struct {
	server *harness.Server
	dir    string
	binary string
	env    []string

	devices, control, services, metrics string // HOST:PORT: for devices, for the bridge, the operator's own, the bridge's metrics

	mosquitto, bridge *harness.Process
	setupOutput       string
}

// startBroker sets a broker up for s and starts everything.
func startBroker(t *testing.T, s *harness.Server, o brokerOptions) *broker {
	t.Helper()
	harness.RequirePrograms(t, "mosquitto", "mosquitto_sub", "mosquitto_pub")
	b := &broker{server: s, dir: openDir(t), env: o.env, binary: harness.Binary(t, "broker-bridge"),
		devices: harness.FreeAddress(t), control: harness.FreeAddress(t), services: harness.FreeAddress(t), metrics: harness.FreeAddress(t)}
	if o.hooks {
		b.binary = harness.HooksBinary(t, "broker-bridge")
	}
	b.setup(t, o)
	b.startMosquitto(t, o.faketime...)
	if !o.idle {
		b.startBridge(t)
		b.waitReady(t)
	}
	return b
}

// openDir is a directory that the user mosquitto may enter, unlike a test's own.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "natal-broker-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "mosquitto")
}

func (b *broker) path(name string) string { return filepath.Join(b.dir, name) }

func (b *broker) setup(t *testing.T, o brokerOptions) {
	t.Helper()
	args := []string{"setup", "mosquitto", "--server", b.server.URL(), "--trust", b.server.Trust(), "--host", "localhost", "--san", "ip:127.0.0.1",
		"--code-file", b.server.CodeFile(t, "localhost", "--label", "bridge", "--san", "ip:127.0.0.1"),
		"--out", b.dir, "--listen", b.devices, "--control-listen", b.control, "--metrics-listen", b.metrics}
	for _, topic := range o.topics {
		args = append(args, "--topic", topic)
	}
	if o.head != "" {
		head := filepath.Join(t.TempDir(), "head")
		writeText(t, head, o.head)
		args = append(args, "--acl-head", head)
	}
	b.setupOutput = harness.Command{Path: b.binary, Args: args, Env: o.env}.MustRun(t).Output()
	writeText(t, b.path("conf.d/operator.conf"), fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\n%s\n", harness.Port(t, b.services), o.operator))
	for key, value := range o.settings {
		text := readText(t, b.path("bridge.yaml"))
		line := regexp.MustCompile(`(?m)^` + key + `: .*$`)
		if !line.MatchString(text) {
			t.Fatalf("bridge.yaml has no %s:\n%s", key, text)
		}
		writeText(t, b.path("bridge.yaml"), line.ReplaceAllString(text, key+": "+value))
	}
}

func writeText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func appendText(t *testing.T, path, text string) {
	t.Helper()
	writeText(t, path, readText(t, path)+text)
}

func (b *broker) startMosquitto(t *testing.T, env ...string) {
	t.Helper()
	b.mosquitto = harness.Command{Path: harness.Program(t, "mosquitto"), Args: []string{"-c", b.path("mosquitto.conf"), "-v"}, Env: env}.Start(t)
	harness.Eventually(t, patience, "mosquitto to listen", func() bool {
		if !b.mosquitto.Running() {
			t.Fatalf("mosquitto ended by itself:\n%s", b.mosquitto.Output())
		}
		return harness.Listening(b.devices) && harness.Listening(b.control) && harness.Listening(b.services)
	})
}

func (b *broker) startBridge(t *testing.T) {
	t.Helper()
	b.bridge = harness.Command{Path: b.binary, Args: []string{"run", "--config", b.path("bridge.yaml")}, Env: b.env}.Start(t)
}

// waitReady waits until the bridge has proven the broker.
func (b *broker) waitReady(t *testing.T) {
	t.Helper()
	harness.Eventually(t, patience, "the bridge to prove the broker", func() bool {
		if !b.bridge.Running() {
			t.Fatalf("the bridge ended by itself:\n%s", b.bridge.Output())
		}
		return httpStatus("http://"+b.metrics+"/readyz") == http.StatusOK
	})
}

// httpStatus is 0 when there is no answer.
func httpStatus(url string) int {
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return 0
	}
	answer.Body.Close()
	return answer.StatusCode
}

// witness is mosquitto_sub at the operator's listener; it prints "TOPIC PAYLOAD" for each message.
func (b *broker) witness(t *testing.T, args ...string) *harness.Process {
	t.Helper()
	before := strings.Count(b.mosquitto.Output(), "Sending SUBACK")
	p := harness.Command{Path: harness.Program(t, "mosquitto_sub"),
		Args: append([]string{"-h", "127.0.0.1", "-p", harness.Port(t, b.services), "-v"}, args...)}.Start(t)
	harness.Eventually(t, patience, "the subscriber to be subscribed", func() bool {
		return strings.Count(b.mosquitto.Output(), "Sending SUBACK") > before
	})
	return p
}

// publish runs mosquitto_pub with a device's files at the device listener, as MQTT 3.1.1 and QoS 1: it ends when the broker has acknowledged, which
// mosquitto does also for what it throws away.
func (b *broker) publish(t *testing.T, dir, topic, payload string) harness.Result {
	t.Helper()
	return harness.Run(t, harness.Program(t, "mosquitto_pub"), "-h", "localhost", "-p", harness.Port(t, b.devices), "--cafile", b.server.Trust(),
		"--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem"), "-q", "1", "-t", topic, "-m", payload)
}

// mustPublish is publish that the broker has to acknowledge.
func (b *broker) mustPublish(t *testing.T, dir, topic, payload string) {
	t.Helper()
	if r := b.publish(t, dir, topic, payload); r.Code != 0 {
		t.Fatalf("mosquitto_pub %s: exit code %d\n%s", topic, r.Code, r.Output())
	}
}

// publishUntilSeen publishes again and again until the witness has it: that the list is on disk does not mean that the broker has read it.
func (b *broker) publishUntilSeen(t *testing.T, witness *harness.Process, dir, topic, payload string) {
	t.Helper()
	harness.Eventually(t, patience, payload+" at "+topic, func() bool {
		b.publish(t, dir, topic, payload)
		return strings.Contains(witness.Output(), topic+" "+payload)
	})
}

// agent starts the device agent; it publishes every 200 ms.
func (b *broker) agent(t *testing.T, id, dir, topic string, credential ...string) *harness.Process {
	t.Helper()
	return harness.Command{Path: harness.Binary(t, "estclient-example"), Args: b.agentArgs(id, dir, topic, credential...)}.Start(t)
}

func (b *broker) agentArgs(id, dir, topic string, credential ...string) []string {
	return append([]string{"run", "--server", b.server.URL(), "--trust", b.server.Trust(), "--dir", dir, "--id", id,
		"--mqtt", b.devices, "--mqtt-ca", b.server.Trust(), "--mqtt-topic", topic, "--interval", "200ms"}, credential...)
}

// enrollDevice makes a device by code and returns its directory.
func enrollDevice(t *testing.T, s *harness.Server, id string, args ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "device")
	enrollInto(t, s, dir, id, s.CodeFile(t, id), args...)
	return dir
}

func enrollInto(t *testing.T, s *harness.Server, dir, id, codeFile string, args ...string) {
	t.Helper()
	harness.MustRun(t, harness.Binary(t, "estclient-example"), append([]string{"enroll", "--server", s.URL(), "--trust", s.Trust(), "--dir", dir,
		"--id", id, "--code-file", codeFile}, args...)...)
}

// socketClient talks to the administration API through the server's socket, at http://admin/api/v1: a command costs a process each.
func socketClient(t *testing.T, s *harness.Server) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.Data, "admin.sock"))
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: patience, Transport: transport}
}

// waitOutput waits for text in what a program has written.
func waitOutput(t *testing.T, p *harness.Process, text string) {
	t.Helper()
	harness.Eventually(t, patience, strconv.Quote(text)+" in the output", func() bool { return strings.Contains(p.Output(), text) })
}

// outputLines are the whole lines that a program has written.
func outputLines(p *harness.Process) []string {
	return strings.Split(strings.TrimSuffix(p.Output(), "\n"), "\n")
}
