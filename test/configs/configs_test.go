// Package configs holds the tests that show the samples in configs/ to whoever reads them for real: Prometheus'
// own checker and systemd's.
package configs

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"filippo.io/age"
	"go.yaml.in/yaml/v3"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func sample(name string) string { return filepath.Join(harness.Root(), "configs", name) }

func TestPrometheusAcceptsItsConfiguration(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "promtool")
	harness.MustRun(t, harness.Program(t, "promtool"), "check", "config", sample("prometheus.yml"))
}

func TestAlertRulesFireAndStaySilent(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "promtool")
	harness.MustRun(t, harness.Program(t, "promtool"), "test", "rules", sample("alerts_test.yml"))
}

// A rule without a test would be found out in the night in which it is needed.
func TestEveryAlertIsSeenFiringAndSilent(t *testing.T) {
	t.Parallel()
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert string }
		}
	}
	var tests struct {
		Tests []struct {
			Cases []struct {
				Alert    string `yaml:"alertname"`
				Expected []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	read(t, "alerts.yml", &rules)
	read(t, "alerts_test.yml", &tests)
	firing, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, c := range test.Cases {
			if len(c.Expected) > 0 {
				firing[c.Alert] = true
			} else {
				silent[c.Alert] = true
			}
		}
	}
	count := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			count++
			if !firing[r.Alert] || !silent[r.Alert] {
				t.Errorf("%s: seen firing %v, seen silent %v", r.Alert, firing[r.Alert], silent[r.Alert])
			}
		}
	}
	if count == 0 {
		t.Error("no rules found")
	}
}

func read(t *testing.T, name string, into any) {
	t.Helper()
	content, err := os.ReadFile(sample(name))
	if err == nil {
		err = yaml.Unmarshal(content, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// worstExposure is the highest score that systemd may give each unit (0 is best, 10 worst).
var worstExposure = map[string]float64{"est-server": 1.5, "est-server-va": 1.5, "broker-bridge": 3.0, "estclient-example": 1.5}

func TestSystemdUnitsAreValidAndHardened(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "systemd-analyze")
	analyze := harness.Program(t, "systemd-analyze")
	for name, worst := range worstExposure {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			unit, err := os.ReadFile(sample("systemd/" + name + ".service"))
			if err != nil {
				t.Fatal(err)
			}
			program := strings.TrimSuffix(name, "-va")
			installed := "ExecStart=/usr/local/bin/" + program + " "
			if !strings.Contains(string(unit), installed) {
				t.Fatalf("no line %q", installed)
			}
			// systemd looks for the program: show it the built one.
			built := strings.Replace(string(unit), installed, "ExecStart="+harness.Binary(t, program)+" ", 1)
			file := filepath.Join(t.TempDir(), name+".service")
			if err := os.WriteFile(file, []byte(built), 0o644); err != nil {
				t.Fatal(err)
			}
			if r := harness.Run(t, analyze, "verify", "--man=no", file); r.Code != 0 || r.Output() != "" {
				t.Errorf("systemd-analyze verify: exit code %d\n%s", r.Code, r.Output())
			}
			r := harness.MustRun(t, analyze, "security", "--no-pager", "--offline=true", file)
			score := regexp.MustCompile(`exposure level for .*: ([0-9.]+) `).FindStringSubmatch(r.Output())
			if score == nil {
				t.Fatalf("no score in:\n%s", r.Output())
			}
			if got, _ := strconv.ParseFloat(score[1], 64); got > worst {
				t.Errorf("exposure %v, at most %v is meant\n%s", got, worst, r.Output())
			}
		})
	}
}

// The daily backup, as systemd would run it: its timer and unit are valid, and the command that stands in it makes a backup that can be read.
func TestBackupUnit(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "systemd-analyze")
	analyze, dir := harness.Program(t, "systemd-analyze"), t.TempDir()
	unit, err := os.ReadFile(sample("systemd/est-server-backup.service"))
	if err != nil {
		t.Fatal(err)
	}
	timer, err := os.ReadFile(sample("systemd/est-server-backup.timer"))
	if err != nil {
		t.Fatal(err)
	}
	server := harness.Binary(t, "est-server")
	testpki.WriteFile(t, filepath.Join(dir, "est-server-backup.timer"), timer)
	file := testpki.WriteFile(t, filepath.Join(dir, "est-server-backup.service"), unit)
	for _, name := range []string{"est-server-backup.service", "est-server-backup.timer"} {
		if r := harness.Run(t, analyze, "verify", "--man=no", filepath.Join(dir, name)); r.Code != 0 || r.Output() != "" {
			t.Errorf("systemd-analyze verify %s: exit code %d\n%s", name, r.Code, r.Output())
		}
	}
	r := harness.MustRun(t, analyze, "security", "--no-pager", "--offline=true", file)
	if score := regexp.MustCompile(`exposure level for .*: ([0-9.]+) `).FindStringSubmatch(r.Output()); score == nil {
		t.Errorf("no score in:\n%s", r.Output())
	} else if got, _ := strconv.ParseFloat(score[1], 64); got > 1.5 {
		t.Errorf("exposure %v, at most 1.5 is meant", got)
	}

	command := regexp.MustCompile(`(?m)^ExecStart=/bin/sh -c '(.*)'$`).FindSubmatch(unit)
	if command == nil {
		t.Fatal("no command in the unit")
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	recipients := testpki.WriteFile(t, filepath.Join(dir, "recipients"), []byte("# operations\n"+identity.Recipient().String()+"\n"))
	key := testpki.WriteFile(t, filepath.Join(dir, "identity"), []byte(identity.String()+"\n"))
	data, pass := filepath.Join(dir, "data"), testpki.WriteFile(t, filepath.Join(dir, "pass"), []byte("only for a test\n"))
	harness.MustRun(t, server, "init", "--data", data, "--passphrase-file", pass, "--host", "127.0.0.1")
	line := strings.NewReplacer("$$", "$", "%%", "%", "/usr/local/bin/est-server", server, "/var/backups/est-server", dir, "/var/lib/est-server", data,
		"/etc/est-server/backup-recipients", recipients).Replace(string(command[1]))
	harness.MustRun(t, "/bin/sh", "-c", line)
	made, err := filepath.Glob(filepath.Join(dir, "20*Z.age"))
	if err != nil || len(made) != 1 {
		t.Fatalf("%v, %v", made, err)
	}
	harness.MustRun(t, server, "backup", made[0], "--verify", "--identity", key)
}
