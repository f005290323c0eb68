// The EST server's own certificate is renewed at two thirds of its life and swapped while the server runs. The test clock goes through
// three years of it.

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestServerCertificateRenewsForThreeYears(t *testing.T) {
	t.Parallel()
	clock := harness.NewClock(t)
	s := harness.StartServer(t, harness.ServerOptions{Hooks: true, Env: []string{clock.Env()}})
	anchors, err := os.ReadFile(s.Trust())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(anchors)
	const day, step = 24 * time.Hour, 15 * 24 * time.Hour
	serials := map[string]bool{}
	for later := time.Duration(0); later <= 3*365*day; later += step {
		clock.Set(t, later)
		now := func() time.Time { return time.Now().Add(later) }
		var leaf *x509.Certificate
		// "Two thirds of its life": 60 of 90 days. Every fourth step lands there, and then only a new certificate has more than 31 days left.
		harness.Eventually(t, 20*time.Second, "a valid certificate with a third of its life left, "+later.String()+" from now", func() bool {
			conn, err := tls.Dial("tcp", s.EST, &tls.Config{RootCAs: roots, Time: now, ServerName: "localhost"})
			if err != nil {
				return false
			}
			defer conn.Close()
			leaf = conn.ConnectionState().PeerCertificates[0]
			return leaf.NotAfter.Sub(now()) > 31*day
		})
		serials[leaf.SerialNumber.String()] = true
	}
	if n := len(serials); n < 15 || n > 20 {
		t.Errorf("%d certificates in three years, want 15 to 20", n)
	}
	// The same process all the while, and devices still enroll.
	if !s.Running() {
		t.Error("the server has ended")
	}
	code := s.CodeFile(t, "SN-LATE")
	r := harness.Command{Path: harness.HooksBinary(t, "estclient-example"), Env: []string{clock.Env()}, Args: []string{"enroll", "--server", s.URL(),
		"--dir", filepath.Join(t.TempDir(), "d"), "--trust", s.Trust(), "--id", "SN-LATE", "--code-file", code}}.Run(t)
	if r.Code != 0 {
		t.Errorf("enroll after three years: %s", r.Output())
	}
}
