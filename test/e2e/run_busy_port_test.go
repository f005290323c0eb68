// A port that is taken is an error that says which flag chooses another.

package e2e

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestBusyPortNamesItsFlag(t *testing.T) {
	t.Parallel()
	server := harness.Binary(t, "est-server")
	data := filepath.Join(t.TempDir(), "data")
	harness.MustRun(t, server, "init", "--data", data, "--passphrase-file", passphraseFile(t))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	flags := []string{"--est-listen", "--public-listen", "--admin-listen", "--metrics-listen"}
	for _, busy := range flags {
		t.Run(busy, func(t *testing.T) {
			args := []string{"serve", "--data", data, "--passphrase-file", passphraseFile(t)}
			for _, flag := range flags {
				address := harness.FreeAddress(t)
				if flag == busy {
					address = taken.Addr().String()
				}
				args = append(args, flag, address)
			}
			r := harness.Run(t, server, args...)
			if r.Code != 1 {
				t.Errorf("exit code %d, want 1", r.Code)
			}
			if !strings.Contains(r.Stderr, busy) || !strings.Contains(r.Stderr, taken.Addr().String()) {
				t.Errorf("stderr names not both %s and %s:\n%s", busy, taken.Addr(), r.Stderr)
			}
			for _, flag := range flags {
				if flag != busy && strings.Contains(r.Stderr, flag) {
					t.Errorf("stderr names %s:\n%s", flag, r.Stderr)
				}
			}
		})
	}
}
