// What the configuration file accepts, and how it says what is wrong.

package config

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSampleIsTheDefaults(t *testing.T) {
	t.Parallel()
	sample, err := os.ReadFile("../../configs/est-server.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(sample)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	if len(got.Hosts) != 0 || len(got.ReservedIDs) != 0 {
		t.Errorf("the sample names hosts or ids: %+v", got)
	}
	got.Hosts, got.ReservedIDs, want.Hosts, want.ReservedIDs = nil, nil, nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the sample is\n%+v, the defaults are\n%+v", got, want)
	}
}

// Every key of File stands in the sample: the sample is the manual.
func TestSampleNamesEveryKey(t *testing.T) {
	t.Parallel()
	sample, err := os.ReadFile("../../configs/est-server.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(v reflect.Type, indent string)
	walk = func(v reflect.Type, indent string) {
		for i := range v.NumField() {
			key := v.Field(i).Tag.Get("yaml")
			if !strings.Contains(string(sample), "\n"+indent+key+":") {
				t.Errorf("the sample lacks %s%s", indent, key)
			}
			if v.Field(i).Type.Kind() == reflect.Struct {
				walk(v.Field(i).Type, indent+"  ")
			}
		}
	}
	walk(reflect.TypeFor[File](), "")
}

func TestParseValues(t *testing.T) {
	t.Parallel()
	s, err := Parse([]byte(`
hosts: [est.example.com, 192.0.2.7, "2001:db8::7"]
public_url: http://pki.example.com:8080/
listen: {est: "127.0.0.1:0", metrics: "[::1]:9101"}
database: {url_file: /etc/natal/url}
codes: {expires: 12h}
reserved_ids: [iotagent]
log: {level: debug, format: json}
`))
	if err != nil {
		t.Fatal(err)
	}
	if s.PublicURL != "http://pki.example.com:8080" || s.ESTListen != "127.0.0.1:0" || s.PublicListen != ":8080" || s.MetricsListen != "[::1]:9101" ||
		s.CodeExpires != 12*time.Hour || s.LogLevel != "debug" || len(s.Hosts) != 3 {
		t.Errorf("read %+v", s)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ content, want string }{
		"unknown key":          {"colour: red", "colour: line 1: unknown key"},
		"unknown key below":    {"listen:\n  est: :1\n  eest: :2", "listen.eest: line 3: unknown key"},
		"key twice":            {"public_url: http://a\npublic_url: http://b", "public_url: line 2: given twice"},
		"list for a string":    {"public_url: [a]", "public_url: line 1: should be a string"},
		"string for a list":    {"hosts: a", "hosts: line 1: should be a list of strings"},
		"text for a number":    {"limits: {connections: many}", "limits.connections: line 1: should be a whole number"},
		"fraction":             {"limits: {connections: 1.5}", "limits.connections: line 1: should be a whole number"},
		"scalar for a mapping": {"listen: 8443", "listen: line 1: should be a mapping of keys"},
		"list at the top":      {"- a", "the file: line 1: should be a mapping of keys"},
		"not YAML":             {"a: [", "not YAML"},
		"two documents":        {"hosts: []\n---\nhosts: []", "more than one YAML document"},
		"port without host":    {`listen: {est: "8443"}`, `listen.est: "8443" is not HOST:PORT`},
		"port too large":       {`listen: {est: ":65536"}`, "listen.est"},
		"port by name":         {`listen: {est: ":https"}`, "listen.est"},
		"host with a space":    {`listen: {admin: "a b:1"}`, "listen.admin"},
		"host name":            {"hosts: [a_b]", "hosts[0]"},
		"second host name":     {"hosts: [a, '*.example.com']", "hosts[1]"},
		"https":                {"public_url: https://a", "must begin with http://"},
		"no scheme":            {"public_url: pki.example.com", "public_url"},
		"query":                {"public_url: http://a/?x=1", "public_url"},
		"password in URL":      {"public_url: http://u:p@a/", "public_url"},
		"duration":             {"codes: {expires: 30}", `codes.expires: "30" is not a duration`},
		"too short":            {"codes: {expires: 1s}", "codes.expires: 1s is not from 1m to 365d"},
		"too long":             {"codes: {expires: 366d}", "codes.expires"},
		"negative days":        {"codes: {expires: -1d}", "codes.expires"},
		"few connections":      {"limits: {connections: 1}", "limits.connections"},
		"log level":            {"log: {level: loud}", `log.level: "loud" is not one of info, debug, warn, error`},
		"id":                   {"reserved_ids: ['a b']", "reserved_ids[0]"},
		"relative directory":   {"publish_dir: mirror", "publish_dir"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse([]byte(c.content))
			if err == nil {
				t.Fatalf("accepted %q", c.content)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

func TestParseReportsEveryProblem(t *testing.T) {
	t.Parallel()
	_, err := Parse([]byte("hosts: ['a b']\npublic_url: ftp://a\nlog: {level: loud, format: xml}\ncodes: {expires: never}"))
	problems, ok := err.(Problems)
	if !ok || len(problems) != 5 {
		t.Fatalf("got %d problems, want 5: %v", len(problems), err)
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"30d": 30 * Day, "0d": 0, "12h": 12 * time.Hour, "1h30m": 90 * time.Minute, "90s": 90 * time.Second, "15m": 15 * time.Minute,
	} {
		d, err := ParseDuration(text)
		if err != nil || d != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", text, d, err, want)
		}
		if again, err := ParseDuration(FormatDuration(want)); err != nil || again != want {
			t.Errorf("FormatDuration(%v) = %q, which reads back as %v, %v", want, FormatDuration(want), again, err)
		}
	}
	for _, text := range []string{"", "d", "1.5d", "30 d", "one", "1y", "99999999d", "5"} {
		if d, err := ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", text, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("hosts: [a]\nlisten: {est: ':1'}"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("hosts: !!binary aaaa"))
	f.Fuzz(func(t *testing.T, content []byte) {
		s, err := Parse(content)
		if err == nil && (s.ESTListen == "" || s.CodeExpires <= 0) {
			t.Errorf("accepted %q as %+v", content, s)
		}
	})
}
