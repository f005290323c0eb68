// A CA that is signed elsewhere: the request, openssl's signature by the command that people use with an offline root,
// the import, and devices that live through it.

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

const issuingCA = "IoTDeviceIssuingCA"

// rootCA is a root made by openssl, with "pathlen:1" as step-ca's has.
type rootCA struct {
	dir string
}

func newRootCA(t *testing.T) *rootCA {
	t.Helper()
	harness.RequirePrograms(t, "openssl")
	r := &rootCA{dir: t.TempDir()}
	r.selfSign(t, "root_ca", "/O=Smallstep/CN=Root CA", "basicConstraints=critical,CA:TRUE,pathlen:1", "keyUsage=critical,keyCertSign,cRLSign")
	r.write(t, "iot-device-subca.ext", `basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid,issuer
`)
	return r
}

func (r *rootCA) file(name string) string { return filepath.Join(r.dir, name) }

func (r *rootCA) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(r.file(name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *rootCA) selfSign(t *testing.T, name, subject string, extensions ...string) {
	t.Helper()
	args := []string{"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", name + "_key",
		"-out", name + ".crt", "-days", "7300", "-subj", subject}
	for _, e := range extensions {
		args = append(args, "-addext", e)
	}
	openssl(t, r.dir, args...)
}

// sign is the command of the original installation, word for word but for the file names.
func (r *rootCA) sign(t *testing.T, csr, out, extensions, signer string) {
	t.Helper()
	openssl(t, r.dir, "x509", "-req", "-in", csr, "-CA", signer+".crt", "-CAkey", signer+"_key", "-CAcreateserial", "-out", out,
		"-days", "3650", "-extfile", extensions)
}

// createExternal makes the waiting CA and brings its request to the root.
func (r *rootCA) createExternal(t *testing.T, s *harness.Server) {
	t.Helper()
	s.MustCLI(t, "ca", "create", issuingCA, "--external", "--key", "rsa:4096", "--subject", "CN=IoTDeviceIssuingCA,O=maksonlee.com,C=TW")
	r.write(t, "IoTDeviceIssuingCA_csr.pem", s.MustCLI(t, "ca", "csr", issuingCA).Stdout)
}

func caState(t *testing.T, s *harness.Server, name string) string {
	t.Helper()
	var info struct{ State string }
	out := s.MustCLI(t, "ca", "show", name, "--json").Stdout
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("ca show --json: %v\n%s", err, out)
	}
	return info.State
}

func TestExternalCA(t *testing.T) {
	t.Parallel()
	root := newRootCA(t)
	s := harness.StartServer(t, harness.ServerOptions{})
	before := newOpensslDevice(t, "SN-000000")
	before.newKey(t, "ec:P-256")
	if a := before.enroll(t, s, "simpleenroll", s.CodeFile(t, before.id)); a.status != 200 {
		t.Fatalf("enroll at the first CA: %d %s", a.status, a.body)
	}

	root.createExternal(t, s)
	csr := openssl(t, root.dir, "req", "-in", "IoTDeviceIssuingCA_csr.pem", "-noout", "-verify", "-subject", "-text")
	for _, want := range []string{"C = TW, O = maksonlee.com, CN = IoTDeviceIssuingCA", "(4096 bit)"} {
		if !strings.Contains(csr, want) {
			t.Errorf("the CA's request lacks %q:\n%s", want, csr)
		}
	}
	if state := caState(t, s, issuingCA); state != "waiting" {
		t.Errorf("state %q before the import, want waiting", state)
	}

	s.MustCLI(t, "label", "add", "waiting", "--ca", issuingCA, "--profile", "iot-device-rsa2048", "--auth", "code")
	early := newOpensslDevice(t, "SN-EARLY")
	early.newKey(t, "rsa:2048")
	earlyCode := s.CodeFile(t, early.id, "--label", "waiting")
	if a := early.enroll(t, s, "waiting/simpleenroll", earlyCode); a.status != 503 {
		t.Errorf("enroll while the CA waits: %d %s, want 503", a.status, a.body)
	}

	root.sign(t, "IoTDeviceIssuingCA_csr.pem", "IoTDeviceIssuingCA.crt", "iot-device-subca.ext", "root_ca")
	s.MustCLI(t, "ca", "import", issuingCA, root.file("IoTDeviceIssuingCA.crt"), "--chain", root.file("root_ca.crt"))
	if state := caState(t, s, issuingCA); state != "active" {
		t.Errorf("state %q after the import, want active", state)
	}
	if a := early.enroll(t, s, "waiting/simpleenroll", earlyCode); a.status != 200 {
		t.Errorf("the code that met the waiting CA: %d %s, want 200", a.status, a.body)
	}

	s.MustCLI(t, "label", "set", "default", "--ca", issuingCA, "--profile", "iot-device-rsa2048")
	d := newOpensslDevice(t, "SN-000001")
	d.newKey(t, "rsa:2048")
	if a := d.enroll(t, s, "simpleenroll", s.CodeFile(t, d.id)); a.status != 200 {
		t.Fatalf("enroll at the imported CA: %d %s", a.status, a.body)
	}
	if !d.verifies(t, root.file("root_ca.crt")) {
		t.Error("openssl does not verify the device's certificate to its own root")
	}
	// A device from the time before: it trusts the EST server by the anchor it has always had, and moves to the new CA.
	if a := before.reenroll(t, s, "simplereenroll", "rsa:2048"); a.status != 200 {
		t.Errorf("re-enroll of a device of the first CA: %d %s", a.status, a.body)
	} else if !before.verifies(t, root.file("root_ca.crt")) {
		t.Error("the renewed certificate does not verify to the openssl root")
	}
	// The imported CA's list exists at once, signed by it.
	status, crl, _ := s.Get(t, "http://"+s.Public+"/crl/"+issuingCA+".crl")
	if status != 200 {
		t.Fatalf("CRL of the imported CA: %d", status)
	}
	root.write(t, "ca.crl", string(crl))
	if out := (harness.Command{Path: harness.Program(t, "openssl"), Dir: root.dir,
		Args: []string{"crl", "-inform", "DER", "-in", "ca.crl", "-noout", "-CAfile", "IoTDeviceIssuingCA.crt"}}).MustRun(t).Output(); !strings.Contains(out, "verify OK") {
		t.Errorf("openssl crl: %s", out)
	}
}
