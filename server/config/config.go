// Package config turns the server's configuration file into validated settings.
//
// File is the dumb shape of the YAML; Parse refuses unknown keys and wrong kinds and reports every problem with its key
// path at once; Settings is what the rest of the server may rely on. The annotated sample
// configs/est-server.yaml is the manual of every field.
//
// It does not look at the network or at other files, and does not know what the values are used for.
//
//	config.go    File, Settings, Parse
//	yaml.go      strict decoding with key paths
//	duration.go  durations with days
package config

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// File is config.yaml as written. The zero value of a field means its default.
type File struct {
	Hosts     []string `yaml:"hosts"`
	PublicURL string   `yaml:"public_url"`
	Listen    struct {
		EST     string `yaml:"est"`
		Public  string `yaml:"public"`
		Admin   string `yaml:"admin"`
		Metrics string `yaml:"metrics"`
	} `yaml:"listen"`
	Database struct {
		URLFile string `yaml:"url_file"`
	} `yaml:"database"`
	PassphraseFile string   `yaml:"passphrase_file"`
	KeyStore       string   `yaml:"key_store"`
	ReservedIDs    []string `yaml:"reserved_ids"`
	PublishDir     string   `yaml:"publish_dir"`
	Codes          struct {
		Expires string `yaml:"expires"`
	} `yaml:"codes"`
	Limits struct {
		Connections int `yaml:"connections"`
	} `yaml:"limits"`
	Log struct {
		Level  string `yaml:"level"`
		Format string `yaml:"format"`
	} `yaml:"log"`
}

// Settings is a configuration that has been checked. It is a value: nobody changes it after Parse.
type Settings struct {
	Hosts     []string // extra names and IP addresses of the EST server certificate
	PublicURL string   // without a trailing slash; empty when the file does not say

	ESTListen, PublicListen, AdminListen, MetricsListen string // HOST:PORT

	DatabaseURLFile string // empty: SQLite in the data directory
	PassphraseFile  string // empty: not said here
	KeyStore        string // where new CAs get their keys; empty: in files
	ReservedIDs     []string
	PublishDir      string // empty: nothing is published for validation authorities

	CodeExpires         time.Duration
	Connections         int
	LogLevel, LogFormat string
}

// Problems is every fault of one file, in the order of the file's sample.
type Problems []string

func (p Problems) Error() string { return strings.Join(p, "; ") }

// Default is the configuration of an empty file.
func Default() Settings {
	s, err := Parse(nil)
	if err != nil {
		panic("config: the defaults are not valid: " + err.Error())
	}
	return s
}

// Parse reads a file's content. The error is Problems, or what the YAML parser says.
func Parse(content []byte) (Settings, error) {
	var f File
	if err := decode(content, &f); err != nil {
		return Settings{}, err
	}
	return f.Settings()
}

// Settings checks f and fills in the defaults.
func (f File) Settings() (Settings, error) {
	var c checker
	s := Settings{
		Hosts:           c.hosts("hosts", f.Hosts),
		PublicURL:       c.publicURL("public_url", f.PublicURL),
		ESTListen:       c.address("listen.est", f.Listen.EST, ":8443"),
		PublicListen:    c.address("listen.public", f.Listen.Public, ":8080"),
		AdminListen:     c.address("listen.admin", f.Listen.Admin, "127.0.0.1:9443"),
		MetricsListen:   c.address("listen.metrics", f.Listen.Metrics, "127.0.0.1:9101"),
		DatabaseURLFile: f.Database.URLFile,
		PassphraseFile:  f.PassphraseFile,
		KeyStore:        f.KeyStore,
		ReservedIDs:     c.ids("reserved_ids", f.ReservedIDs),
		PublishDir:      c.directory("publish_dir", f.PublishDir),
		CodeExpires:     c.duration("codes.expires", f.Codes.Expires, 30*Day, time.Minute, 365*Day),
		Connections:     c.count("limits.connections", f.Limits.Connections, 4096, 16, 1_000_000),
		LogLevel:        c.word("log.level", f.Log.Level, "info", "debug", "warn", "error"),
		LogFormat:       c.word("log.format", f.Log.Format, "text", "json"),
	}
	if len(c.problems) > 0 {
		return Settings{}, c.problems
	}
	return s, nil
}

// checker collects problems so that all are reported.
type checker struct{ problems Problems }

func (c *checker) add(key, problem string) { c.problems = append(c.problems, key+": "+problem) }

// CheckAddress says what is wrong with a HOST:PORT to listen on, or nil.
func CheckAddress(value string) error {
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT", value)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q: the port is not a number from 0 to 65535", value)
	}
	if host != "" && net.ParseIP(host) == nil && !hostName.MatchString(host) {
		return fmt.Errorf("%q: the host is neither a name nor an IP address", value)
	}
	return nil
}

func (c *checker) address(key, value, def string) string {
	if value == "" {
		return def
	}
	if err := CheckAddress(value); err != nil {
		c.add(key, err.Error())
	}
	return value
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)

// CheckHost says what is wrong with a host name or IP address for a certificate, or nil.
func CheckHost(value string) error {
	if net.ParseIP(value) != nil {
		return nil
	}
	if len(value) > 253 || !hostName.MatchString(value) {
		return fmt.Errorf("%q is neither a host name nor an IP address", value)
	}
	return nil
}

func (c *checker) hosts(key string, values []string) []string {
	for i, v := range values {
		if err := CheckHost(v); err != nil {
			c.add(fmt.Sprintf("%s[%d]", key, i), err.Error())
		}
	}
	return values
}

// CheckPublicURL returns value without a trailing slash, or what is wrong with it.
func CheckPublicURL(value string) (string, error) {
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Host == "":
		return "", fmt.Errorf("%q is not a URL like http://pki.example.com:8080", value)
	case u.Scheme != "http":
		return "", fmt.Errorf("%q must begin with http://: fetching a CRL must not need a certificate (RFC 5280 section 8)", value)
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return "", fmt.Errorf("%q must have no query, fragment or user", value)
	}
	return strings.TrimSuffix(value, "/"), nil
}

func (c *checker) publicURL(key, value string) string {
	if value == "" {
		return ""
	}
	u, err := CheckPublicURL(value)
	if err != nil {
		c.add(key, err.Error())
	}
	return u
}

var deviceID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (c *checker) ids(key string, values []string) []string {
	for i, v := range values {
		if !deviceID.MatchString(v) {
			c.add(fmt.Sprintf("%s[%d]", key, i), fmt.Sprintf("%q is not a device id (letters, digits, . _ -, at most 64)", v))
		}
	}
	return values
}

// directory accepts an absolute path: a relative one would depend on where the server was started.
func (c *checker) directory(key, value string) string {
	if value != "" && !filepath.IsAbs(value) {
		c.add(key, fmt.Sprintf("%q is not an absolute path", value))
	}
	return value
}

func (c *checker) duration(key, value string, def, low, high time.Duration) time.Duration {
	if value == "" {
		return def
	}
	d, err := ParseDuration(value)
	switch {
	case err != nil:
		c.add(key, err.Error())
	case d < low || d > high:
		c.add(key, fmt.Sprintf("%s is not from %s to %s", value, FormatDuration(low), FormatDuration(high)))
	}
	return d
}

func (c *checker) count(key string, value, def, low, high int) int {
	if value == 0 {
		return def
	}
	if value < low || value > high {
		c.add(key, fmt.Sprintf("%d is not from %d to %d", value, low, high))
	}
	return value
}

// word accepts def and the others.
func (c *checker) word(key, value, def string, others ...string) string {
	if value == "" || value == def {
		return def
	}
	for _, o := range others {
		if value == o {
			return value
		}
	}
	c.add(key, fmt.Sprintf("%q is not one of %s, %s", value, def, strings.Join(others, ", ")))
	return value
}
