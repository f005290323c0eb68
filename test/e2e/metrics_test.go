// The series of server and bridge: there with 0 before anything happens, and each moved by what it counts; nothing of a device in them.

package e2e

import (
	"crypto"
	"crypto/tls"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

// moved is one series: what it shows before the test's traffic, and by how much that moves it.
type moved struct {
	series string
	start  start
	change change
	by     float64
}

type start int

const (
	zero   start = iota
	value        // the broker's setup has moved it already
	absent       // comes with its first event: what strangers type makes no series beforehand
)

type change int

const (
	exactly change = iota
	atLeast        // the work of the bridge and of the agents' own probes counts here too
)

var serverSeries = []moved{
	{`est_requests_total{label="default",operation="cacerts",reason="ok",status="200"}`, value, atLeast, 3},
	{`est_requests_total{label="default",operation="csrattrs",reason="ok",status="200"}`, value, atLeast, 3},
	{`est_requests_total{label="default",operation="simpleenroll",reason="ok",status="200"}`, zero, exactly, 3},
	{`est_requests_total{label="default",operation="simpleenroll",reason="not_authenticated",status="401"}`, zero, atLeast, 2},
	{`est_requests_total{label="default",operation="simplereenroll",reason="ok",status="200"}`, zero, exactly, 1},
	{`est_requests_total{label="unknown",operation="simpleenroll",reason="unknown_label",status="404"}`, absent, exactly, 1},
	{`est_request_duration_seconds_count{operation="simpleenroll"}`, value, atLeast, 7},
	{`est_request_duration_seconds_count{operation="simplereenroll"}`, value, atLeast, 1},
	{`est_certificates_issued_total{label="default",profile="iot-device",requester="code"}`, zero, exactly, 1}, // the repeat is not counted
	{`est_certificates_issued_total{label="default",profile="iot-device",requester="birth"}`, zero, exactly, 1},
	{`est_certificates_issued_total{label="default",profile="iot-device",requester="operational"}`, zero, exactly, 1},
	{`est_certificates_issued_total{label="bridge",profile="bridge",requester="code"}`, value, exactly, 0},
	{`est_certificates_issued_total{label="mqtt-server",profile="mqtt-server",requester="bridge"}`, value, exactly, 0},
	{`est_certificates_revoked_total{reason="keyCompromise"}`, zero, exactly, 2},
	{`est_certificates_revoked_total{reason="superseded"}`, zero, exactly, 0},
	{`est_issuance_refused_total{label="default",reason="not_authenticated"}`, zero, exactly, 1}, // a challenge is no refusal
	{`est_issuance_refused_total{label="default",reason="bad_key"}`, zero, exactly, 1},
	{`est_enrollment_codes{state="active"}`, zero, exactly, 1},
	{`est_enrollment_codes{state="used"}`, value, exactly, 1},
	{`est_enrollment_codes{state="revoked"}`, value, exactly, 0},
	{`est_device_certificates{state="issued"}`, zero, exactly, 1},
	{`est_device_certificates{state="revoked"}`, zero, exactly, 2},
	{`est_device_certificates{state="intended"}`, zero, exactly, 0},
	{`est_device_certificates{state="abandoned"}`, zero, exactly, 0},
	{`est_device_certificates_expiring{within="30d"}`, zero, exactly, 0},
	{`est_crl_number{ca="devices"}`, value, atLeast, 1},
	{`est_crl_number{ca="management"}`, value, exactly, 0},
	{`est_crl_revoked_certificates{ca="devices"}`, value, exactly, 2},
	{`est_crl_this_update_timestamp_seconds{ca="devices"}`, value, atLeast, 0},
	{`est_crl_next_update_timestamp_seconds{ca="devices"}`, value, atLeast, 0},
	{`est_ca_certificate_expiry_timestamp_seconds{ca="root"}`, value, exactly, 0},
	{`est_ca_certificate_expiry_timestamp_seconds{ca="devices"}`, value, exactly, 0},
	{`est_certificate_expiry_timestamp_seconds{use="est-server"}`, value, exactly, 0},
	{`est_bridge_lag_seconds{bridge="localhost"}`, value, atLeast, 0},
	{`est_state_read_success`, value, exactly, 0},
}

var bridgeSeries = []moved{
	{`bridge_source_last_success_timestamp_seconds`, value, atLeast, 0},
	{`bridge_set_seq{stage="fetched"}`, value, atLeast, 1},
	{`bridge_set_seq{stage="published"}`, value, atLeast, 1},
	{`bridge_set_seq{stage="verified"}`, value, atLeast, 1},
	{`bridge_crl_number{issuer="devices"}`, value, atLeast, 1},
	{`bridge_crl_next_update_timestamp_seconds{issuer="devices"}`, value, atLeast, 0},
	{`bridge_crl_entries{issuer="devices",shard="0"}`, value, exactly, 2},
	{`bridge_validation_failures_total{code="device_id"}`, zero, exactly, 0},
	{`bridge_reload_seconds_count`, value, atLeast, 1},
	{`bridge_fail_open`, zero, exactly, 0},
	{`bridge_rollbacks_total`, zero, exactly, 0},
	{`bridge_kick_seconds_count`, zero, atLeast, 1},
	{`bridge_kicks_total{result="done"}`, zero, atLeast, 1},
	{`bridge_kicks_total{result="error"}`, zero, exactly, 0},
	{`bridge_kicks_pending`, zero, exactly, 0},
	{`bridge_revocation_to_refused_seconds_count`, zero, atLeast, 1},
	{`bridge_revocation_to_kicked_seconds_count`, zero, atLeast, 1},
	{`bridge_generations_live_estimate`, value, atLeast, 1},
	{`bridge_pending_approval`, zero, exactly, 0},
	{`bridge_broker_up`, value, exactly, 0},
	{`bridge_devices`, zero, exactly, 2}, // three came, one was revoked
	{`bridge_certificate_expiry_timestamp_seconds{use="bridge"}`, value, exactly, 0},
	{`bridge_certificate_expiry_timestamp_seconds{use="broker"}`, value, exactly, 0},
}

func TestMetricsMoveWithTraffic(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "promtool")
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "device", "remove", "device-1")
	b := startBroker(t, s, brokerOptions{})
	factory := factory(t, s)
	before := map[string]float64{}
	for address, list := range map[string][]moved{s.Metrics: serverSeries, b.metrics: bridgeSeries} {
		for _, m := range list {
			before[m.series] = sample(t, address, m.series)
			if n := before[m.series]; n < 0 && m.start != absent || n > 0 && m.start == zero {
				t.Errorf("%s is %v before anything has happened (-1: it is not there)", m.series, n)
			}
		}
	}

	codes := trafficForMetrics(t, s, factory)
	for address, list := range map[string][]moved{s.Metrics: serverSeries, b.metrics: bridgeSeries} {
		for _, m := range list {
			want := max(before[m.series], 0) + m.by
			harness.Eventually(t, patience, m.series+" to move", func() bool {
				now := sample(t, address, m.series)
				return now == want || m.change == atLeast && now > want
			})
		}
	}

	secret := append([]string{"SN-coded", "SN-born", "SN-idle"}, codes...)
	for _, c := range certificates(t, s) {
		secret = append(secret, c.Serial)
	}
	for _, address := range []string{s.Metrics, b.metrics} {
		page := string(get(t, "http://"+address+"/metrics"))
		for _, word := range secret {
			if strings.Contains(strings.ToLower(page), strings.ToLower(word)) {
				t.Errorf("/metrics of %s names %q", address, word)
			}
		}
		if r := (harness.Command{Path: harness.Program(t, "promtool"), Args: []string{"check", "metrics"}, Stdin: page}).Run(t); r.Code != 0 {
			t.Errorf("promtool check metrics on %s: %s", address, r.Output())
		}
	}
}

// trafficForMetrics is what the lists above count. It returns the codes.
func trafficForMetrics(t *testing.T, s *harness.Server, factory *testpki.Authority) []string {
	t.Helper()
	agent := harness.Binary(t, "estclient-example")
	common := []string{"--server", s.URL(), "--trust", s.Trust(), "--dir"}
	coded, born := filepath.Join(t.TempDir(), "coded"), filepath.Join(t.TempDir(), "born")
	codeFile := s.CodeFile(t, "SN-coded")
	idle := strings.TrimSpace(readText(t, s.CodeFile(t, "SN-idle")))
	enrollInto(t, s, coded, "SN-coded", codeFile)
	repeat(t, s, coded, "SN-coded", strings.TrimSpace(readText(t, codeFile)))
	harness.MustRun(t, agent, append(append([]string{"enroll"}, append(common, born)...), birthFlags(t, factory.Birth(t, "SN-born"))...)...)
	harness.MustRun(t, agent, append([]string{"reenroll"}, append(common, coded)...)...)

	birth := factory.Birth(t, "SN-born")
	if status := enrollStatus(t, s.HTTP(t, birth.TLS()), s, "SN-born", "", ""); status != http.StatusUnauthorized {
		t.Errorf("another birth certificate of SN-born: %d", status)
	}
	weak := testpki.CSR(t, testpki.Key(t, "ec:P-224"), "SN-idle", nil)
	for path, want := range map[string]int{"simpleenroll": http.StatusBadRequest, "no-such-label/simpleenroll": http.StatusNotFound} {
		if status := postCSR(t, s, path, weak, "SN-idle", idle); status != want {
			t.Errorf("%s with a weak key: %d, want %d", path, status, want)
		}
	}
	s.MustCLI(t, "device", "revoke", "SN-coded", "--reason", "keyCompromise")
	return []string{idle, strings.TrimSpace(readText(t, codeFile))}
}

// repeat asks for the device's certificate again, as if the answer had got lost.
func repeat(t *testing.T, s *harness.Server, dir, id, code string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if status := postCSR(t, s, "simpleenroll", testpki.CSR(t, pair.PrivateKey.(crypto.Signer), id, nil), id, code); status != http.StatusOK {
		t.Errorf("the same request again: %d", status)
	}
}

// postCSR posts with a code to "[LABEL/]OPERATION".
func postCSR(t *testing.T, s *harness.Server, path string, csr []byte, user, code string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/.well-known/est/"+path, base64Body(csr))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	req.SetBasicAuth(user, code)
	answer, err := s.HTTP(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}
