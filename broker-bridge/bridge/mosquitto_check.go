// Reading mosquitto.conf: what must hold there so that the bridge's work has the effect it should, by file and line.

package bridge

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Finding is a violation of the deployment contract.
type Finding struct {
	File string `json:"file"`
	Line int    `json:"line"` // 0: something is missing
	Rule string `json:"rule"` // a stable word
	Text string `json:"text"`
}

func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s (%s)", f.File, f.Line, f.Text, f.Rule)
}

type setting struct {
	value string
	file  string
	line  int
}

type listener struct {
	setting
	port    string
	options map[string]setting
}

type mosquittoFile struct {
	path      string
	global    map[string]setting
	listeners []*listener
	first     string // option that comes before everything else
	early     []setting
}

// perListener are the options that belong to the listener above them (2.0 with per_listener_settings).
var perListener = []string{"cafile", "capath", "certfile", "keyfile", "crlfile", "require_certificate", "use_identity_as_username",
	"use_subject_as_username", "use_username_as_clientid", "acl_file", "password_file", "allow_anonymous", "plugin", "auth_plugin", "protocol",
	"max_connections", "tls_version", "ciphers", "ciphers_tls1.3", "plugin_opt_config_file"}

// readMosquittoConf reads path and its include_dir directories in the order that mosquitto does.
func readMosquittoConf(path string) (*mosquittoFile, error) {
	f := &mosquittoFile{path: path, global: map[string]setting{}}
	return f, f.read(path, 0)
}

func (f *mosquittoFile) read(path string, depth int) error {
	if depth > 10 {
		return fmt.Errorf("%s: include_dir goes in a circle", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	scan := bufio.NewScanner(file)
	for line := 1; scan.Scan(); line++ {
		text := strings.TrimSpace(scan.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		word, value, _ := strings.Cut(text, " ")
		s := setting{strings.TrimSpace(value), path, line}
		if word == "include_dir" {
			if err := f.include(s.value, depth); err != nil {
				return err
			}
			continue
		}
		f.put(word, s)
	}
	return scan.Err()
}

func (f *mosquittoFile) include(dir string, depth int) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, path := range files {
		if err := f.read(path, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (f *mosquittoFile) put(word string, s setting) {
	if f.first == "" {
		f.first = word
	}
	switch {
	case word == "listener" || word == "port":
		port, _, _ := strings.Cut(s.value, " ")
		f.listeners = append(f.listeners, &listener{setting: s, port: port, options: map[string]setting{}})
	case !slices.Contains(perListener, word):
		f.global[word] = s
	case len(f.listeners) == 0:
		f.early = append(f.early, setting{word, s.file, s.line})
		f.global[word] = s
	default:
		f.listeners[len(f.listeners)-1].options[word] = s
	}
}

// CheckMosquitto reports what in the broker's configuration contradicts the bridge's. An error means that it could not be read.
func CheckMosquitto(conf *Config) ([]Finding, error) {
	f, err := readMosquittoConf(conf.Broker.Config)
	if err != nil {
		return nil, err
	}
	c := &mosquittoCheck{conf: conf.Broker, file: f}
	c.global()
	c.device()
	c.control()
	c.files()
	return c.found, nil
}

type mosquittoCheck struct {
	conf  BrokerConfig
	file  *mosquittoFile
	found []Finding
}

func (c *mosquittoCheck) say(at setting, rule, format string, args ...any) {
	if at.file == "" {
		at.file = c.file.path
	}
	c.found = append(c.found, Finding{at.file, at.line, rule, fmt.Sprintf(format, args...)})
}

func (c *mosquittoCheck) global() {
	if s := c.file.global["per_listener_settings"]; s.value != "true" {
		c.say(s, "per_listener_settings", "per_listener_settings must be true: one access control list for all listeners opens the control listener to devices")
	}
	if s := c.file.global["pid_file"]; s.value != c.conf.PIDFile {
		c.say(s, "pid_file", "pid_file is %q, the bridge looks at %q", s.value, c.conf.PIDFile)
	}
	for _, s := range c.file.early {
		if s.value == "max_connections" {
			c.say(s, "max_connections", "max_connections before the first listener makes mosquitto 2.1 crash at a reload")
		}
	}
}

func (c *mosquittoCheck) listener(address, what string) *listener {
	_, port, _ := net.SplitHostPort(address)
	for _, l := range c.file.listeners {
		if l.port == port {
			return l
		}
	}
	c.say(setting{}, what, "no listener on port %s", port)
	return nil
}

func (c *mosquittoCheck) device() {
	l := c.listener(c.conf.Listener, "device_listener")
	if l == nil {
		return
	}
	c.want(l, "require_certificate", "true", "without it no certificate is verified, and the CRL is not read")
	c.want(l, "use_identity_as_username", "true", "the access control list goes by the name in the certificate")
	c.want(l, "crlfile", c.conf.Bundle, "cafile and crlfile are the bridge's one bundle")
	c.want(l, "cafile", c.conf.Bundle, "cafile and crlfile are the bridge's one bundle")
	c.want(l, "acl_file", c.conf.ACLFile, "without an access control list every device may do everything")
	c.want(l, "set_tcp_nodelay", "true", "without it each TLS 1.3 connection takes 40 ms more")
	if c.conf.ServerCertificate != "" {
		c.want(l, "certfile", c.conf.ServerCertificate, "key and certificate are one file, so that they change together")
		c.want(l, "keyfile", c.conf.ServerCertificate, "key and certificate are one file, so that they change together")
	}
	for _, word := range []string{"capath", "plugin", "auth_plugin", "use_subject_as_username", "password_file"} {
		if s, ok := l.options[word]; ok && s.value != "false" {
			c.say(s, word, "%s does not belong on the device listener", word)
		}
	}
	if s, ok := l.options["allow_anonymous"]; ok && s.value == "true" {
		c.say(s, "allow_anonymous", "the device listener must not let in who has no name")
	}
	if s, ok := l.options["protocol"]; ok && s.value == "websockets" {
		c.say(s, "websockets", "mosquitto 2.0 ignores and later crashes on a CRL for WebSockets; terminate TLS in front of it")
	}
}

func (c *mosquittoCheck) control() {
	l := c.listener(c.conf.Control, "control_listener")
	if l == nil {
		return
	}
	if _, address, _ := strings.Cut(l.value, " "); !isLoopback(strings.TrimSpace(address)) {
		c.say(l.setting, "control_address", "the control listener must be on a loopback address, not %q", address)
	}
	c.want(l, "require_certificate", "true", "the bridge is known by certificate and password")
	if s, ok := l.options["use_identity_as_username"]; ok && s.value == "true" {
		c.say(s, "use_identity_as_username", "on the control listener a name in a certificate must not replace the password")
	}
	if s, ok := l.options["allow_anonymous"]; ok && s.value == "true" {
		c.say(s, "allow_anonymous", "the control listener must not let in who has no name")
	}
	if s := l.options["cafile"]; s.value == c.conf.Bundle {
		c.say(s, "cafile", "the control listener must not trust the CAs of devices")
	}
	if s, ok := l.options["plugin"]; !strings.HasSuffix(s.value, "mosquitto_dynamic_security.so") {
		if !ok {
			s = l.setting
		}
		c.say(s, "plugin", "the control listener needs the dynamic-security plugin; without it no session can be ended")
	}
}

func isLoopback(address string) bool {
	ip := net.ParseIP(address)
	return address == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *mosquittoCheck) want(l *listener, word, value, why string) {
	s, ok := l.options[word]
	if !ok {
		s, ok = c.file.global[word] // set_tcp_nodelay is a setting of the broker
	}
	if ok && s.value == value {
		return
	}
	if !ok {
		s = l.setting
	}
	c.say(s, word, "%s is %q, must be %q: %s", word, s.valueOr(ok), value, why)
}

func (s setting) valueOr(set bool) string {
	if set {
		return s.value
	}
	return ""
}

// files looks at what the broker would read if it were started now.
func (c *mosquittoCheck) files() {
	data, err := os.ReadFile(c.conf.Bundle)
	if err == nil {
		err = loadable(data)
	}
	if err != nil {
		c.found = append(c.found, Finding{c.conf.Bundle, 0, "bundle", err.Error()})
	}
	for _, path := range []string{c.conf.Bundle, c.conf.ACLFile, c.conf.ServerCertificate} {
		if info, err := os.Stat(path); path != "" && err == nil && info.Mode().Perm()&0o027 != 0 {
			c.found = append(c.found, Finding{path, 0, "mode", fmt.Sprintf("mode %04o, must be 0640", info.Mode().Perm())})
		}
	}
}
