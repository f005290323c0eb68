// docs/curl-and-openssl.md, run as it stands.

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// shellBlocks are the ```bash blocks of a page, one after the other.
func shellBlocks(t *testing.T, page string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(harness.Root(), "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	inside := false
	for line := range strings.Lines(string(content)) {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = strings.TrimSpace(line) == "```bash"
		case inside:
			script.WriteString(line)
		}
	}
	if script.Len() == 0 {
		t.Fatalf("no commands in %s", page)
	}
	return script.String()
}

func TestCurlAndOpenSSLRecipe(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl", "curl", "bash")
	s := harness.StartServer(t, harness.ServerOptions{})
	d := newOpensslDevice(t, "SN-CURL")
	r := harness.Command{
		Path: harness.Program(t, "bash"), Args: []string{"-euo", "pipefail", "-c", shellBlocks(t, "curl-and-openssl.md")}, Dir: d.dir,
		Env: []string{"EST=" + s.URL(), "TRUST=" + s.Trust(), "ID=" + d.id, "CODE_FILE=" + s.CodeFile(t, d.id)},
	}.MustRun(t)
	for _, want := range []string{"cert.pem: OK", "new-cert.pem: OK", "subject=CN = SN-CURL"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("the recipe does not print %q:\n%s", want, r.Output())
		}
	}
	first, second := d.openssl(t, "x509", "-in", "cert.pem", "-noout", "-serial"), d.openssl(t, "x509", "-in", "new-cert.pem", "-noout", "-serial")
	if first == second {
		t.Errorf("the renewal returned the old certificate, %s", first)
	}
	for _, secret := range []string{"key.pem", "new-key.pem", "bundle.pem"} {
		if info, err := os.Stat(d.file(secret)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", secret, info.Mode(), err)
		}
	}
}
