// A real Prometheus with the configuration of configs/, moved to free ports: both targets up, the rules loaded, nothing firing, and
// every series that a rule watches there.

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestPrometheusSeesServerAndBridge(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "prometheus", "mosquitto")
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{})
	prometheus := startPrometheus(t, map[string]string{"127.0.0.1:9101": s.Metrics, "127.0.0.1:9102": b.metrics, "scrape_interval: 15s": "scrape_interval: 500ms", "evaluation_interval: 15s": "evaluation_interval: 500ms"})

	harness.Eventually(t, 30*time.Second, "both targets to be up", func() bool {
		up := query(t, prometheus, "up")
		return fmt.Sprint(up) == "[broker-bridge 1 est-server 1]"
	})
	harness.Eventually(t, 20*time.Second, "all rules to be evaluated", func() bool {
		state := string(get(t, prometheus+"/api/v1/rules"))
		return strings.Contains(state, `"health":"ok"`) && !strings.Contains(state, `"health":"unknown"`)
	})
	rules, err := os.ReadFile(filepath.Join(harness.Root(), "configs", "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, line := range strings.Split(string(rules), "\n") {
		if text := strings.TrimSpace(line); strings.HasPrefix(text, "expr:") || strings.HasPrefix(text, "(est_") || strings.HasPrefix(text, "/ (est_") {
			names = append(names, regexp.MustCompile(`\b(est|bridge)_[a-z_]+[a-z]\b`).FindAllString(text, -1)...)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) < 15 {
		t.Fatalf("only %d series found in the rules: %q", len(names), names)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "est_va_") { // of a validation authority: TestAuthorityFromAMirror has one
			continue
		}
		if len(query(t, prometheus, name)) == 0 {
			t.Errorf("a rule watches %s, which neither server nor bridge has", name)
		}
	}
	if firing := query(t, prometheus, `ALERTS{alertstate="firing"}`); len(firing) > 0 {
		t.Errorf("alerts on a fresh installation: %q", firing)
	}
}

// startPrometheus runs Prometheus on the samples with some of their text replaced. It returns its base URL.
func startPrometheus(t *testing.T, replace map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"prometheus.yml", "alerts.yml"} {
		content, err := os.ReadFile(filepath.Join(harness.Root(), "configs", name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(content)
		for from, to := range replace {
			if name == "prometheus.yml" && !strings.Contains(text, from) {
				t.Fatalf("%s: no %q", name, from)
			}
			text = strings.ReplaceAll(text, from, to)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address := harness.FreeAddress(t)
	harness.Command{Path: harness.Program(t, "prometheus"), Dir: dir, Args: []string{"--config.file=prometheus.yml",
		"--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + address}}.Start(t)
	return "http://" + address
}

// query asks Prometheus for an instant vector: "JOB or ALERT VALUE" of each series, sorted; nil while it starts.
func query(t *testing.T, prometheus, expression string) []string {
	t.Helper()
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if json.Unmarshal(get(t, prometheus+"/api/v1/query?query="+url.QueryEscape(expression)), &answer) != nil {
		return nil
	}
	var series []string
	for _, r := range answer.Data.Result {
		series = append(series, fmt.Sprint(r.Metric["alertname"]+r.Metric["job"], " ", r.Value[1]))
	}
	slices.Sort(series)
	return series
}

// get is the body of a page, or nothing while nobody answers.
func get(t *testing.T, page string) []byte {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get(page)
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
