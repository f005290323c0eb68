// From an enrollment code to a broker that starts, refuses and is kept in step, with nothing but the files of a setup.

package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/test/testpki"
)

func setupOptions(t *testing.T, f *fakeFeed, out string) SetupOptions {
	t.Helper()
	ports := freePorts(t, 3)
	trust := filepath.Join(t.TempDir(), "trust.pem")
	testpki.WriteFile(t, trust, f.root.PEM())
	f.codes = map[string]string{"mqtt.example.com": "the-code"}
	return SetupOptions{
		Server: f.http.URL, Code: "the-code", Hosts: []string{"mqtt.example.com", "localhost", "127.0.0.1"}, Out: out, Trust: trust,
		Listen: ports[0], Control: ports[1], MetricsListen: ports[2], User: "mosquitto", Clock: clock.System(), Log: slog.New(slog.DiscardHandler),
	}
}

// reachable makes a directory that the broker's user may enter.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "natal-setup-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "natal")
}

func TestSetupMakesABrokerThatStarts(t *testing.T) {
	t.Parallel()
	mosquittoBinary(t)
	f := newFakeFeed(t, "devices")
	f.Add("dev-1")
	revoked := f.CA("devices").Leaf(t, "dev-old")
	f.Revoke(revoked, "keyCompromise", false)
	o := setupOptions(t, f, reachable(t))
	var out bytes.Buffer
	if err := SetupMosquitto(t.Context(), o, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if !has(out.String(), "Left to do") || has(out.String(), "not yet as they must be") {
		t.Errorf("it says:\n%s", out.String())
	}
	conf, err := Load(filepath.Join(o.Out, "bridge.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if findings, err := CheckMosquitto(conf); err != nil || len(findings) != 0 {
		t.Errorf("check: %v, %v", findings, err)
	}
	if os.Geteuid() == 0 {
		checkOwners(t, o.Out)
	}

	r := &rig{t: t, dir: o.Out, feed: f, conf: conf, mlog: &lockedBuffer{}, blog: &lockedBuffer{}, services: conf.Broker.Control}
	r.startMosquitto()
	t.Cleanup(r.stopMosquitto)
	if _, err := r.dial(revoked); err == nil {
		t.Error("before the bridge ran, a revoked device was let in")
	}
	r.connect(f.CA("devices").Leaf(t, "dev-1"))

	ids, err := OpenIdentities(conf, clock.System(), slog.New(slog.DiscardHandler), NewMetrics())
	if err != nil {
		t.Fatal(err)
	}
	own, err := ids.Own()
	if err != nil {
		t.Fatal(err)
	}
	r.own = *own
	r.startBridge()
	t.Cleanup(r.stopBridge)
	if t.Failed() {
		return
	}
	r.ready()
	bad := f.CA("devices").Leaf(t, "dev-1")
	live := r.connect(bad)
	f.Revoke(bad, "keyCompromise", false)
	eventually(t, patience, "the revoked device is put out", func() bool { return !live.alive() })
	if t.Failed() {
		t.Log(r.blog.String())
	}
}

// checkOwners: the broker reads what it must and nothing else; nobody else reads a key.
func checkOwners(t *testing.T, out string) {
	t.Helper()
	u, err := user.Lookup("mosquitto")
	if err != nil {
		t.Skip("no user mosquitto")
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	want := map[string]struct {
		mode     os.FileMode
		uid, gid int
	}{
		"bundle.pem": {0o640, 0, gid}, "server.pem": {0o640, 0, gid}, "devices.acl": {0o640, 0, gid}, "services.acl": {0o640, 0, gid},
		"control-trust.pem": {0o640, 0, gid}, "broker": {0o750, uid, gid}, "broker/dynamic-security.json": {0o600, uid, gid},
		"state": {0o700, 0, 0}, "identity": {0o700, 0, 0}, "state/control-password": {0o600, 0, 0}, "bridge.yaml": {0o640, 0, 0}, ".": {0o750, 0, gid},
	}
	for name, w := range want {
		info, err := os.Stat(filepath.Join(out, name))
		if err != nil {
			t.Error(err)
			continue
		}
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm() != w.mode || int(st.Uid) != w.uid || int(st.Gid) != w.gid {
			t.Errorf("%s: %v %d:%d, want %v %d:%d", name, info.Mode().Perm(), st.Uid, st.Gid, w.mode, w.uid, w.gid)
		}
	}
	err = filepath.WalkDir(out, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && bytes.Contains(data, []byte("PRIVATE KEY")) && info.Mode().Perm()&0o007 != 0 {
			t.Errorf("%s holds a key and has mode %v", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSetupIsContinued(t *testing.T) {
	t.Parallel()
	f := newFakeFeed(t, "devices")
	o := setupOptions(t, f, filepath.Join(t.TempDir(), "natal"))
	o.User = "-"
	if os.Geteuid() != 0 {
		o.User = "mosquitto" // left alone without root
	}
	wrong := o
	wrong.Code = "wrong"
	if err := SetupMosquitto(t.Context(), wrong, new(bytes.Buffer)); err == nil {
		t.Fatal("a wrong code was enough")
	}
	f.mu.Lock()
	f.down = true // the feed, not EST
	f.mu.Unlock()
	if err := SetupMosquitto(t.Context(), o, new(bytes.Buffer)); err == nil {
		t.Fatal("setup succeeded without a trust set")
	}
	f.mu.Lock()
	f.down = false
	f.codes = nil
	f.mu.Unlock()
	o.Code = ""
	var out bytes.Buffer
	if err := SetupMosquitto(t.Context(), o, &out); err != nil {
		t.Fatalf("continued: %v\n%s", err, out.String())
	}
	before := snapshot(t, o.Out)
	edited := filepath.Join(o.Out, "acl-head")
	testpki.WriteFile(t, edited, []byte("user portal\ntopic read #\n"))
	if err := SetupMosquitto(t.Context(), o, &out); err != nil {
		t.Fatalf("once more: %v", err)
	}
	for name, data := range snapshot(t, o.Out) {
		if name != edited && data != before[name] {
			t.Errorf("%s was changed by a second setup", name)
		}
	}
	if data, _ := os.ReadFile(edited); string(data) != "user portal\ntopic read #\n" {
		t.Error("an edited file was overwritten")
	}
}

func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		all[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSetupRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	f := newFakeFeed(t, "devices")
	cases := map[string]func(*SetupOptions){
		"--trust":            func(o *SetupOptions) { o.Trust = "" },
		"--host":             func(o *SetupOptions) { o.Hosts = nil },
		"must be a name":     func(o *SetupOptions) { o.Hosts = []string{"127.0.0.1"} },
		"--listen":           func(o *SetupOptions) { o.Listen = "8883" },
		"--control-listen":   func(o *SetupOptions) { o.Control = "localhost" },
		"no device may":      func(o *SetupOptions) { o.Topics = []string{"write $CONTROL/dynamic-security/v1"} },
		"an enrollment code": func(o *SetupOptions) { o.Code = "" },
		"not an https URL":   func(o *SetupOptions) { o.Server = "http://est.example.com" },
	}
	for want, spoil := range cases {
		o := setupOptions(t, f, filepath.Join(t.TempDir(), "natal"))
		o.User = "-"
		spoil(&o)
		if err := SetupMosquitto(t.Context(), o, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

func TestSetupByFingerprint(t *testing.T) {
	t.Parallel()
	f := newFakeFeed(t, "devices")
	o := setupOptions(t, f, filepath.Join(t.TempDir(), "natal"))
	o.User, o.Trust, o.TrustFingerprint = "-", "", testpki.Fingerprint(f.management.Certificate)
	if err := SetupMosquitto(t.Context(), o, new(bytes.Buffer)); err == nil {
		t.Fatal("the fingerprint of another certificate was enough")
	}
	o.TrustFingerprint = testpki.Fingerprint(f.root.Certificate)
	if err := SetupMosquitto(t.Context(), o, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(o.Out, "trust.pem")); err != nil || !bytes.Equal(data, f.root.PEM()) {
		t.Errorf("trust.pem: %v", err)
	}
}

func TestDynamicSecurityGivesTheBridgeNothingElse(t *testing.T) {
	t.Parallel()
	data, err := dynamicSecurity("natal-bridge", newPassword())
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Clients []struct{ Username string }
		Roles   []struct {
			ACLs []struct {
				Type, Topic string
				Allow       bool
			}
		}
		DefaultACLAccess map[string]bool
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Clients) != 1 || doc.Clients[0].Username != "natal-bridge" || len(doc.Roles) != 1 {
		t.Errorf("clients %+v, roles %+v", doc.Clients, doc.Roles)
	}
	for _, acl := range doc.Roles[0].ACLs {
		if !strings.HasPrefix(acl.Topic, "$CONTROL/dynamic-security/v1") {
			t.Errorf("the role reaches %s", acl.Topic)
		}
	}
	for what, allowed := range doc.DefaultACLAccess {
		if allowed && what != "unsubscribe" {
			t.Errorf("everybody may %s", what)
		}
	}
}

// Both certificates are renewed at about two thirds of their life, and the broker serves the new one without a restart.
func TestCertificatesRenewWithoutRestart(t *testing.T) {
	t.Parallel()
	mosquittoBinary(t)
	f := newFakeFeed(t, "devices")
	f.Add("dev-1")
	o := setupOptions(t, f, reachable(t))
	if err := SetupMosquitto(t.Context(), o, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	conf, err := Load(filepath.Join(o.Out, "bridge.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: o.Out, feed: f, conf: conf, mlog: &lockedBuffer{}, blog: &lockedBuffer{}, services: conf.Broker.Control}
	r.startMosquitto()
	t.Cleanup(r.stopMosquitto)
	manual := clock.NewManual(time.Now())
	r.clock = manual.Clock()
	ids, err := OpenIdentities(conf, manual.Clock(), slog.New(slog.NewTextHandler(r.blog, nil)), NewMetrics())
	if err != nil {
		t.Fatal(err)
	}
	own, err := ids.Own()
	if err != nil {
		t.Fatal(err)
	}
	first := own.Leaf.SerialNumber
	r.own = *own
	r.startBridge()
	t.Cleanup(r.stopBridge)
	r.ready()
	live := r.connect(r.device("dev-1"))
	before := r.served()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	reconnected := make(chan struct{}, 10)
	go func() {
		defer close(done)
		ids.Run(ctx, func() { reconnected <- struct{}{} }, r.bridge.ServerCertificate)
	}()
	select {
	case <-reconnected:
		t.Fatal("renewed although it was not due")
	case <-time.After(50 * time.Millisecond):
	}
	if r.served() != before {
		t.Fatal("the server certificate changed although it was not due")
	}
	manual.Advance(certificateLife * 8 / 10)
	f.mu.Lock()
	f.clock = manual.Clock()
	f.mu.Unlock()
	select {
	case <-reconnected:
	case <-time.After(patience):
		t.Fatalf("the bridge's certificate was not renewed\n%s", r.blog.String())
	}
	if own, err = ids.Own(); err != nil || own.Leaf.SerialNumber.Cmp(first) == 0 {
		t.Errorf("own certificate is still %x, %v", first, err)
	}
	eventually(t, patience, "the broker serves the new certificate", func() bool { return r.served() != before })
	bundle, err := ids.ServerBundle()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "it is proven and stays", func() bool {
		return r.bridge.Status().Ready && bytes.Equal(r.read("server.pem"), bundle) && strings.Count(r.mlog.String(), "Reloading config") > 1
	})
	if n := r.counter("bridge_rollbacks_total", ""); n != 0 {
		t.Errorf("%v roll-backs\n%s", n, r.blog.String())
	}
	if !live.alive() {
		t.Error("a session was lost")
	}
	cancel()
	<-done
}

// served is the serial number of the certificate that the device listener shows.
func (r *rig) served() string {
	conn, err := tls.Dial("tcp", r.conf.Broker.Listener, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS13})
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}
