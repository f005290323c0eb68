// A real mosquitto, a feed and a bridge between them, in a directory of the test's own.

package bridge

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/test/testpki"
)

// mosquittoBinary is Debian's, or what MOSQUITTO names.
func mosquittoBinary(t *testing.T) string {
	t.Helper()
	name := os.Getenv("MOSQUITTO")
	if name == "" {
		name = "mosquitto"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/mosquitto"); err != nil {
			t.Skip("mosquitto is not installed")
		}
	}
	return path
}

// patience is for what must happen, however busy the machine is.
const patience = time.Minute

// promised is a time that the documentation states; the race detector slows everything down.
func promised(d time.Duration) time.Duration { return d * slowness }

type rig struct {
	t    *testing.T
	dir  string
	feed *fakeFeed
	conf *Config
	own  tls.Certificate

	mosquitto *exec.Cmd
	mlog      *lockedBuffer
	services  string // HOST:PORT of a plain listener that may read everything

	clock  *clock.Clock // nil: the system's
	bridge *Bridge
	broker *Mosquitto
	wrap   func(Broker) Broker
	stop   func()
	blog   *lockedBuffer
}

// newRig starts a feed with one issuing CA "devices", and mosquitto with the files of a setup. The bridge does not run yet.
func newRig(t *testing.T, devices ...string) *rig {
	t.Helper()
	mosquittoBinary(t)
	r := &rig{t: t, dir: t.TempDir(), feed: newFakeFeed(t, "devices"), mlog: &lockedBuffer{}, blog: &lockedBuffer{}}
	r.feed.Add(devices...)
	r.own = r.feed.management.Leaf(t, "mqtt.example.com").TLS()
	r.configure()
	r.writeFiles()
	r.startMosquitto()
	t.Cleanup(func() {
		r.stopBridge()
		r.stopMosquitto()
		if t.Failed() || os.Getenv("RIG_LOG") != "" {
			t.Logf("bridge:\n%s\nmosquitto:\n%s", tail(r.blog.String()), tail(r.mlog.String()))
		}
	})
	return r
}

func tail(s string) string {
	if len(s) > 8000 {
		return s[len(s)-8000:]
	}
	return s
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) configure() {
	ports := freePorts(r.t, 3)
	r.services = ports[2]
	r.conf = &Config{
		Server: r.feed.http.URL, Trust: "trust.pem", Identity: "identity", State: "state",
		ACL: ACLConfig{Head: "acl-head", Topics: []string{"write /admin/{id}/attrs", "write v1/devices/me/telemetry", "read cmd/{id}"}},
		Broker: BrokerConfig{
			Config: "mosquitto.conf", Bundle: "bundle.pem", ACLFile: "devices.acl", ServicesFile: "services.acl",
			ServerCertificate: "server.pem", Hosts: []string{"mqtt.example.com"}, PIDFile: "mosquitto.pid", Group: "-",
			Listener: ports[0], Control: ports[1], ControlPasswordFile: "password", Executable: filepath.Base(mosquittoBinary(r.t)),
		},
	}
	r.conf.setDefaults(r.dir)
	if err := r.conf.Validate(); err != nil {
		r.t.Fatal(err)
	}
}

func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out
}

func (r *rig) writeFiles() {
	t := r.t
	write := func(name string, parts ...[]byte) {
		if err := os.WriteFile(r.path(name), bytes.Join(parts, nil), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write("trust.pem", r.feed.root.PEM())
	write("server.pem", r.newServerCertificate())
	write("bundle.pem", r.feed.root.PEM(), r.feed.CA("devices").PEM(), crlPEM(r.feed.issuer("devices").der))
	write("control-trust.pem", r.feed.management.PEM(), r.feed.root.PEM())
	write("devices.acl", []byte("# empty\n"))
	write("acl-head", []byte("user iotagent\ntopic read #\n"))
	write("password", []byte("secret\n"))
	dynsec, err := dynamicSecurity(r.conf.Broker.ControlUser, "secret")
	if err != nil {
		t.Fatal(err)
	}
	write("dynamic-security.json", dynsec)
	plugin, err := findControlPlugin()
	if err != nil {
		t.Skip(err)
	}
	line := func(address string) string {
		l, _, err := listenLine(address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	snippet, err := mosquittoConf{
		Device: line(r.conf.Broker.Listener), Control: line(r.conf.Broker.Control), Bundle: r.path("bundle.pem"), Server: r.path("server.pem"),
		ACL: r.path("devices.acl"), ControlTrust: r.path("control-trust.pem"), Plugin: plugin, Dynsec: r.path("dynamic-security.json"),
	}.render(snippetTemplate)
	if err != nil {
		t.Fatal(err)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root\n"
	}
	write("mosquitto.conf", []byte("pid_file "+r.path("mosquitto.pid")+"\n"+user), snippet,
		[]byte("listener "+line(r.services)+"\nallow_anonymous true\n"))
}

// newServerCertificate is key, leaf and chain, as the bridge publishes them.
func (r *rig) newServerCertificate() []byte {
	leaf := r.feed.management.Leaf(r.t, "mqtt.example.com", testpki.Names("mqtt.example.com"), testpki.EKU(x509.ExtKeyUsageServerAuth))
	return slices.Concat(testpki.KeyPEM(r.t, leaf.Key), leaf.ChainPEM())
}

func (r *rig) startMosquitto() {
	r.t.Helper()
	r.mosquitto = exec.Command(mosquittoBinary(r.t), "-v", "-c", r.path("mosquitto.conf"))
	r.mosquitto.Stderr, r.mosquitto.Stdout = r.mlog, r.mlog
	if err := r.mosquitto.Start(); err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, patience, "mosquitto listens", func() bool {
		conn, err := net.Dial("tcp", r.services)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (r *rig) stopMosquitto() {
	if r.mosquitto != nil {
		r.mosquitto.Process.Kill()
		r.mosquitto.Wait()
		r.mosquitto = nil
	}
}

// startBridge runs the bridge as a process would, from the files.
func (r *rig) startBridge() {
	r.t.Helper()
	log := slog.New(slog.NewTextHandler(io.MultiWriter(r.blog), &slog.HandlerOptions{Level: slog.LevelDebug}))
	identity := func() (*tls.Certificate, error) { return &r.own, nil }
	anchors := []*x509.Certificate{r.feed.root.Certificate}
	clk := r.clock
	if clk == nil {
		clk = clock.System()
	}
	var err error
	if r.broker, err = NewMosquitto(r.conf.Broker, anchors, identity, clk); err != nil {
		r.t.Fatal(err)
	}
	var broker Broker = r.broker
	if r.wrap != nil {
		broker = r.wrap(broker)
	}
	r.bridge, err = New(Parts{Config: r.conf, Clock: clk, Log: log, Metrics: NewMetrics(),
		Feed: NewFeed(r.conf.Server, fixed(anchors...), identity, clk), Broker: broker})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.bridge.Run(ctx)
	}()
	r.stop = func() {
		cancel()
		<-done
		r.broker.Close()
		r.bridge.Close()
		r.stop = nil
	}
}

func (r *rig) stopBridge() {
	if r.stop != nil {
		r.stop()
	}
}

// ready waits until the broker is proven to hold the newest set.
func (r *rig) ready() {
	r.t.Helper()
	eventually(r.t, patience, "the bridge is ready", func() bool {
		s := r.bridge.Status()
		return s.Ready && s.Verified == r.feed.trustSeq()
	})
}

func (r *rig) device(cn string) *testpki.Leaf { return r.feed.CA("devices").Leaf(r.t, cn) }

// session is an MQTT 5 connection that is read until it ends.
type session struct {
	t     *testing.T
	conn  net.Conn
	ended chan struct{}
	got   chan *packets.Publish
	mu    sync.Mutex
	code  byte // of the DISCONNECT that the broker sent
	acks  chan byte
}

// dial connects as leaf to the device listener; an error means that the broker did not accept it. TLS 1.2, because there the client
// always learns why: the server answers to the certificate before the client may write.
func (r *rig) dial(leaf *testpki.Leaf) (*session, error) {
	pair := leaf.TLS()
	conf := &tls.Config{RootCAs: testpki.Pool(r.feed.root), ServerName: "mqtt.example.com", Certificates: []tls.Certificate{pair},
		MaxVersion: tls.VersionTLS12}
	dialer := &net.Dialer{Timeout: patience}
	conn, err := tls.DialWithDialer(dialer, "tcp", r.conf.Broker.Listener, conf)
	if err != nil {
		return nil, err
	}
	return r.handshake(conn)
}

func (r *rig) handshake(conn net.Conn) (*session, error) {
	cp := packets.NewControlPacket(packets.CONNECT)
	c := cp.Content.(*packets.Connect)
	c.CleanStart, c.KeepAlive, c.ClientID = true, 600, fmt.Sprint("test-", time.Now().UnixNano())
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := cp.WriteTo(conn); err != nil {
		conn.Close()
		return nil, err
	}
	answer, err := packets.ReadPacket(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if ack, ok := answer.Content.(*packets.Connack); !ok || ack.ReasonCode != 0 {
		conn.Close()
		return nil, fmt.Errorf("CONNACK %v", answer)
	}
	conn.SetDeadline(time.Time{})
	s := &session{t: r.t, conn: conn, ended: make(chan struct{}), got: make(chan *packets.Publish, 100), acks: make(chan byte, 100)}
	r.t.Cleanup(func() { conn.Close() })
	go s.read()
	return s, nil
}

func (s *session) read() {
	defer close(s.ended)
	in := bufio.NewReader(s.conn)
	for {
		p, err := packets.ReadPacket(in)
		if err != nil {
			return
		}
		switch c := p.Content.(type) {
		case *packets.Disconnect:
			s.mu.Lock()
			s.code = c.ReasonCode
			s.mu.Unlock()
		case *packets.Publish:
			s.got <- c
		case *packets.Puback:
			s.acks <- c.ReasonCode
		case *packets.Suback:
			s.acks <- c.Reasons[0]
		}
	}
}

// publish sends with QoS 1 and returns the reason code of the PUBACK.
func (s *session) publish(topic, payload string) byte {
	s.t.Helper()
	cp := packets.NewControlPacket(packets.PUBLISH)
	p := cp.Content.(*packets.Publish)
	p.QoS, p.PacketID, p.Topic, p.Payload = 1, 7, topic, []byte(payload)
	cp.Flags = 1 << 1
	return s.send(cp)
}

func (s *session) subscribe(topic string) byte {
	s.t.Helper()
	cp := packets.NewControlPacket(packets.SUBSCRIBE)
	p := cp.Content.(*packets.Subscribe)
	p.PacketID, p.Subscriptions = 8, []packets.SubOptions{{Topic: topic}}
	return s.send(cp)
}

func (s *session) send(cp *packets.ControlPacket) byte {
	s.t.Helper()
	if _, err := cp.WriteTo(s.conn); err != nil {
		s.t.Fatal(err)
	}
	select {
	case code := <-s.acks:
		return code
	case <-s.ended:
		s.t.Fatal("session ended")
	case <-time.After(patience):
		s.t.Fatal("no acknowledgement")
	}
	return 0
}

func (s *session) alive() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// connect is dial that must succeed.
func (r *rig) connect(leaf *testpki.Leaf) *session {
	r.t.Helper()
	s, err := r.dial(leaf)
	if err != nil {
		r.t.Fatalf("connect as %s: %v", leaf.Certificate.Subject.CommonName, err)
	}
	return s
}

// subscriber is mosquitto_sub on the services' listener: a witness that shares no code with us.
type subscriber struct {
	mu    sync.Mutex
	lines []string
}

func (r *rig) subscribe(topic string) *subscriber {
	r.t.Helper()
	path, err := exec.LookPath("mosquitto_sub")
	if err != nil {
		r.t.Skip("mosquitto_sub is not installed")
	}
	host, port, _ := net.SplitHostPort(r.services)
	cmd := exec.Command(path, "-h", host, "-p", port, "-t", topic, "-F", "%t %p")
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	s := &subscriber{}
	go func() {
		for scan := bufio.NewScanner(out); scan.Scan(); {
			s.mu.Lock()
			s.lines = append(s.lines, scan.Text())
			s.mu.Unlock()
		}
	}()
	conn, err := net.Dial("tcp", r.services)
	if err != nil {
		r.t.Fatal(err)
	}
	service, err := r.handshake(conn)
	if err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, patience, "mosquitto_sub subscribed", func() bool {
		service.publish("hello", "subscriber")
		return s.saw("hello subscriber")
	})
	return s
}

func (s *subscriber) saw(part string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(strings.Join(s.lines, "\n"), part)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (r *rig) read(name string) []byte {
	data, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

// counter reads a series by name and the value of its only label.
func (r *rig) counter(name, label string) float64 {
	r.t.Helper()
	families, err := r.bridge.metrics.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || len(m.GetLabel()) > 0 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return 0
}

// fixed are anchors that never change.
func fixed(anchors ...*x509.Certificate) func() []*x509.Certificate {
	return func() []*x509.Certificate { return anchors }
}
