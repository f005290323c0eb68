// The configuration file: unknown keys, wrong values, and all problems at once.

package bridge

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/testpki"
)

const sampleConfig = "../../configs/broker-bridge.yaml"

func TestSampleConfigurationLoads(t *testing.T) {
	t.Parallel()
	c, err := Load(sampleConfig)
	if err != nil {
		t.Fatal(err)
	}
	if c.MetricsListen != "127.0.0.1:9102" || time.Duration(c.Poll) != 30*time.Second || c.Broker.Name != c.Broker.Hosts[0] {
		t.Errorf("%+v", c)
	}
}

func TestConfigurationRefused(t *testing.T) {
	t.Parallel()
	good := `server: https://est.example.com:8443
trust: t.pem
identity: i
state: s
broker: {hosts: [h.example.com], bundle: b, acl_file: a, pid_file: p, control_password_file: c, listener: "127.0.0.1:8883", control: "127.0.0.1:8884"}
`
	dir := t.TempDir()
	load := func(text string) error {
		_, err := Load(testpki.WriteFile(t, filepath.Join(dir, "bridge.yaml"), []byte(text)))
		return err
	}
	if err := load(good); err != nil {
		t.Fatal(err)
	}
	for want, text := range map[string]string{
		"colour":                 good + "colour: red\n",
		"server:":                strings.Replace(good, "https", "http", 1),
		"trust: missing":         strings.Replace(good, "trust: t.pem", "", 1),
		"broker.bundle: missing": strings.Replace(good, "bundle: b, ", "", 1),
		"poll:":                  good + "poll: 2m\n",
		"line 6":                 good + "poll: fast\n",
		"prove_every:":           good + "prove_every: 10ms\n",
		"acl.topics:":            good + "acl: {topics: [\"delete everything\"]}\n",
		"broker.kind":            strings.Replace(good, "broker: {", "broker: {kind: emqx, ", 1),
		"broker.listener":        strings.Replace(good, "127.0.0.1:8883", "8883", 1),
		"metrics_listen":         good + "metrics_listen: nine\n",
	} {
		if err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	err := load(strings.Replace(strings.Replace(good, "trust: t.pem", "", 1), "state: s", "", 1))
	if err == nil || !strings.Contains(err.Error(), "trust: missing") || !strings.Contains(err.Error(), "state: missing") {
		t.Errorf("not all problems at once: %v", err)
	}
}
