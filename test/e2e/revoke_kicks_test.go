// Revocation reaches a live session within a second, measured from the start of the operator's command to the end of the connection.

package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

// cutWithin is the promise of the broker's end of a revocation.
const cutWithin = time.Second

const telemetryTopic = "v1/devices/me/telemetry"

func TestRevocationEndsALiveSession(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{})
	witness := b.witness(t, "-t", "#")
	other := enrollDevice(t, s, "other")
	bystander := b.mustConnect(t, other)
	kicked, refused := "bridge_revocation_to_kicked_seconds", "bridge_revocation_to_refused_seconds"
	if n := sample(t, b.metrics, kicked+"_count"); n != 0 {
		t.Fatalf("%s_count is %v before anything happened", kicked, n)
	}
	if out := b.sclient(t, other, b.devices, "-tls1_2"); !strings.Contains(out, "Verify return code: 0 (ok)") || strings.Contains(out, "alert") {
		t.Fatalf("openssl and a good certificate:\n%s", out)
	}

	ways := []func(device, serial string) []string{
		func(_, serial string) []string {
			return []string{"cert", "revoke", serial, "--reason", "keyCompromise"}
		},
		func(device, _ string) []string {
			return []string{"device", "revoke", device, "--reason", "privilegeWithdrawn"}
		},
		func(_, serial string) []string {
			return []string{"cert", "revoke", serial, "--reason", "certificateHold"}
		},
		func(device, _ string) []string { return []string{"device", "remove", device} },
	}
	for n, way := range ways {
		id := "victim-" + strconv.Itoa(n)
		dir := enrollDevice(t, s, id)
		victim, second := b.mustConnect(t, dir), b.mustConnect(t, dir)
		command := way(id, certificates(t, s, "--device", id)[0].Serial)
		began := time.Now()
		s.MustCLI(t, command...)
		took := max(victim.waitEnd(t, began), second.waitEnd(t, began))
		t.Logf("%s %s: both sessions ended after %v", command[0], command[1], took)
		if took >= cutWithin {
			t.Errorf("%s %s: sessions ended after %v, want less than %v", command[0], command[1], took, cutWithin)
		}
		if _, err := b.connect(t, dir, tls.VersionTLS12); alertOf(err) != 44 {
			t.Errorf("%s %s: reconnection: %v, want alert 44", command[0], command[1], err)
		}
		if _, err := b.connect(t, dir, tls.VersionTLS13); err == nil { // who writes first may see a reset instead of the alert
			t.Errorf("%s %s: reconnected", command[0], command[1])
		}
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			if out := b.sclient(t, dir, b.devices, version, "-ign_eof"); !strings.Contains(out, "SSL alert number 44") {
				t.Errorf("%s %s: openssl %s: %s", command[0], command[1], version, out)
			}
		}
	}
	count := float64(len(ways))
	harness.Eventually(t, patience, kicked+" to count every revocation", func() bool { return sample(t, b.metrics, kicked+"_count") == count })
	if n := sample(t, b.metrics, refused+"_count"); n != count {
		t.Errorf("%s_count is %v, want %v", refused, n, count)
	}
	if n := sample(t, b.metrics, kicked+`_bucket{le="1"}`); n != count {
		t.Errorf("%v of %v revocations reached the session within a second, says the bridge", n, count)
	}
	if n := sample(t, b.metrics, `bridge_kicks_total{result="done"}`); n != count {
		t.Errorf("bridge_kicks_total is %v, want %v", n, count)
	}
	if !bystander.alive() {
		t.Error("the session of a device that nobody revoked was ended")
	}
	b.publishUntilSeen(t, witness, other, telemetryTopic, "untouched")
}

// sample is the value of one series ("NAME" or "NAME{LABELS}") on a metrics page; -1 when it is not there.
func sample(t *testing.T, address, series string) float64 {
	t.Helper()
	for line := range strings.Lines(string(get(t, "http://"+address+"/metrics"))) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), series+" "); ok {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return value
		}
	}
	return -1
}

// TestHeldCertificateComesBack: certificateHold is the one reason that can be taken back, and the broker follows both ways.
func TestHeldCertificateComesBack(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{})
	witness := b.witness(t, "-t", "#")
	dir := enrollDevice(t, s, "held")
	live := b.mustConnect(t, dir)
	serial := certificates(t, s, "--device", "held")[0].Serial
	s.MustCLI(t, "cert", "revoke", serial, "--reason", "certificateHold")
	live.waitEnd(t, time.Now())
	if _, err := b.connect(t, dir, tls.VersionTLS12); alertOf(err) != 44 {
		t.Errorf("a held certificate: %v, want alert 44", err)
	}
	s.MustCLI(t, "cert", "unhold", serial)
	b.publishUntilSeen(t, witness, dir, telemetryTopic, "released")
}

// TestRevokedDeviceAtEST: EST refuses at once, on a connection that was open before as well, with every credential that the device has.
func TestRevokedDeviceAtEST(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	factory := factory(t, s)
	for _, how := range []string{"cert", "device"} {
		id := "SN-" + how
		birth := factory.Birth(t, id)
		dir := filepath.Join(t.TempDir(), "device")
		agentEnroll := append([]string{"enroll", "--server", s.URL(), "--trust", s.Trust(), "--id", id, "--dir"}, dir)
		credential := birthFlags(t, birth)
		harness.MustRun(t, harness.Binary(t, "estclient-example"), append(agentEnroll, credential...)...)
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "bundle.pem"), filepath.Join(dir, "bundle.pem"))
		if err != nil {
			t.Fatal(err)
		}
		open := s.HTTP(t, pair)
		open.Transport.(*http.Transport).DisableKeepAlives = false
		defer open.CloseIdleConnections()
		if status, reused := post(t, open, s, "simplereenroll", id); status != http.StatusOK || reused {
			t.Fatalf("%s: renewal before the revocation: %d, reused connection %v", how, status, reused)
		}
		if how == "cert" {
			for _, c := range certificates(t, s, "--device", id) {
				s.MustCLI(t, "cert", "revoke", c.Serial, "--reason", "keyCompromise")
			}
		} else {
			s.MustCLI(t, "device", "revoke", id, "--reason", "keyCompromise")
		}
		for _, operation := range []string{"simplereenroll", "simpleenroll"} {
			status, reused := post(t, open, s, operation, id)
			if status != http.StatusUnauthorized || !reused {
				t.Errorf("%s revoked, %s on the open connection: %d, reused %v, want 401 on the same connection", how, operation, status, reused)
			}
			if status, _ := post(t, s.HTTP(t, pair), s, operation, id); status != http.StatusUnauthorized {
				t.Errorf("%s revoked, %s on a new connection: %d, want 401", how, operation, status)
			}
		}
		for _, c := range certificates(t, s, "--device", id) {
			if c.State != "revoked" {
				t.Errorf("%s revoked: certificate %s is %s", how, c.Serial, c.State)
			}
		}
		// The birth certificate has been used, and with the device revoked it would not count anyway.
		second := append([]string{"enroll", "--server", s.URL(), "--trust", s.Trust(), "--id", id, "--dir", filepath.Join(t.TempDir(), "again")}, credential...)
		if r := harness.Run(t, harness.Binary(t, "estclient-example"), second...); r.Code != 1 || !strings.Contains(r.Stderr, "401") {
			t.Errorf("%s revoked: the birth certificate enrolls again: exit code %d\n%s", how, r.Code, r.Output())
		}
	}
}

// post sends a CSR with a new key, and says whether an open connection was used.
func post(t *testing.T, client *http.Client, s *harness.Server, operation, cn string) (status int, reused bool) {
	t.Helper()
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }}
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), cn, nil)
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, s.URL()+"/.well-known/est/"+operation, base64Body(csr))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	answer, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, reused
}

// TestReissueReadmitsOnce: a revoked device is put out of broker and server; after `device reissue` it is back, with the new code or its birth
// certificate, once.
func TestReissueReadmitsOnce(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{})
	witness := b.witness(t, "-t", "#")
	factory := factory(t, s)
	client := harness.Binary(t, "estclient-example")

	type device struct {
		id, dir    string
		credential []string
		agent      *harness.Process
	}
	devices := []*device{
		{id: "coded", credential: []string{"--code-file", s.CodeFile(t, "coded")}},
		{id: "born", credential: birthFlags(t, factory.Birth(t, "born"))},
	}
	for _, d := range devices {
		d.dir = filepath.Join(t.TempDir(), d.id)
		d.agent = b.agent(t, d.id, d.dir, telemetryTopic, d.credential...)
		waitOutput(t, d.agent, "telemetry published")
		s.MustCLI(t, "device", "revoke", d.id, "--reason", "keyCompromise")
		waitOutput(t, d.agent, "connection to the broker lost")
		waitOutput(t, d.agent, "alert 44")
	}
	old := serials(witness, telemetryTopic)
	if len(old) != 2 {
		t.Fatalf("telemetry of %v, want of two certificates", old)
	}
	enroll := func(d *device, dir string, credential []string) harness.Result {
		return harness.Run(t, client, append([]string{"enroll", "--server", s.URL(), "--trust", s.Trust(), "--id", d.id, "--dir", dir}, credential...)...)
	}
	for _, d := range devices {
		if r := enroll(d, filepath.Join(t.TempDir(), "early"), d.credential); r.Code == 0 {
			t.Fatalf("%s enrolls again although it is revoked", d.id)
		}
		fresh := filepath.Join(t.TempDir(), "code")
		s.MustCLI(t, "device", "reissue", d.id, "--out", fresh)
		if d.id == "coded" {
			if r := enroll(d, filepath.Join(t.TempDir(), "old-code"), d.credential); r.Code == 0 {
				t.Errorf("%s: the code from before serves again", d.id)
			}
			d.credential = []string{"--code-file", fresh}
		}
		// The agent runs on: it finds the new pair in its directory when it next tries the broker.
		if r := enroll(d, d.dir, d.credential); r.Code != 0 {
			t.Fatalf("%s, reissued, does not enroll: %s", d.id, r.Output())
		}
		if r := enroll(d, filepath.Join(t.TempDir(), "once-more"), d.credential); r.Code != 1 || !strings.Contains(r.Stderr, "401") {
			t.Errorf("%s enrolls twice after one reissue: exit code %d\n%s", d.id, r.Code, r.Output())
		}
	}
	harness.Eventually(t, 90*time.Second, "telemetry of two more certificates", func() bool { return len(serials(witness, telemetryTopic)) == 4 })
	for _, d := range devices {
		states := map[string]int{}
		for _, c := range certificates(t, s, "--device", d.id) {
			states[c.State]++
		}
		if fmt.Sprint(states) != "map[issued:1 revoked:1]" {
			t.Errorf("certificates of %s: %v", d.id, states)
		}
	}
}
