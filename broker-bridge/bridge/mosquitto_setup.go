// The files that mosquitto needs beside those that the bridge keeps up to date: configuration, control client.

package bridge

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"text/template"
)

// controlPlugin is where Debian and upstream install the plugin, by machine.
var controlPlugins = []string{
	"/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so",
	"/usr/lib/aarch64-linux-gnu/mosquitto_dynamic_security.so",
	"/usr/lib/arm-linux-gnueabihf/mosquitto_dynamic_security.so",
	"/usr/lib/mosquitto_dynamic_security.so",
	"/usr/local/lib/mosquitto_dynamic_security.so",
	"/usr/lib64/mosquitto_dynamic_security.so",
}

func findControlPlugin() (string, error) {
	for _, p := range controlPlugins {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("mosquitto_dynamic_security.so not found; is mosquitto 2.0 or newer installed?")
}

// snippetTemplate holds the two listeners. The order of security matters more than the order of lines: with per_listener_settings
// each listener has only what stands below it.
var snippetTemplate = template.Must(template.New("natal.conf").Parse(`# Listeners of broker-bridge. ` + "`broker-bridge check`" + ` says what must stay as it is.
per_listener_settings true

# Devices. cafile and crlfile are one file: one rename changes both, and only with a crlfile does SIGHUP read cafile again.
listener {{.Device}}
cafile {{.Bundle}}
crlfile {{.Bundle}}
certfile {{.Server}}
keyfile {{.Server}}
require_certificate true
use_identity_as_username true
acl_file {{.ACL}}
set_tcp_nodelay true

# The bridge: a certificate of the management CA, and its password. Here and nowhere else is the broker controlled.
listener {{.Control}}
cafile {{.ControlTrust}}
certfile {{.Server}}
keyfile {{.Server}}
require_certificate true
use_identity_as_username false
allow_anonymous false
set_tcp_nodelay true
plugin {{.Plugin}}
plugin_opt_config_file {{.Dynsec}}
`))

var mainTemplate = template.Must(template.New("mosquitto.conf").Parse(`# A complete configuration for a broker of its own: mosquitto -c {{.Main}}
# To use the system's broker instead, include {{.Snippet}} in its configuration and set broker.pid_file in bridge.yaml.
{{if .PIDFile}}pid_file {{.PIDFile}}
{{end}}{{if .User}}user {{.User}}
{{end}}include_dir {{.SnippetDir}}
`))

// mosquittoConf is what the templates take. Paths are absolute; Device and Control are "PORT" or "PORT ADDRESS".
type mosquittoConf struct {
	Device, Control, Bundle, Server, ACL, ControlTrust, Plugin, Dynsec string
	Main, Snippet, SnippetDir, PIDFile, User                           string
}

func (c mosquittoConf) render(t *template.Template) ([]byte, error) {
	var b bytes.Buffer
	err := t.Execute(&b, c)
	return b.Bytes(), err
}

// listenLine turns ":8883" or "127.0.0.1:8884" into mosquitto's words, and says how to reach it from here.
func listenLine(address string) (line, reach string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", err
	}
	if ip := net.ParseIP(host); host == "" {
		return port, net.JoinHostPort("127.0.0.1", port), nil
	} else if ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.To4() == nil {
			host = "::1"
		}
		return port + " " + ip.String(), net.JoinHostPort(host, port), nil
	}
	return port + " " + host, net.JoinHostPort(host, port), nil
}

// dynamicSecurity is the plugin's file: one client, one role that may talk to the plugin and do nothing else, nothing by default.
func dynamicSecurity(user, password string) ([]byte, error) {
	const iterations = 1000 // the password has 256 bits; the broker has one thread
	salt := make([]byte, 12)
	rand.Read(salt)
	hash, err := pbkdf2.Key(sha512.New, password, salt, iterations, 64)
	if err != nil {
		return nil, err
	}
	acl := func(kind, topic string) map[string]any {
		return map[string]any{"acltype": kind, "topic": topic, "allow": true}
	}
	return json.MarshalIndent(map[string]any{
		"clients": []any{map[string]any{
			"username": user, "textName": "broker-bridge", "iterations": iterations,
			"password": base64.StdEncoding.EncodeToString(hash), "salt": base64.StdEncoding.EncodeToString(salt),
			"roles": []any{map[string]any{"rolename": user}},
		}},
		"roles": []any{map[string]any{"rolename": user, "acls": []any{
			acl("publishClientSend", controlTopic), acl("subscribeLiteral", controlAnswer), acl("publishClientReceive", controlAnswer),
		}}},
		"defaultACLAccess": map[string]bool{"publishClientSend": false, "publishClientReceive": false, "subscribe": false, "unsubscribe": true},
	}, "", "\t")
}

func newPassword() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// packagedPIDFile is where the system's own broker puts its pid file, if out lies in that broker's configuration directory.
func packagedPIDFile(out string) string {
	const dir = "/etc/mosquitto"
	if rel, err := filepath.Rel(dir, out); err != nil || rel == ".." || len(rel) > 2 && rel[:3] == "../" {
		return ""
	}
	conf, err := readMosquittoConf(filepath.Join(dir, "mosquitto.conf"))
	if err != nil {
		return ""
	}
	return conf.global["pid_file"].value
}
