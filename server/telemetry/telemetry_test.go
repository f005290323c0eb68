package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func get(m *Metrics, checks Checks, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	m.Handler(checks).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func wantLines(t *testing.T, page string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
}

var outcomes = []Outcome{{"200", ReasonOK}, {"401", "not_authenticated"}}

func TestSeriesStartAtZero(t *testing.T) {
	t.Parallel()
	m := New(outcomes)
	m.Label("default", "iot-device")
	m.Label("default", "iot-device")
	page := get(m, Checks{}, "/metrics").Body.String()
	wantLines(t, page,
		`est_requests_total{label="default",operation="simpleenroll",reason="ok",status="200"} 0`,
		`est_requests_total{label="unknown",operation="cacerts",reason="not_authenticated",status="401"} 0`,
		`est_certificates_issued_total{label="default",profile="iot-device",requester="birth"} 0`,
		`est_certificates_revoked_total{reason="keyCompromise"} 0`,
		`est_issuance_refused_total{label="default",reason="not_authenticated"} 0`,
		`est_request_duration_seconds_count{operation="simpleenroll"} 0`,
	)
	if strings.Contains(page, `est_issuance_refused_total{label="default",reason="ok"}`) {
		t.Error("a refusal with the reason ok")
	}
}

func TestRecord(t *testing.T) {
	t.Parallel()
	m := New(outcomes)
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	good := Request{ID: "1", Operation: "simpleenroll", Label: "default", Profile: "iot-device", Status: 200, Reason: ReasonOK,
		Requester: "code", Device: "SN-1", Serial: "01ab", Duration: 20 * time.Millisecond}
	again := good
	again.Redelivered = true
	refused := Request{ID: "2", Operation: "simplereenroll", Label: "default", Status: 401, Reason: "not_authenticated", Err: errors.New("line\nbreak")}
	broken := Request{ID: "3", Operation: "cacerts", Label: "default", Status: 500, Reason: "internal_error"}
	for _, r := range []Request{good, again, refused, broken} {
		m.Record(context.Background(), log, r)
	}
	wantLines(t, get(m, Checks{}, "/metrics").Body.String(),
		`est_requests_total{label="default",operation="simpleenroll",reason="ok",status="200"} 2`,
		`est_certificates_issued_total{label="default",profile="iot-device",requester="code"} 1`,
		`est_issuance_refused_total{label="default",reason="not_authenticated"} 1`,
		`est_requests_total{label="default",operation="cacerts",reason="internal_error",status="500"} 1`,
		`est_request_duration_seconds_bucket{operation="simpleenroll",le="0.025"} 2`,
	)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d records for 4 requests:\n%s", len(lines), out.String())
	}
	for i, level := range []string{"INFO", "INFO", "WARN", "ERROR"} {
		var record map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &record); err != nil || record["level"] != level {
			t.Errorf("record %d: %v %v", i, record, err)
		}
	}
}

func TestState(t *testing.T) {
	t.Parallel()
	at := time.Unix(1800000000, 0)
	m := New(outcomes)
	failing := false
	m.Watch(slog.New(slog.DiscardHandler), func(context.Context) (State, error) {
		if failing {
			return State{}, errors.New("no database")
		}
		return State{
			CAs: []CAState{
				{Name: "devices", State: "retiring", NotAfter: at, CRLNumber: 7, ThisUpdate: at, NextUpdate: at.Add(time.Hour), CRLEntries: 3},
				{Name: "waiting"},
			},
			Use:          map[string]time.Time{"est-server": at},
			Certificates: map[string]int{"issued": 5},
			BridgeLag:    map[string]time.Duration{"mqtt.example.com": 1500 * time.Millisecond},
		}, nil
	})
	page := get(m, Checks{}, "/metrics").Body.String()
	wantLines(t, page,
		`est_ca_certificate_expiry_timestamp_seconds{ca="devices"} 1.8e+09`, `est_crl_number{ca="devices"} 7`, `est_ca_state{ca="devices",state="retiring"} 1`,
		`est_crl_next_update_timestamp_seconds{ca="devices"} 1.8000036e+09`, `est_crl_revoked_certificates{ca="devices"} 3`,
		`est_certificate_expiry_timestamp_seconds{use="est-server"} 1.8e+09`, `est_device_certificates{state="issued"} 5`,
		`est_device_certificates{state="revoked"} 0`, `est_device_certificates_expiring{within="30d"} 0`, `est_enrollment_codes{state="active"} 0`,
		`est_bridge_lag_seconds{bridge="mqtt.example.com"} 1.5`, `est_state_read_success 1`,
	)
	if strings.Contains(page, `ca="waiting"`) {
		t.Error("series of a CA that has no certificate")
	}
	failing = true
	page = get(m, Checks{}, "/metrics").Body.String()
	wantLines(t, page, `est_state_read_success 0`)
	if strings.Contains(page, "est_crl_number{") {
		t.Error("gauges of a state that could not be read")
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	m := New(outcomes)
	sick := Checks{
		Alive: func(context.Context) error { return errors.New("storage has failed") },
		Ready: func(context.Context) error { return errors.New("no CA is active") },
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if w := get(m, Checks{}, path); w.Code != http.StatusOK || w.Body.String() != "ok\n" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		if w := get(m, sick, path); w.Code != http.StatusServiceUnavailable || len(w.Body.String()) < 5 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := get(m, Checks{}, "/debug/pprof/"); w.Code != http.StatusNotFound {
		t.Errorf("pprof: %d", w.Code)
	}
}
