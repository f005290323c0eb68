// What Prometheus and a supervisor see.

package bridge

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/testpki"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestMetricsAndHealth(t *testing.T) {
	t.Parallel()
	b := &stub{outcomes: asWanted}
	r := bareBridge(t, b)
	_, text := get(t, r.b.Handler(), "/metrics")
	for _, series := range []string{
		`bridge_set_seq{stage="fetched"} 0`, `bridge_set_seq{stage="published"} 0`, `bridge_set_seq{stage="verified"} 0`,
		"bridge_fail_open 0", "bridge_rollbacks_total 0", `bridge_kicks_total{result="done"} 0`, `bridge_kicks_total{result="error"} 0`,
		"bridge_revocation_to_kicked_seconds_count 0", "bridge_revocation_to_refused_seconds_count 0", "bridge_reload_seconds_count 0",
		"bridge_kick_seconds_count 0", "bridge_generations_live_estimate 0", "bridge_pending_approval 0", "bridge_broker_up 0",
		"bridge_source_last_success_timestamp_seconds 0", `bridge_validation_failures_total{code="crl_delta"} 0`,
	} {
		if !strings.Contains(text, series+"\n") {
			t.Errorf("not from the start: %s", series)
		}
	}
	if code, _ := get(t, r.b.Handler(), "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz before the first proof: %d", code)
	}
	if code, _ := get(t, r.b.Handler(), "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	r.step()
	leaf := r.feed.CA("devices").Leaf(t, "dev-1")
	r.feed.Revoke(leaf, "keyCompromise", false)
	r.poll()
	r.step()
	if code, body := get(t, r.b.Handler(), "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz after the proof: %d %s", code, body)
	}
	_, text = get(t, r.b.Handler(), "/metrics")
	for _, series := range []string{"bridge_revocation_to_kicked_seconds_count 1", "bridge_revocation_to_refused_seconds_count 1",
		`bridge_kicks_total{result="done"} 1`, "bridge_broker_up 1", `bridge_crl_entries{issuer="devices",shard="0"} 2`,
		`bridge_verify_result{listener="",probe="revoked:devices"} 1`} {
		if !strings.Contains(text, series+"\n") {
			t.Errorf("after a revocation: no %s", series)
		}
	}
	if _, body := get(t, r.b.Handler(), "/status"); !strings.Contains(body, `"ready":true`) || !strings.Contains(body, `"kicks_pending":0`) {
		t.Errorf("/status: %s", body)
	}
	lint(t, text)
}

// lint asks promtool, if it is there, whether names, units and HELP are as they should be.
func lint(t *testing.T, text string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not installed")
		return
	}
	in, err := os.Open(testpki.WriteFile(t, t.TempDir()+"/metrics", []byte(text)))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		for line := range strings.SplitSeq(string(out), "\n") {
			if strings.HasPrefix(line, "bridge_") {
				t.Error(line)
			}
		}
	}
}
