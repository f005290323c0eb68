// A database that was lost or damaged while the server was down: the server refuses to start, names the file, and makes no empty one in its place.

package crash_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestLostDatabaseIsNotReplaced(t *testing.T) {
	s := newSite(t, harness.ServerOptions{Hooks: true}, "")
	d := s.newDevice(t, "dev-1", testpki.Key(t, "ec:P-256"))
	if code := s.Stop(t); code != 0 {
		t.Fatalf("stopped with exit code %d", code)
	}
	file := filepath.Join(s.Data, "est.db")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	for at := 4096; at < len(flipped); at += 4096 { // the kind of each page
		flipped[at] ^= 0x10
	}
	for name, content := range map[string][]byte{"missing": nil, "empty": {}, "garbage": bytes.Repeat([]byte("x"), 10000), "half": whole[:len(whole)/2], "bits flipped": flipped} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if content != nil {
			testpki.WriteFile(t, file, content)
		}
		for _, verb := range [][]string{{"serve"}, {"run"}, {"code", "create", "dev-2"}} {
			r := harness.Run(t, s.Binary, append(verb, "--data", s.Data)...)
			if r.Code != 1 || !strings.Contains(r.Stderr, "est.db") || strings.Count(strings.TrimSpace(r.Stderr), "\n") > 0 {
				t.Errorf("%s, %v: exit code %d\n%s", name, verb, r.Code, r.Output())
			}
		}
		now, err := os.ReadFile(file)
		if content == nil && !errors.Is(err, os.ErrNotExist) || len(content) > 0 && !bytes.Equal(now, content) {
			t.Errorf("%s: the file was touched (%d bytes, %v)", name, len(now), err)
		}
		testpki.WriteFile(t, file, whole)
	}
	s.Start(t)
	_, certificate, err := s.enroll(s.client(0), d, d.csr(t, d.key))
	if err != nil {
		t.Fatal(err)
	}
	d.got = append(d.got, certificate)
	s.require(t, []*device{d})
}
