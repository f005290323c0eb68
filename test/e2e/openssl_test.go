// A device that consists of openssl and curl only: an implementation of EST that shares nothing with the project.

package e2e

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// opensslDevice keeps its files in dir: key.pem, csr.der, cert.pem (leaf), chain.pem (leaf and issuing CAs).
type opensslDevice struct {
	id, dir string
}

func newOpensslDevice(t *testing.T, id string) *opensslDevice {
	t.Helper()
	harness.RequirePrograms(t, "openssl", "curl")
	return &opensslDevice{id: id, dir: t.TempDir()}
}

func (d *opensslDevice) file(name string) string { return filepath.Join(d.dir, name) }

// openssl runs openssl in the device's directory; it has to succeed.
func (d *opensslDevice) openssl(t *testing.T, args ...string) string {
	t.Helper()
	return openssl(t, d.dir, args...)
}

func openssl(t *testing.T, dir string, args ...string) string {
	t.Helper()
	return harness.Command{Path: harness.Program(t, "openssl"), Args: args, Dir: dir}.MustRun(t).Stdout
}

// newKey makes a key: "ec:P-256" or "rsa:BITS".
func (d *opensslDevice) newKey(t *testing.T, spec string) {
	t.Helper()
	if bits, ok := strings.CutPrefix(spec, "rsa:"); ok {
		d.openssl(t, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:"+bits, "-out", "key.pem")
		return
	}
	d.openssl(t, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:"+strings.TrimPrefix(spec, "ec:"), "-out", "key.pem")
}

// answer is what the EST server said.
type answer struct {
	status int
	body   string
}

// enroll posts a CSR made by openssl; extra goes to curl (a label's URL is chosen by operation, "LABEL/simpleenroll"). The code is read
// from a file; "" sends none. A certificate in the answer is written to cert.pem, the issuing CAs as well to chain.pem.
func (d *opensslDevice) enroll(t *testing.T, s *harness.Server, operation, codeFile string, extra ...string) answer {
	t.Helper()
	return d.enrollWith(t, s, operation, codeFile, []string{"-subj", "/CN=" + d.id}, extra...)
}

func (d *opensslDevice) enrollWith(t *testing.T, s *harness.Server, operation, codeFile string, csr []string, extra ...string) answer {
	t.Helper()
	d.openssl(t, append([]string{"req", "-new", "-key", "key.pem", "-outform", "DER", "-out", "csr.der"}, csr...)...)
	der, err := os.ReadFile(d.file("csr.der"))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--silent", "--show-error", "--cacert", s.Trust(), "--output", "answer", "--write-out", "%{http_code}",
		"--header", "Content-Type: application/pkcs10", "--data-binary", base64.StdEncoding.EncodeToString(der)}
	stdin := ""
	if codeFile != "" {
		code, err := os.ReadFile(codeFile)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", "-")
		stdin = "user = \"" + d.id + ":" + strings.TrimSpace(string(code)) + "\"\n"
	}
	args = append(append(args, extra...), s.URL()+"/.well-known/est/"+operation)
	r := harness.Command{Path: harness.Program(t, "curl"), Args: args, Dir: d.dir, Stdin: stdin}.MustRun(t)
	status, err := strconv.Atoi(r.Stdout)
	if err != nil {
		t.Fatalf("curl: %q", r.Output())
	}
	body, err := os.ReadFile(d.file("answer"))
	if err != nil {
		t.Fatal(err)
	}
	if status == 200 {
		d.keep(t, s, operation, body)
	}
	return answer{status, string(body)}
}

// keep unpacks the certs-only answer, and asks for the CAs to complete the chain.
func (d *opensslDevice) keep(t *testing.T, s *harness.Server, operation string, body []byte) {
	t.Helper()
	d.write(t, "answer.p7", decodeBase64(t, body))
	d.openssl(t, "pkcs7", "-inform", "DER", "-in", "answer.p7", "-print_certs", "-out", "cert.pem")
	d.caCerts(t, s, strings.TrimSuffix(strings.TrimSuffix(operation, "simpleenroll"), "simplereenroll"))
	leaf, err := os.ReadFile(d.file("cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cas, err := os.ReadFile(d.file("cas.pem"))
	if err != nil {
		t.Fatal(err)
	}
	d.write(t, "chain.pem", append(leaf, cas...))
}

// caCerts fetches /cacerts of a label ("" or "LABEL/") into cas.pem.
func (d *opensslDevice) caCerts(t *testing.T, s *harness.Server, label string) {
	t.Helper()
	_, body, _ := s.Get(t, s.URL()+"/.well-known/est/"+label+"cacerts")
	d.write(t, "cas.p7", decodeBase64(t, body))
	d.openssl(t, "pkcs7", "-inform", "DER", "-in", "cas.p7", "-print_certs", "-out", "cas.pem")
}

func (d *opensslDevice) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(d.file(name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// reenroll makes a new key of the same kind and renews with the present certificate.
func (d *opensslDevice) reenroll(t *testing.T, s *harness.Server, operation, keySpec string) answer {
	t.Helper()
	for from, to := range map[string]string{"key.pem": "old-key.pem", "chain.pem": "old-chain.pem"} {
		if err := os.Rename(d.file(from), d.file(to)); err != nil {
			t.Fatal(err)
		}
	}
	d.newKey(t, keySpec)
	return d.enroll(t, s, operation, "", "--cert", "old-chain.pem", "--key", "old-key.pem")
}

// text is openssl's description of the certificate.
func (d *opensslDevice) text(t *testing.T) string {
	t.Helper()
	return d.openssl(t, "x509", "-in", "cert.pem", "-noout", "-text")
}

// verifies says whether openssl accepts the certificate under the given anchors, with the CAs of /cacerts as intermediates.
func (d *opensslDevice) verifies(t *testing.T, anchors string) bool {
	t.Helper()
	r := harness.Command{Path: harness.Program(t, "openssl"), Dir: d.dir,
		Args: []string{"verify", "-purpose", "sslclient", "-CAfile", anchors, "-untrusted", "cas.pem", "cert.pem"}}.Run(t)
	return r.Code == 0
}

func decodeBase64(t *testing.T, body []byte) []byte {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(body), nil)))
	if err != nil {
		t.Fatalf("answer is not base64: %v\n%s", err, body)
	}
	return der
}

func base64Body(der []byte) *strings.Reader {
	return strings.NewReader(base64.StdEncoding.EncodeToString(der))
}

func containsFold(text, part string) bool {
	return strings.Contains(strings.ToLower(text), strings.ToLower(part))
}
