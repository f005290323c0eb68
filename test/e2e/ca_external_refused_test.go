// What a waiting CA does not accept as its certificate. Every refusal names its reason and changes nothing.

package e2e

import (
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestExternalCARefusals(t *testing.T) {
	t.Parallel()
	root := newRootCA(t)
	s := harness.StartServer(t, harness.ServerOptions{})
	root.createExternal(t, s)

	const ca, usage = "basicConstraints=critical,CA:TRUE,pathlen:0\n", "keyUsage=critical,keyCertSign,cRLSign\n"
	const ids = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer\n"
	root.write(t, "no-ca.ext", "basicConstraints=critical,CA:FALSE\n"+usage+ids)
	root.write(t, "no-basic-constraints.ext", usage+ids)
	root.write(t, "no-keycertsign.ext", ca+"keyUsage=critical,cRLSign\n"+ids)
	root.write(t, "no-crlsign.ext", ca+"keyUsage=critical,keyCertSign\n"+ids)
	root.write(t, "intermediate.ext", "basicConstraints=critical,CA:TRUE\n"+usage+ids)

	openssl(t, root.dir, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "other_key", "-out", "other.csr", "-subj", "/C=TW/O=maksonlee.com/CN=IoTDeviceIssuingCA")
	openssl(t, root.dir, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "intermediate_key", "-out", "intermediate.csr", "-subj", "/CN=One CA Too Many")
	root.sign(t, "intermediate.csr", "intermediate.crt", "intermediate.ext", "root_ca")
	expired := testpki.Root(t, "Expired Root", testpki.Expired())
	root.write(t, "expired.crt", string(expired.PEM()))
	root.write(t, "expired_key", string(testpki.KeyPEM(t, expired.Key)))
	root.selfSign(t, "stranger", "/CN=Another Root", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")

	cases := []struct {
		name                    string
		csr, extensions, signer string
		chain                   []string // files; none: no --chain
		reason                  string
	}{
		{"another key", "other.csr", "iot-device-subca.ext", "root_ca", []string{"root_ca.crt"}, "key"},
		{"CA:FALSE", "", "no-ca.ext", "root_ca", []string{"root_ca.crt"}, "CA:TRUE is missing"},
		{"no basic constraints", "", "no-basic-constraints.ext", "root_ca", []string{"root_ca.crt"}, "CA:TRUE is missing"},
		{"missing keyCertSign", "", "no-keycertsign.ext", "root_ca", []string{"root_ca.crt"}, "keyCertSign"},
		{"missing cRLSign", "", "no-crlsign.ext", "root_ca", []string{"root_ca.crt"}, "cRLSign"},
		{"expired parent", "", "iot-device-subca.ext", "expired", []string{"expired.crt"}, "expired"},
		{"intermediate under pathlen:1", "", "iot-device-subca.ext", "intermediate", []string{"intermediate.crt", "root_ca.crt"}, "path length exceeded at "},
		{"no chain", "", "iot-device-subca.ext", "root_ca", nil, "self-signed"},
		{"chain without a root", "", "iot-device-subca.ext", "intermediate", []string{"intermediate.crt"}, "self-signed"},
		{"another root", "", "iot-device-subca.ext", "root_ca", []string{"stranger.crt"}, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			csr := tc.csr
			if csr == "" {
				csr = "IoTDeviceIssuingCA_csr.pem"
			}
			root.sign(t, csr, "answer.crt", tc.extensions, tc.signer)
			args := []string{"ca", "import", issuingCA, root.file("answer.crt")}
			if tc.chain != nil {
				root.write(t, "chain.pem", concatenate(t, root, tc.chain))
				args = append(args, "--chain", root.file("chain.pem"))
			}
			r := s.CLI(t, args...)
			if r.Code != 1 {
				t.Errorf("exit code %d, want 1", r.Code)
			}
			if !strings.Contains(r.Stderr, tc.reason) || strings.Count(strings.TrimSpace(r.Stderr), "\n") != 0 {
				t.Errorf("stderr is not one line that names %q:\n%s", tc.reason, r.Stderr)
			}
			if state := caState(t, s, issuingCA); state != "waiting" {
				t.Errorf("state %q, want waiting", state)
			}
		})
	}
	// After all that, the right one is still welcome.
	root.sign(t, "IoTDeviceIssuingCA_csr.pem", "answer.crt", "iot-device-subca.ext", "root_ca")
	s.MustCLI(t, "ca", "import", issuingCA, root.file("answer.crt"), "--chain", root.file("root_ca.crt"))
	if state := caState(t, s, issuingCA); state != "active" {
		t.Errorf("state %q, want active", state)
	}
	// A second import, of the same certificate or of one for another key, is refused and changes nothing.
	show := s.MustCLI(t, "ca", "show", issuingCA, "--json").Stdout
	root.sign(t, "other.csr", "wrong.crt", "iot-device-subca.ext", "root_ca")
	for _, file := range []string{"answer.crt", "wrong.crt"} {
		if r := s.CLI(t, "ca", "import", issuingCA, root.file(file), "--chain", root.file("root_ca.crt")); r.Code != 1 {
			t.Errorf("import of %s into an active CA: exit code %d, want 1\n%s", file, r.Code, r.Output())
		}
		if after := s.MustCLI(t, "ca", "show", issuingCA, "--json").Stdout; after != show {
			t.Errorf("import of %s into an active CA: before\n%safterwards\n%s", file, show, after)
		}
	}
}

func concatenate(t *testing.T, root *rootCA, files []string) string {
	t.Helper()
	var all strings.Builder
	for _, f := range files {
		all.WriteString(openssl(t, root.dir, "x509", "-in", f))
	}
	return all.String()
}
