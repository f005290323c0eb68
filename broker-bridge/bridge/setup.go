// Everything that a broker needs to start for the first time, from one enrollment code. A step that was done is not done
// again, so a setup that broke off is continued by the same command.

package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/natal-pki/natal/client"
	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/fault"
)

// SetupOptions are the flags of `broker-bridge setup mosquitto`.
type SetupOptions struct {
	Server           string
	Code             string   // enrollment code; needed until the bridge has its certificate
	Hosts            []string // names of the broker; the first is the bridge's id
	Out              string   // directory of all files
	Trust            string   // PEM file of the server's roots, or
	TrustFingerprint string   // SHA-256 of one
	Listen           string   // HOST:PORT of the device listener
	Control          string   // HOST:PORT of the control listener
	User             string   // the broker's user; "-" or not being root: the files keep our own
	PIDFile          string   // of the broker; empty: chosen by where Out is
	Topics           []string
	Head             string // ACL head to start with
	MetricsListen    string
	Clock            *clock.Clock
	Log              *slog.Logger
}

// setup is one run.
type setup struct {
	SetupOptions
	conf     *Config
	ids      *Identities
	uid, gid int // of the broker's user; -1 to leave
	group    string
	main     mosquittoConf
	out      io.Writer
}

// SetupMosquitto writes the files below o.Out and tells on out what it did and what is left to do.
func SetupMosquitto(ctx context.Context, o SetupOptions, out io.Writer) error {
	s := &setup{SetupOptions: o, out: out, uid: -1, gid: -1, group: "-"}
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"options", s.prepare},
		{"directories", s.directories},
		{"trust", s.trust},
		{"configuration", s.configuration},
		{"bridge certificate", s.enroll},
		{"server certificate", s.enrollServer},
		{"control client", s.control},
		{"trust set and devices", s.material},
		{"mosquitto configuration", s.mosquitto},
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return s.explain()
}

func (s *setup) path(parts ...string) string {
	return filepath.Join(append([]string{s.Out}, parts...)...)
}

func (s *setup) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

func (s *setup) prepare(context.Context) error {
	var err error
	if s.Out, err = filepath.Abs(s.Out); err != nil {
		return err
	}
	if len(s.Hosts) == 0 {
		return errors.New("--host: missing")
	}
	if net.ParseIP(s.Hosts[0]) != nil {
		return fmt.Errorf("--host: the first one is the bridge's id and must be a name, not %s", s.Hosts[0])
	}
	if os.Geteuid() != 0 || s.User == "-" || s.User == "" {
		s.User = ""
		return nil
	}
	u, err := user.Lookup(s.User)
	if err != nil {
		return fmt.Errorf("--user: %w", err)
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		return fmt.Errorf("--user: %w", err)
	}
	s.group = g.Name
	if s.uid, err = strconv.Atoi(u.Uid); err != nil {
		return err
	}
	s.gid, err = strconv.Atoi(u.Gid)
	return err
}

// directories: the broker may read Out, owns Out/broker (its plugin replaces its file there) and sees nothing of the rest.
func (s *setup) directories(context.Context) error {
	for _, d := range []struct {
		path string
		mode os.FileMode
		uid  int
		gid  int
	}{
		{s.Out, 0o750, -1, s.gid}, {s.path("conf.d"), 0o750, -1, s.gid}, {s.path("broker"), 0o750, s.uid, s.gid},
		{s.path("identity"), 0o700, -1, -1}, {s.path("state"), 0o700, -1, -1},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return err
		}
		if err := os.Chown(d.path, d.uid, d.gid); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// keep writes a file unless it is there: what an operator edited stays.
func (s *setup) keep(path string, data []byte, mode os.FileMode, uid, gid int) error {
	if _, err := os.Stat(path); err == nil {
		s.say("kept     %s", path)
		return nil
	}
	err := fault.Step("bridge.setup_file", func() error { return atomicfile.WriteOwned(path, data, mode, uid, gid) })
	if err == nil {
		s.say("written  %s", path)
	}
	return err
}

func (s *setup) trust(ctx context.Context) error {
	path := s.path("trust.pem")
	if _, err := os.Stat(path); err == nil {
		s.say("kept     %s", path)
		return nil
	}
	if s.Trust != "" {
		if _, err := ReadCertificates(s.Trust); err != nil {
			return fmt.Errorf("--trust: %w", err)
		}
		data, err := os.ReadFile(s.Trust)
		if err != nil {
			return err
		}
		return s.keep(path, data, 0o644, -1, -1)
	}
	if s.TrustFingerprint == "" {
		return errors.New("--trust FILE or --trust-fingerprint SHA256 is needed to recognise the server")
	}
	c := &client.Client{Server: s.Server, TrustFingerprint: s.TrustFingerprint, Clock: s.Clock, UserAgent: "broker-bridge"}
	defer c.Close()
	if _, err := c.CACerts(ctx); err != nil {
		return err
	}
	var data []byte
	for _, a := range c.Anchors() {
		data = append(data, certificatePEM(a.Raw)...)
	}
	return s.keep(path, data, 0o644, -1, -1)
}

func (s *setup) configuration(context.Context) error {
	deviceLine, deviceReach, err := listenLine(s.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	controlLine, controlReach, err := listenLine(s.Control)
	if err != nil {
		return fmt.Errorf("--control-listen: %w", err)
	}
	s.main = mosquittoConf{
		Device: deviceLine, Control: controlLine,
		Bundle: s.path("bundle.pem"), Server: s.path("server.pem"), ACL: s.path("devices.acl"),
		ControlTrust: s.path("control-trust.pem"), Dynsec: s.path("broker", "dynamic-security.json"),
		Main: s.path("mosquitto.conf"), Snippet: s.path("conf.d", "natal.conf"), SnippetDir: s.path("conf.d"), User: s.User,
	}
	if s.PIDFile == "" {
		s.PIDFile = packagedPIDFile(s.Out)
	}
	conf := Config{
		Server: s.Server, Trust: "trust.pem", Identity: "identity", State: "state", MetricsListen: s.MetricsListen,
		ACL: ACLConfig{Head: "acl-head", Topics: s.Topics},
		Broker: BrokerConfig{
			Kind: "mosquitto", Config: s.systemConf(), Bundle: "bundle.pem", ACLFile: "devices.acl", ServicesFile: "services.acl",
			ServerCertificate: "server.pem", Hosts: s.Hosts, PIDFile: s.pidFile(), Group: s.group,
			Listener: deviceReach, Control: controlReach, ControlPasswordFile: "state/control-password",
		},
	}
	conf.setDefaults(s.Out)
	var b bytes.Buffer
	b.WriteString("# Written by `broker-bridge setup mosquitto`; docs/broker.md and configs/broker-bridge.yaml explain each key.\n" +
		"# A topic may name the device's id and its service: write /{service}/{id}/attrs\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(conf); err != nil {
		return err
	}
	if err := s.keep(s.path("bridge.yaml"), b.Bytes(), 0o640, -1, -1); err != nil {
		return err
	}
	if err := s.writeHead(); err != nil {
		return err
	}
	if s.conf, err = Load(s.path("bridge.yaml")); err != nil {
		return err
	}
	s.ids, err = OpenIdentities(s.conf, s.Clock, s.Log, NewMetrics())
	return err
}

func (s *setup) writeHead() error {
	head := []byte("# Kept verbatim above the devices: rules of your own services. Their user blocks count on services.acl only.\n")
	if s.Head != "" {
		var err error
		if head, err = os.ReadFile(s.Head); err != nil {
			return fmt.Errorf("--acl-head: %w", err)
		}
	}
	return s.keep(s.path("acl-head"), head, 0o640, -1, -1)
}

// pidFile is the packaged broker's if Out is inside its configuration, else one of the broker's own.
func (s *setup) pidFile() string {
	if s.PIDFile != "" {
		return s.PIDFile
	}
	return s.path("broker", "mosquitto.pid")
}

func (s *setup) systemConf() string {
	if packagedPIDFile(s.Out) != "" {
		return "/etc/mosquitto/mosquitto.conf"
	}
	return s.main.Main
}

func (s *setup) enroll(ctx context.Context) error {
	if _, err := s.ids.Own(); err == nil {
		s.say("kept     %s", s.path("identity"))
		return nil
	}
	if s.Code == "" {
		return errors.New("--code-file: an enrollment code is needed for the first certificate")
	}
	id, err := s.ids.EnrollOwn(ctx, s.Code)
	if err != nil {
		return err
	}
	s.say("enrolled %s as %s until %s", s.path("identity"), id.Certificate.Subject.CommonName, id.Certificate.NotAfter.Format(time.DateOnly))
	return nil
}

func (s *setup) enrollServer(ctx context.Context) error {
	id, err := s.ids.server.Load()
	if errors.Is(err, client.ErrNoIdentity) || err == nil && !s.ids.covers(id.Certificate) {
		if _, err = s.ids.EnrollServer(ctx); err == nil {
			s.say("enrolled %s for %s", s.main.Server, strings.Join(s.conf.Broker.Hosts, ", "))
		}
	}
	if err != nil {
		return err
	}
	bundle, err := s.ids.ServerBundle()
	if err != nil {
		return err
	}
	return s.keep(s.main.Server, bundle, fileMode, -1, s.gid)
}

// control writes what the control listener trusts (the CAs above the bridge's own certificate), its client and the client's password.
func (s *setup) control(context.Context) error {
	own, err := s.ids.own.Load()
	if err != nil {
		return err
	}
	var trust []byte
	for _, c := range append(own.Chain[1:], s.ids.Anchors()...) {
		trust = append(trust, certificatePEM(c.Raw)...)
	}
	if err := s.keep(s.main.ControlTrust, trust, fileMode, -1, s.gid); err != nil {
		return err
	}
	password := newPassword()
	if err := s.keep(s.conf.Broker.ControlPasswordFile, []byte(password+"\n"), 0o600, -1, -1); err != nil {
		return err
	}
	written, err := os.ReadFile(s.conf.Broker.ControlPasswordFile)
	if err != nil {
		return err
	}
	data, err := dynamicSecurity(s.conf.Broker.ControlUser, strings.TrimSpace(string(written)))
	if err != nil {
		return err
	}
	return s.keep(s.main.Dynsec, data, 0o600, s.uid, s.gid)
}

// material writes the first bundle and access control list, so that the broker can start before the bridge runs. The anchors
// seen now are the ones that later sets are compared with.
func (s *setup) material(ctx context.Context) error {
	_, bundleErr := os.Stat(s.main.Bundle)
	_, aclErr := os.Stat(s.main.ACL)
	if bundleErr == nil && aclErr == nil {
		s.say("kept     %s and %s", s.main.Bundle, s.main.ACL)
		return nil
	}
	feed := NewFeed(s.conf.Server, s.ids.Anchors, s.ids.Own, s.Clock)
	b, err := New(Parts{Config: s.conf, Clock: s.Clock, Log: s.Log, Metrics: NewMetrics(), Feed: feed})
	if err != nil {
		return err
	}
	defer b.Close()
	set, refusals, err := b.fetchSet(ctx)
	if err != nil {
		return err
	}
	if len(refusals) > 0 {
		return refusals[0] // somebody is looking who can have it repaired
	}
	if err := b.readDevices(ctx); err != nil {
		return err
	}
	err = fault.Step("bridge.setup_mark", func() error {
		return b.update("mark", func(st *State) { st.Mark = set.Mark() })
	})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{{s.conf.Broker.ServicesFile, b.want.Services}, {s.main.ACL, b.want.ACL}, {s.main.Bundle, set.Bundle()}} {
		if err := s.keep(f.path, f.data, fileMode, -1, s.gid); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) mosquitto(context.Context) error {
	plugin, err := findControlPlugin()
	if err != nil {
		return err
	}
	s.main.Plugin, s.main.PIDFile = plugin, s.conf.Broker.PIDFile
	snippet, err := s.main.render(snippetTemplate)
	if err != nil {
		return err
	}
	if err := s.keep(s.main.Snippet, snippet, 0o644, -1, -1); err != nil {
		return err
	}
	whole, err := s.main.render(mainTemplate)
	if err != nil {
		return err
	}
	return s.keep(s.main.Main, whole, 0o644, -1, -1)
}

func (s *setup) explain() error {
	findings, err := CheckMosquitto(s.conf)
	s.say("\nLeft to do:")
	if s.conf.Broker.Config == s.main.Main {
		s.say("  1. start the broker:  mosquitto -c %s", s.main.Main)
		s.say("     (or include %s in the configuration of one that runs, and set broker.pid_file and broker.config in bridge.yaml)", s.main.Snippet)
	} else {
		s.say("  1. ln -s %s /etc/mosquitto/conf.d/natal.conf && systemctl restart mosquitto", s.main.Snippet)
	}
	s.say("  2. broker-bridge check --config %s", s.path("bridge.yaml"))
	s.say("  3. broker-bridge run --config %s", s.path("bridge.yaml"))
	if err != nil || len(findings) > 0 {
		s.say("\nNow, before step 1, `check` finds %d things that are not yet as they must be.", max(len(findings), 1))
	}
	return nil
}
