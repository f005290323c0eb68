// The configuration file of the bridge. The field comments are its manual.

package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"
)

// Config is the file as it is written. Relative paths count from the directory of the file. Load makes it whole and valid.
type Config struct {
	Server        string       `yaml:"server"`          // EST server, "https://est.example.com:8443"
	Trust         string       `yaml:"trust"`           // PEM file: the roots that the EST server's certificate must chain to
	Label         string       `yaml:"label"`           // EST label of the bridge's own certificate; default bridge
	Identity      string       `yaml:"identity"`        // directory of the bridge's own key and certificate, 0700
	State         string       `yaml:"state"`           // directory of what must survive a restart, 0700; one bridge only
	Poll          Duration     `yaml:"poll"`            // longest time between two looks at the trust set, should a push be lost; default 30s
	ProveEvery    Duration     `yaml:"prove_every"`     // how often the broker is proven without a change; default 1m
	MaxCRLEntries int          `yaml:"max_crl_entries"` // a larger CRL is refused; each connection costs the broker 0.35 ms per 10,000; default 250000
	MetricsListen string       `yaml:"metrics_listen"`  // metrics and health, default 127.0.0.1:9102
	ACL           ACLConfig    `yaml:"acl"`
	Broker        BrokerConfig `yaml:"broker"`
}

// ACLConfig says what each device may do.
type ACLConfig struct {
	Head     string   `yaml:"head"`     // file that is kept verbatim above the devices; optional
	Topics   []string `yaml:"topics"`   // "ACCESS TOPIC" for each device, {id} is its id, {service} its service; default "write v1/devices/me/telemetry"
	Reserved []string `yaml:"reserved"` // names that are no device, besides the users of the head and "natal-..."
}

// BrokerConfig is one broker.
type BrokerConfig struct {
	Kind   string `yaml:"kind"`   // mosquitto
	Name   string `yaml:"name"`   // how the server shows this broker; default: the first of hosts
	Config string `yaml:"config"` // its mosquitto.conf, for `check`

	Bundle       string `yaml:"bundle"`        // cafile and crlfile of the device listener
	ACLFile      string `yaml:"acl_file"`      // acl_file of the device listener
	ServicesFile string `yaml:"services_file"` // acl_file for a listener of the operator's services, with the head's users; optional

	ServerCertificate string   `yaml:"server_certificate"` // certfile and keyfile: key, leaf, chain; empty: somebody else's business
	ServerLabel       string   `yaml:"server_label"`       // EST label it is enrolled at; default mqtt-server
	Hosts             []string `yaml:"hosts"`              // its names, DNS or IP; the first one is the CN and the bridge's id

	PIDFile    string `yaml:"pid_file"`   // pid_file of the broker
	Executable string `yaml:"executable"` // file name of its program, default mosquitto; nothing else is ever signalled
	Group      string `yaml:"group"`      // group that may read the files, default mosquitto; "-" leaves it

	Listener   string `yaml:"listener"`    // HOST:PORT of the device listener, as reached from here
	ServerName string `yaml:"server_name"` // name in the broker's certificate; default the first of hosts
	ServerCA   string `yaml:"server_ca"`   // PEM roots of the broker's certificate; default trust; "system" for the system's

	Control             string `yaml:"control"`               // HOST:PORT of the control listener
	ControlUser         string `yaml:"control_user"`          // dynamic-security client of the bridge; default natal-bridge
	ControlPasswordFile string `yaml:"control_password_file"` // its password
}

// Duration is a time.Duration that YAML spells "30s".
type Duration time.Duration

// UnmarshalYAML reads Go's duration syntax.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// Load reads a configuration file; unknown keys are refused.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var c Config
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	c.setDefaults(filepath.Dir(abs))
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &c, nil
}

func (c *Config) setDefaults(base string) {
	text := func(p *string, value string) {
		if *p == "" {
			*p = value
		}
	}
	text(&c.Label, "bridge")
	text(&c.MetricsListen, "127.0.0.1:9102")
	text(&c.Broker.Kind, "mosquitto")
	text(&c.Broker.ServerLabel, "mqtt-server")
	text(&c.Broker.Executable, "mosquitto")
	text(&c.Broker.Group, "mosquitto")
	text(&c.Broker.ControlUser, reservedPrefix+"bridge")
	if len(c.Broker.Hosts) > 0 {
		text(&c.Broker.Name, c.Broker.Hosts[0])
		text(&c.Broker.ServerName, c.Broker.Hosts[0])
	}
	if c.Poll == 0 {
		c.Poll = Duration(30 * time.Second)
	}
	if c.ProveEvery == 0 {
		c.ProveEvery = Duration(time.Minute)
	}
	if c.MaxCRLEntries == 0 {
		c.MaxCRLEntries = 250000
	}
	if len(c.ACL.Topics) == 0 {
		c.ACL.Topics = []string{"write v1/devices/me/telemetry"}
	}
	text(&c.Broker.ServerCA, c.Trust)
	paths := []*string{&c.Trust, &c.Identity, &c.State, &c.ACL.Head, &c.Broker.Config, &c.Broker.Bundle, &c.Broker.ACLFile,
		&c.Broker.ServicesFile, &c.Broker.ServerCertificate, &c.Broker.PIDFile, &c.Broker.ControlPasswordFile}
	if c.Broker.ServerCA != "system" {
		paths = append(paths, &c.Broker.ServerCA)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(base, *p)
		}
	}
}

// Validate joins every problem, each with its key.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if u, err := url.Parse(c.Server); err != nil || u.Scheme != "https" || u.Host == "" {
		bad("server: %q is not an https URL", c.Server)
	}
	required := []struct{ key, value string }{
		{"trust", c.Trust}, {"identity", c.Identity}, {"state", c.State},
		{"broker.bundle", c.Broker.Bundle}, {"broker.acl_file", c.Broker.ACLFile}, {"broker.pid_file", c.Broker.PIDFile},
		{"broker.control_password_file", c.Broker.ControlPasswordFile}, {"broker.server_name", c.Broker.ServerName},
	}
	for _, r := range required {
		if r.value == "" {
			bad("%s: missing", r.key)
		}
	}
	for _, r := range []struct{ key, value string }{{"broker.listener", c.Broker.Listener}, {"broker.control", c.Broker.Control},
		{"metrics_listen", c.MetricsListen}} {
		if _, _, err := net.SplitHostPort(r.value); err != nil {
			bad("%s: %q is not HOST:PORT", r.key, r.value)
		}
	}
	if c.Broker.Kind != "mosquitto" {
		bad("broker.kind: %q is not known, want mosquitto", c.Broker.Kind)
	}
	if c.Broker.ServerCertificate != "" && len(c.Broker.Hosts) == 0 {
		bad("broker.hosts: missing, a server certificate needs names")
	}
	for _, t := range c.ACL.Topics {
		if _, err := ParseTopic(t); err != nil {
			bad("acl.topics: %w", err)
		}
	}
	if d := time.Duration(c.Poll); d < time.Second || d > 30*time.Second {
		bad("poll: %s is not between 1s and 30s", d)
	}
	if d := time.Duration(c.ProveEvery); d < time.Second || d > time.Hour {
		bad("prove_every: %s is not between 1s and 1h", d)
	}
	return errors.Join(errs...)
}

// accessList reads the head and makes the renderer that the configuration describes.
func (c *Config) accessList() (*ACL, error) {
	var head []byte
	if c.ACL.Head != "" {
		var err error
		if head, err = os.ReadFile(c.ACL.Head); err != nil {
			return nil, fmt.Errorf("acl.head: %w", err)
		}
	}
	var topics []Topic
	for _, text := range c.ACL.Topics {
		t, err := ParseTopic(text)
		if err != nil {
			return nil, fmt.Errorf("acl.topics: %w", err)
		}
		topics = append(topics, t)
	}
	reserved := append([]string{c.Broker.ControlUser}, c.ACL.Reserved...)
	return NewACL(head, topics, append(reserved, c.Broker.Hosts...))
}
