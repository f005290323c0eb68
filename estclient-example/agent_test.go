// The agent as a device runs it: the built binary against the built server and a real mosquitto.

package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

// broker is a mosquitto whose server certificate is from a CA of its own, with a listener for devices and a plain one for the test to listen at.
type broker struct {
	*harness.Process
	devices, plain string
	ca             string // file: roots that authenticate the broker
}

func startBroker(t *testing.T, s *harness.Server, crl string) *broker {
	t.Helper()
	harness.RequirePrograms(t, "mosquitto", "mosquitto_sub", "mosquitto_pub")
	dir := t.TempDir()
	valid := testpki.Valid(time.Now().AddDate(-2, 0, 0), time.Now().AddDate(2, 0, 0))
	root := testpki.Root(t, "Broker root", valid)
	leaf := root.Leaf(t, "localhost", testpki.Names("localhost", "127.0.0.1"), testpki.EKU(x509.ExtKeyUsageServerAuth), valid)
	b := &broker{devices: harness.FreeAddress(t), plain: harness.FreeAddress(t), ca: testpki.WriteFile(t, filepath.Join(dir, "broker-root.pem"), root.PEM())}
	var trust []byte
	for _, name := range []string{"root", "devices"} {
		status, body, _ := s.Get(t, "http://"+s.Public+"/ca/"+name+".pem")
		if status != 200 {
			t.Fatalf("/ca/%s.pem: %d", name, status)
		}
		trust = append(trust, body...)
	}
	config := fmt.Sprintf("user root\nper_listener_settings true\nlistener %s 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\nuse_identity_as_username true\nallow_anonymous false\n",
		harness.Port(t, b.devices), testpki.WriteFile(t, filepath.Join(dir, "trust.pem"), trust),
		testpki.WriteFile(t, filepath.Join(dir, "broker.pem"), leaf.PEM()), testpki.WriteFile(t, filepath.Join(dir, "broker.key"), testpki.KeyPEM(t, leaf.Key)))
	if crl != "" {
		config += "crlfile " + crl + "\n"
	}
	config += fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\n", harness.Port(t, b.plain))
	b.Process = harness.StartMosquitto(t, testpki.WriteFile(t, filepath.Join(dir, "mosquitto.conf"), []byte(config)), b.devices, b.plain)
	return b
}

// listen starts an independent subscriber: that the broker acknowledges proves nothing.
func (b *broker) listen(t *testing.T) *harness.Process {
	t.Helper()
	p := harness.Command{Path: harness.Program(t, "mosquitto_sub"), Args: []string{"-h", "127.0.0.1", "-p", harness.Port(t, b.plain), "-t", "#", "-v"}}.Start(t)
	waitFor(t, b.Process, "Sending SUBACK")
	return p
}

func waitFor(t *testing.T, p *harness.Process, text string) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, fmt.Sprintf("%q in the output", text), func() bool { return strings.Contains(p.Output(), text) })
}

func agentArgs(s *harness.Server, dir string, more ...string) []string {
	return append([]string{"--server", s.URL(), "--dir", dir, "--trust", s.Trust()}, more...)
}

// TestLifeOfADevice: an empty directory, the first certificate, telemetry, the renewal eight months later, telemetry with the new
// certificate over a new connection, a clean end. The clock starts in the past, for mosquitto's does not move.
func TestLifeOfADevice(t *testing.T) {
	t.Parallel()
	clock := harness.NewClock(t)
	clock.Set(t, -300*24*time.Hour)
	s := harness.StartServer(t, harness.ServerOptions{Hooks: true, Env: []string{clock.Env()}})
	b := startBroker(t, s, "")
	subscriber := b.listen(t)
	notified, socket := notifySocket(t)
	dir := filepath.Join(t.TempDir(), "device")
	agent := harness.Command{Path: harness.HooksBinary(t, "estclient-example"), Env: []string{clock.Env(), "NOTIFY_SOCKET=" + socket},
		Args: agentArgs(s, dir, "run", "--id", "SN-000001", "--code-file", s.CodeFile(t, "SN-000001"), "--mqtt", b.devices, "--mqtt-ca", b.ca,
			"--mqtt-topic", "devices/{id}/telemetry", "--interval", "300ms")}.Start(t)
	serial := func() string { return received(t, subscriber, "devices/SN-000001/telemetry") }
	harness.Eventually(t, 30*time.Second, "telemetry", func() bool { return serial() != "" })
	first := serial()
	if !strings.Contains(notified(), "READY=1") {
		t.Error("systemd was not told READY=1")
	}
	clock.Set(t, 0)
	harness.Eventually(t, 60*time.Second, "telemetry with a renewed certificate", func() bool { return serial() != first })
	waitFor(t, b.Process, "as SN-000001")
	if n := strings.Count(b.Output(), "New client connected"); n < 3 { // the subscriber, the agent twice
		t.Errorf("%d connections: the agent did not connect anew", n)
	}
	shown := harness.MustRun(t, harness.Binary(t, "estclient-example"), "show", "--dir", dir, "--json")
	var state struct {
		Serial string `json:"serial"`
		Proven bool   `json:"proven"`
		State  string `json:"state"`
	}
	if err := json.Unmarshal([]byte(shown.Stdout), &state); err != nil || state.Serial != serial() || !state.Proven || state.State != "valid" {
		t.Errorf("show: %v\n%s", err, shown.Stdout)
	}
	if rss := residentKiB(t, agent.PID()); rss > 20<<10 {
		t.Errorf("resident memory %d KiB, at most 20 MiB", rss)
	}
	if code := agent.Stop(t); code != 0 {
		t.Errorf("stopped with exit code %d", code)
	}
	harness.Eventually(t, 10*time.Second, "the agent's goodbye at the broker", func() bool {
		return strings.Count(b.Output(), "Client SN-000001 disconnected") >= 2
	})
}

var telemetrySerial = regexp.MustCompile(`"certificate_serial":"([0-9a-f]+)"`)

// received is the certificate serial number in the last message on a topic.
func received(t *testing.T, subscriber *harness.Process, topic string) string {
	t.Helper()
	last := ""
	for line := range strings.Lines(subscriber.Output()) {
		if payload, ok := strings.CutPrefix(line, topic+" "); ok {
			if m := telemetrySerial.FindStringSubmatch(payload); m != nil {
				last = m[1]
			}
		}
	}
	return last
}

// notifySocket stands in for systemd.
func notifySocket(t *testing.T) (messages func() string, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	all := ""
	return func() string {
		buffer := make([]byte, 4096)
		for {
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := conn.Read(buffer)
			if err != nil {
				return all
			}
			all += string(buffer[:n]) + "\n"
		}
	}, path
}

func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatal("no VmRSS")
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFilesServeOtherTools: bundle.pem for both --cert and --key, and the split files; the payload arrives at an independent subscriber.
func TestFilesServeOtherTools(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, "")
	subscriber := b.listen(t)
	dir := filepath.Join(t.TempDir(), "device")
	harness.MustRun(t, harness.Binary(t, "estclient-example"), agentArgs(s, dir, "enroll", "--id", "SN-000001", "--code-file", s.CodeFile(t, "SN-000001"))...)
	for name, files := range map[string][2]string{"bundle": {"bundle.pem", "bundle.pem"}, "split": {"cert.pem", "key.pem"}} {
		payload := `{"temperature":25,"humidity":60,"files":"` + name + `"}`
		harness.MustRun(t, harness.Program(t, "mosquitto_pub"), "-d", "--cafile", b.ca, "-h", "localhost", "-p", harness.Port(t, b.devices),
			"-t", "v1/devices/me/telemetry", "--cert", filepath.Join(dir, files[0]), "--key", filepath.Join(dir, files[1]), "-m", payload)
		waitFor(t, subscriber, "v1/devices/me/telemetry "+payload)
	}
	waitFor(t, b.Process, "u'SN-000001'") // the user name that mosquitto took from the certificate
}

// TestServerComesLater: the agent is older than its server, and waits for it without being told.
func TestServerComesLater(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	code := s.CodeFile(t, "SN-000002")
	s.Stop(t)
	dir := filepath.Join(t.TempDir(), "device")
	agent := harness.Command{Path: harness.Binary(t, "estclient-example"),
		Args: agentArgs(s, dir, "run", "--once", "--id", "SN-000002", "--code-file", code)}.Start(t)
	waitFor(t, agent, "enrollment failed")
	s.Start(t)
	if code := agent.Wait(t, 60*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestBrokerRefusalIsExplained: the broker's alert reaches the log in words.
func TestBrokerRefusalIsExplained(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	dir := filepath.Join(t.TempDir(), "device")
	agent := harness.Binary(t, "estclient-example")
	harness.MustRun(t, agent, agentArgs(s, dir, "enroll", "--id", "SN-000003", "--code-file", s.CodeFile(t, "SN-000003"))...)
	s.MustCLI(t, "device", "revoke", "SN-000003", "--reason", "keyCompromise")
	_, der, _ := s.Get(t, "http://"+s.Public+"/crl/devices.crl")
	crl := testpki.WriteFile(t, filepath.Join(t.TempDir(), "devices.crl"), pemCRL(der))
	b := startBroker(t, s, crl)
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"revoked":        {[]string{"--mqtt-ca", b.ca}, "our certificate is revoked"},
		"foreign broker": {[]string{"--mqtt-ca", s.Trust()}, "does not chain to --mqtt-ca"},
	} {
		p := harness.Command{Path: agent, Args: agentArgs(s, dir, append([]string{"run", "--mqtt", b.devices}, c.args...)...)}.Start(t)
		waitFor(t, p, c.says)
		if code := p.Stop(t); code != 0 {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
	refused := harness.Run(t, agent, agentArgs(s, dir, "reenroll")...)
	if refused.Code != exitFailure || !strings.Contains(refused.Stderr, "40") || strings.Count(refused.Stderr, "\n") != 1 {
		t.Errorf("reenroll of a revoked device: exit code %d\n%s", refused.Code, refused.Output())
	}
}

// TestBinaryIsSmall builds it as a device maker would.
func TestBinaryIsSmall(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "estclient-example")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 12<<20 {
		t.Errorf("%d bytes, at most 12 MiB", info.Size())
	}
}

func pemCRL(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }
