// Profile files: the shipped ones are valid, and a bad one is refused with the name of the key that is wrong.

package profile_test

import (
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/configs"
)

// shipped returns the shipped profiles by name.
func shipped(t testing.TB) map[string]*profile.Profile {
	t.Helper()
	files, err := configs.Profiles()
	if err != nil {
		t.Fatal(err)
	}
	profiles := map[string]*profile.Profile{}
	for name, source := range files {
		p, err := profile.Parse(source)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if p.YAML() != string(source) || len(p.Hash()) != 64 {
			t.Errorf("%s does not keep its source", name)
		}
		profiles[p.Name()] = p
	}
	return profiles
}

func TestShippedProfiles(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	want := map[string]struct {
		use        string
		validity   time.Duration
		clientAuth bool
		keys       string
	}{
		"iot-device":         {profile.UseBroker, 365 * day, true, "ec:P-256 ec:P-384 rsa:2048 rsa:3072"},
		"iot-device-rsa2048": {profile.UseBroker, 365 * day, true, "rsa:2048"},
		"canary":             {profile.UseBroker, 30 * day, true, "ec:P-256"},
		"birth":              {profile.UseBirth, 9125 * day, true, "ec:P-256 ec:P-384 rsa:2048 rsa:3072"},
		"bridge":             {profile.UseManagement, 365 * day, true, "ec:P-256 ec:P-384"},
		"admin":              {profile.UseManagement, 365 * day, true, "ec:P-256 ec:P-384 rsa:2048 rsa:3072"},
		"mqtt-server":        {profile.UseManagement, 365 * day, false, "ec:P-256 ec:P-384 rsa:2048 rsa:3072"},
		"station":            {profile.UseManagement, 365 * day, true, "ec:P-256 ec:P-384 rsa:2048 rsa:3072"},
		"cfree-compat":       {profile.UseBroker, 730 * day, true, "rsa:2048 rsa:3072 rsa:4096 rsa:6144 rsa:8192"},
		"ocsp-signer":        {profile.UseOCSP, 30 * day, false, "ec:P-256 ec:P-384 rsa:2048 rsa:3072 rsa:4096"},
		"est-server":         {profile.UseManagement, 90 * day, false, "ec:P-256 ec:P-384"},
	}
	profiles := shipped(t)
	for name, p := range profiles {
		w, known := want[name]
		if !known {
			t.Errorf("shipped profile %s has no row here", name)
			continue
		}
		if p.Use() != w.use || p.Validity() != w.validity || p.ClientAuth() != w.clientAuth || strings.Join(p.KeySpecs(), " ") != w.keys {
			t.Errorf("%s: use %s, validity %v, clientAuth %v, keys %v", name, p.Use(), p.Validity(), p.ClientAuth(), p.KeySpecs())
		}
	}
	for name := range want {
		if profiles[name] == nil {
			t.Errorf("profile %s is not shipped", name)
		}
	}
}

const good = `name: good
use: broker
keys: [ec:P-256]
validity: 365d
subject:
  common_name: device
extended_key_usage: [clientAuth]
`

func TestBadProfilesAreRefused(t *testing.T) {
	t.Parallel()
	if _, err := profile.Parse([]byte(good)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for _, tc := range []struct{ name, old, new, want string }{
		{"empty", good, "", "empty"},
		{"no YAML", good, "a: b: c", "not YAML: "},
		{"a list", good, "[1, 2]", "a value of another kind"},
		{"two documents", good, good + "---\n" + good, "one document"},
		{"an unknown key", "use:", "usage: x\nuse:", "usage"},
		{"a key twice", "use: broker", "use: broker\nuse: broker", "use"},
		{"no name", "name: good", "", "name:"},
		{"a name in capitals", "name: good", "name: Good", "name:"},
		{"a name with a slash", "name: good", "name: a/b", "name:"},
		{"an unknown use", "use: broker", "use: anything", "use:"},
		{"no use", "use: broker", "", "use:"},
		{"no keys", "keys: [ec:P-256]", "keys: []", "keys:"},
		{"an unknown key type", "ec:P-256", "ec:P-224", "ec:P-224"},
		{"a weak key", "ec:P-256", "rsa:1024", "rsa:1024"},
		{"no validity", "validity: 365d", "", "validity:"},
		{"a negative validity", "365d", "-1d", "validity:"},
		{"a validity of seconds", "365d", "59s", "validity:"},
		{"a validity above the ceiling", "365d", "1831d", "ceiling"},
		{"a validity that overflows", "365d", "99999999999d", "validity:"},
		{"a backdate above an hour", "validity:", "backdate: 61m\nvalidity:", "backdate:"},
		{"a negative backdate", "validity:", "backdate: -1m\nvalidity:", "backdate:"},
		{"a common name from the request", "common_name: device", "common_name: csr", "subject.common_name:"},
		{"no common name", "subject:\n  common_name: device\n", "", "subject.common_name:"},
		{"first_dns without names", "common_name: device", "common_name: first_dns", "first_dns"},
		{"a device called by a name of its SAN", "common_name: device", "common_name: first_dns\nsan:\n  registered: true", "use management"},
		{"a serial number from the request", "common_name: device", "common_name: device\n  serial_number: csr", "subject.serial_number:"},
		{"no extended key usage", "[clientAuth]", "[]", "extended_key_usage:"},
		{"any extended key usage", "[clientAuth]", "[any]", "extended_key_usage:"},
		{"code signing", "[clientAuth]", "[codeSigning]", "extended_key_usage:"},
		{"a device that passes for a server", "[clientAuth]", "[clientAuth, serverAuth]", "serverAuth"},
		{"a server without a name", "use: broker", "use: management\ncsr: {}", ""},
		{"anything from the request", "subject:", "csr:\n  allow: [subject]\nsubject:", "csr.allow:"},
		{"an unknown verdict", "subject:", "csr:\n  unlisted: copy\nsubject:", "csr.unlisted:"},
		{"a CA", "subject:", "basic_constraints: ca\nsubject:", "basic_constraints:"},
	} {
		source := strings.Replace(good, tc.old, tc.new, 1)
		if tc.want == "" { // not broken yet: the last one is, once it is a server's
			source, tc.want = strings.Replace(source, "clientAuth", "serverAuth", 1), "san.required:"
		}
		_, err := profile.Parse([]byte(source))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q in it", tc.name, err, tc.want)
		}
	}
}

func TestAllProblemsAreNamedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := profile.Parse([]byte("name: X\nuse: y\nvalidity: z\n"))
	for _, want := range []string{"name:", "use:", "keys:", "validity:", "subject.common_name:", "extended_key_usage:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}
