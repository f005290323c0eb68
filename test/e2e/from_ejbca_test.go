// docs/from-ejbca.md: every command of its tables, in their order, as it stands there.

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

var inCode = regexp.MustCompile("`((?:est-server|estclient-example|openssl|curl|sed) [^`]*)`")

func TestComingFromElsewhere(t *testing.T) {
	t.Parallel()
	root := newRootCA(t)
	root.write(t, "intermediate.ext", readText(t, root.file("iot-device-subca.ext")))
	harness.RequirePrograms(t, "bash", "curl")
	s := harness.StartServer(t, harness.ServerOptions{})
	path := t.TempDir()
	for _, program := range []string{"est-server", "estclient-example"} {
		if err := os.Symlink(harness.Binary(t, program), filepath.Join(path, program)); err != nil {
			t.Fatal(err)
		}
	}
	openssl(t, root.dir, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "dev-3.key", "-subj", "/CN=dev-3", "-out", "dev-3.csr")
	serials := map[string]string{} // of the devices, by the commands about them
	run := func(command string) string {
		t.Helper()
		command = strings.NewReplacer("http://est.example.com:8080", "http://"+s.Public, "https://est.example.com:8443", s.URL()).Replace(command)
		return harness.Command{Path: harness.Program(t, "bash"), Args: []string{"-euo", "pipefail", "-c", command}, Dir: root.dir,
			Env: []string{"PATH=" + path + ":" + os.Getenv("PATH"), "NATAL_DATA=" + s.Data}}.MustRun(t).Output()
	}
	// wants is what some of them must say.
	wants := map[string]string{
		"ca import IoTDeviceIssuingCA": "active", "profile check": "is valid", "device show SN-000002": "generated", "profile explain": "pass", "audit export": "bundle_delivered",
		"cert list --device SN-000002": "iot-device-cert-profile", "ca list": "IoTDeviceIssuingCA",
	}
	tried := 0
	for line := range strings.Lines(readText(t, filepath.Join(harness.Root(), "docs", "from-ejbca.md"))) {
		columns := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "|") || len(columns) < 2 {
			continue
		}
		for _, found := range inCode.FindAllStringSubmatch(columns[len(columns)-1], -1) {
			command := found[1]
			if strings.Contains(command, "SERIAL") {
				device := "SN-000002"
				if strings.Contains(command, "cert revoke") {
					device = "dev-1"
				}
				command = strings.ReplaceAll(command, "SERIAL", serials[device])
			}
			out := run(command)
			tried++
			for part, want := range wants {
				if strings.Contains(command, part) {
					delete(wants, part)
					if !strings.Contains(out, want) {
						t.Errorf("%s: no %q in\n%s", command, want, out)
					}
				}
			}
			for verb, device := range map[string]string{"device bundle": "SN-000002", "estclient-example reenroll": "dev-1"} {
				if strings.Contains(command, verb) {
					for _, c := range certificates(t, s, "--device", device) {
						serials[device] = c.Serial
					}
				}
			}
		}
	}
	if tried < 35 || len(wants) > 0 {
		t.Errorf("%d commands tried; none of them was %v", tried, wants)
	}
	// The CA's certificate from its address is what the root signed.
	if got, want := run("openssl x509 -in IoTDeviceIssuingCA.pem -noout -fingerprint"), run("openssl x509 -in IoTDeviceIssuingCA.crt -noout -fingerprint"); got != want {
		t.Errorf("the CA's certificate: %s, want %s", got, want)
	}
}
