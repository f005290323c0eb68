// Secrets go through every flow, the failing ones included, and are then looked for wherever they must not be: logs, metrics, the audit
// log, the database, arguments and environments of processes. And the files that hold them are closed, whatever the umask.

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/natal-pki/natal/client"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

// secret is a value and what it is called in messages.
type secret struct {
	name  string
	value []byte
}

// shapes are the ways in which a secret could be written.
func (s secret) shapes() [][]byte {
	return [][]byte{s.value, []byte(base64.StdEncoding.EncodeToString(s.value)), []byte(hex.EncodeToString(s.value)), []byte(strings.ToUpper(hex.EncodeToString(s.value)))}
}

// keySecrets are an EC key's scalar, and a line from the middle of its PEM.
func keySecrets(t *testing.T, name, path string) []secret {
	t.Helper()
	text := readText(t, path)
	key, err := client.ParsePrivateKey([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	scalar, err := key.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(text, "PRIVATE KEY-----\n")
	return []secret{{name + ", scalar", scalar}, {name + ", PEM", []byte(strings.Split(body, "\n")[1])}}
}

// place is somewhere to look.
type place struct {
	name    string
	content []byte
}

func (p place) search(t *testing.T, secrets []secret) {
	t.Helper()
	for _, s := range secrets {
		for _, shape := range s.shapes() {
			if at := bytes.Index(p.content, shape); at >= 0 {
				t.Errorf("%s holds %s: %.200q", p.name, s.name, p.content[max(0, at-80):])
				break
			}
		}
	}
}

func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	s.Stop(t)
	config := filepath.Join(s.Data, "config.yaml")
	if err := os.WriteFile(config, []byte(strings.Replace(readText(t, config), "level: info", "level: debug", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	firstLog := s.Output()
	s.Start(t)
	b := startBroker(t, s, brokerOptions{})
	factory := factory(t, s)

	// Devices by code and by birth certificate, renewed, revoked, reissued.
	codeFile := s.CodeFile(t, "SN-coded")
	birth := birthFlags(t, factory.Birth(t, "SN-born"))
	coded, born := filepath.Join(t.TempDir(), "coded"), filepath.Join(t.TempDir(), "born")
	agents := []*harness.Process{b.agent(t, "SN-coded", coded, telemetryTopic, "--code-file", codeFile), b.agent(t, "SN-born", born, telemetryTopic, birth...)}
	for _, a := range agents {
		waitOutput(t, a, "telemetry published")
	}
	secrets := slices.Concat([]secret{
		{"the passphrase", []byte(strings.TrimSpace(readText(t, filepath.Join(s.Data, "passphrase"))))},
		{"a used code", []byte(strings.TrimSpace(readText(t, codeFile)))},
		{"an unused code", []byte(strings.TrimSpace(readText(t, s.CodeFile(t, "SN-idle"))))},
		{"the password of the control listener", []byte(strings.TrimSpace(readText(t, b.path("state/control-password"))))},
	}, keySecrets(t, "a device's key", filepath.Join(coded, "key.pem")), keySecrets(t, "a birth key", birth[3]),
		keySecrets(t, "the bridge's key", b.path("identity/key.pem")), keySecrets(t, "the broker's key", b.path("server.pem")),
		keySecrets(t, "the administrator's key", filepath.Join(s.Data, "admin", "key.pem")))
	harness.MustRun(t, harness.Binary(t, "estclient-example"), "reenroll", "--server", s.URL(), "--dir", coded)
	secrets = append(secrets, keySecrets(t, "a renewed key", filepath.Join(coded, "key.pem"))...)
	s.MustCLI(t, "device", "revoke", "SN-coded", "--reason", "keyCompromise")
	waitOutput(t, agents[0], "alert 44")
	again := filepath.Join(t.TempDir(), "code")
	s.MustCLI(t, "device", "reissue", "SN-coded", "--out", again)
	secrets = append(secrets, secret{"a code of a reissue", []byte(strings.TrimSpace(readText(t, again)))})
	secrets = append(secrets, strangeRequests(t, s, string(secrets[2].value))...)

	places := []place{
		{"the server's log", []byte(firstLog + s.Output())}, {"the bridge's log", []byte(b.bridge.Output() + b.setupOutput)}, {"mosquitto's log", []byte(b.mosquitto.Output())},
		{"the agent's log", []byte(agents[0].Output() + agents[1].Output())}, {"the server's metrics", get(t, "http://"+s.Metrics+"/metrics")},
		{"the bridge's metrics", get(t, "http://"+b.metrics+"/metrics")}, {"the bridge's status", get(t, "http://"+b.metrics+"/status")},
		{"the audit log", []byte(s.MustCLI(t, "audit", "export").Stdout)},
	}
	for _, list := range []string{"ca", "code", "device", "cert", "admin", "label"} {
		places = append(places, place{list + " list", []byte(s.MustCLI(t, list, "list", "--json").Stdout)})
	}
	for name, p := range map[string]*harness.Process{"server": s.Process, "bridge": b.bridge, "agent": agents[0], "other agent": agents[1]} {
		for _, file := range []string{"cmdline", "environ"} {
			places = append(places, place{"/proc/PID/" + file + " of the " + name, []byte(readText(t, fmt.Sprintf("/proc/%d/%s", p.PID(), file)))})
		}
	}
	places = append(places, filesBelow(t, s.Data, "passphrase", "key.pem", "device-1.code", "admin.sock")...)
	// What is there is found: the device's name. (A database may keep it in its log file.)
	for _, name := range []string{"the server's log", "the agent's log", "mosquitto's log", "the audit log", "cert list", "/proc/PID/cmdline of the agent", "est.db"} {
		if !bytes.Contains(bytes.Join(contents(places, name), nil), []byte("SN-coded")) {
			t.Errorf("%s does not hold what must be there", name)
		}
	}
	for _, p := range places {
		p.search(t, secrets)
	}
}

// contents are those of the places whose names begin with prefix.
func contents(places []place, prefix string) [][]byte {
	var all [][]byte
	for _, p := range places {
		if strings.HasPrefix(p.name, prefix) {
			all = append(all, p.content)
		}
	}
	return all
}

// filesBelow are all files of a directory, except those whose purpose is to hold a secret.
func filesBelow(t *testing.T, dir string, except ...string) []place {
	t.Helper()
	var all []place
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || slices.Contains(except, entry.Name()) {
			return err
		}
		content, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all = append(all, place{name, content})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// strangeRequests put secrets where they do not belong. It returns those that it made up.
func strangeRequests(t *testing.T, s *harness.Server, code string) []secret {
	t.Helper()
	guess := "canary-4f1d-guess-of-a-code"
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), "SN-idle", nil)
	est := s.URL() + "/.well-known/est/"
	for _, c := range []struct{ url, header, value string }{
		{est + "simpleenroll", "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("SN-idle:"+guess))},
		{est + "simpleenroll", "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("nobody:"+code))},
		{est + "simplereenroll", "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("SN-idle:"+code))},
		{est + "cacerts-of-" + guess + "/simpleenroll", "Authorization", "Bearer " + guess},
		{est + "simpleenroll", "Authorization", guess},
		{est + "simpleenroll", "Cookie", "code=" + guess},
		{est + "no-such-label/simpleenroll", "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("SN-idle:"+code))},
	} {
		body := base64Body(csr)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/pkcs10")
		req.Header.Set(c.header, c.value)
		answer, err := s.HTTP(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode/100 != 4 || strings.Contains(string(text), guess) || strings.Contains(string(text), code) {
			t.Errorf("%s %s: %d %q, %v", c.url, c.header, answer.StatusCode, text, err)
		}
	}
	pair := base64.StdEncoding.EncodeToString([]byte("SN-idle:" + code))
	return []secret{{"a guess", []byte(guess)}, {"an Authorization header", []byte(pair)}}
}
