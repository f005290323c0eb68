//go:build testhooks

// INV-19 under every failure that a step of the store can have: not done, done but reported as failed, and the process killed
// before and after it. After each there is a pair that loads, and the same renewal succeeds when it is repeated.

package client

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/test/testpki"
)

// steps are all the fault points of the package, as its source names them.
func steps(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	literal := regexp.MustCompile(`fault\.Step\("(client\.[a-z.]+)"`)
	var names []string
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range literal.FindAllSubmatch(source, -1) {
			names = append(names, string(m[1]))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// renewal takes every step that a renewal has. The key of the request under way is that of id, as after a real enrollment.
func renewal(s *Store, id *Identity) error {
	if _, err := s.Stage("ec:P-384"); err != nil {
		return err
	}
	data, err := keyPEM(id.Key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path(nextKeyFile), data, 0o600); err != nil {
		return err
	}
	key, err := s.Stage("ec:P-256")
	if err != nil {
		return err
	}
	if !sameKey(key.Public(), id.Key.Public()) && !s.inUse(id.Key.Public()) {
		return errors.New("the key of the request under way was thrown away")
	}
	if err := s.Commit(id); err != nil {
		return err
	}
	return s.Confirm(id.Certificate)
}

func pairs(t testing.TB) (old, next *testpki.Leaf) {
	t.Helper()
	ca := testpki.Root(t, "Root").Intermediate(t, "Devices")
	before := testpki.Valid(time.Now().AddDate(0, -8, 0), time.Now().AddDate(0, 4, 0))
	return ca.Leaf(t, "dev-1", before), testpki.Root(t, "New root").Intermediate(t, "Devices").Leaf(t, "dev-1")
}

// mustHold checks the directory as the next start finds it: one of the two pairs loads, for us and for others.
func mustHold(t testing.TB, what, dir string, allowed ...*testpki.Leaf) {
	t.Helper()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatalf("%s: open: %v", what, err)
	}
	defer s.Close()
	id, err := s.Load()
	if err != nil {
		t.Fatalf("%s: load: %v", what, err)
	}
	if !slices.ContainsFunc(allowed, func(l *testpki.Leaf) bool { return l.Certificate.Equal(id.Certificate) }) {
		t.Fatalf("%s: loaded %s", what, id.Certificate.Subject)
	}
	if err := seenByOthers(dir, allowed...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", ".*.tmp-*"))
	if err != nil || len(left) > 0 {
		t.Fatalf("%s: left behind: %v", what, left)
	}
}

// seenByOthers reads the directory as mosquitto_pub does: bundle.pem, and key.pem with cert.pem, hold the same one of these pairs.
func seenByOthers(dir string, allowed ...*testpki.Leaf) error {
	bundle, err := readPair(filepath.Join(dir, bundleFile), filepath.Join(dir, bundleFile))
	if err != nil {
		return err
	}
	split, err := readPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(allowed, func(l *testpki.Leaf) bool { return l.Certificate.Equal(bundle.Certificate) })
	if !known || !bundle.Certificate.Equal(split.Certificate) || len(bundle.Chain) != 2 || len(split.Chain) != 2 {
		return errors.New("bundle.pem and cert.pem are of different pairs, or incomplete")
	}
	return nil
}

// needsDamage tells the steps of repair, which are taken only after damage.
func needsDamage(step string) bool {
	return strings.HasPrefix(step, "client.restore.") || step == "client.link"
}

// prepared is a directory with one proven pair; damaged, its bundle is torn and what other programs see is missing.
func prepared(t testing.TB, old *testpki.Leaf, damaged bool) string {
	t.Helper()
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	keepPair(t, s, old)
	if err := s.Confirm(old.Certificate); err != nil {
		t.Fatal(err)
	}
	if !damaged {
		return dir
	}
	tear(t, filepath.Join(dir, s.current(), bundleFile), 0.5)
	for _, name := range []string{bundleFile, keyFile, certFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func play(dir string, next *testpki.Leaf) error {
	s, err := OpenStore(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	return renewal(s, identityOf(next))
}

func TestFaultAtEveryStep(t *testing.T) {
	old, next := pairs(t)
	taken := map[string]bool{}
	for _, name := range steps(t) {
		for _, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
			for occurrence := 1; ; occurrence++ {
				what := fmt.Sprintf("%s mode %d occurrence %d", name, mode, occurrence)
				dir := prepared(t, old, needsDamage(name))
				seen := 0
				fault.Set(func(step string) fault.Mode {
					if step != name {
						return fault.None
					}
					if seen++; seen == occurrence {
						return mode
					}
					return fault.None
				})
				err := play(dir, next)
				fault.Set(nil)
				if seen < occurrence {
					break // the step is not taken that often
				}
				taken[name] = true
				if err == nil {
					t.Errorf("%s: the failure was not reported", what)
				}
				mustHold(t, what, dir, old, next)
				if err := play(dir, next); err != nil {
					t.Errorf("%s: repeated: %v", what, err)
				}
				mustHold(t, what+", repeated", dir, next)
			}
		}
	}
	for _, name := range steps(t) {
		if !taken[name] {
			t.Errorf("step %s was never taken: this test does not cover it", name)
		}
	}
}

// TestFailedCommitInTheSameProcess: no restart; the store goes on to serve a whole pair and Commit can be repeated.
func TestFailedCommitInTheSameProcess(t *testing.T) {
	old, next := pairs(t)
	for _, name := range steps(t) {
		for _, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
			dir := t.TempDir()
			s := openStore(t, dir)
			keepPair(t, s, old)
			if err := s.Confirm(old.Certificate); err != nil {
				t.Fatal(err)
			}
			fault.Set(func(step string) fault.Mode {
				if step == name {
					return mode
				}
				return fault.None
			})
			renewal(s, identityOf(next))
			cert, err := s.TLSCertificate()
			fault.Set(nil)
			if err != nil || !(cert.Leaf.Equal(old.Certificate) || cert.Leaf.Equal(next.Certificate)) {
				t.Errorf("%s: %v", name, err)
			}
			if err := renewal(s, identityOf(next)); err != nil {
				t.Errorf("%s: repeated: %v", name, err)
			}
			if cert, err := s.TLSCertificate(); err != nil || !cert.Leaf.Equal(next.Certificate) {
				t.Errorf("%s: after the repetition: %v", name, err)
			}
			s.Close()
		}
	}
}

// TestKilledAtEveryStep has a process of its own killed, with SIGKILL, before and after each step.
func TestKilledAtEveryStep(t *testing.T) {
	if dir := os.Getenv("NATAL_CRASH_DIR"); dir != "" {
		pair, err := readPair(filepath.Join(dir+".next", "bundle.pem"), filepath.Join(dir+".next", "bundle.pem"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := OpenStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		pair.Anchors = pair.Chain[1:] // any other than those in trust.pem
		if err := renewal(s, pair); err != nil {
			t.Fatal(err)
		}
		return
	}
	old, next := pairs(t)
	for _, name := range steps(t) {
		for _, mode := range []string{"crash", "crashafter"} {
			what := name + " " + mode
			dir := prepared(t, old, needsDamage(name))
			nextDir := dir + ".next"
			if err := os.Mkdir(nextDir, 0o700); err != nil {
				t.Fatal(err)
			}
			key, err := keyPEM(next.Key)
			if err != nil {
				t.Fatal(err)
			}
			testpki.WriteFile(t, filepath.Join(nextDir, "bundle.pem"), key, identityOf(next).ChainPEM())
			cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledAtEveryStep$")
			cmd.Env = append(os.Environ(), "NATAL_CRASH_DIR="+dir, "NATAL_FAULT="+name+":"+mode)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s: the process was not killed: %v\n%s", what, err, out)
			}
			// The instant after the crash, before anything is repaired: a reader must find a pair already.
			crashed := &Store{dir: dir}
			if _, err := crashed.Load(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if !needsDamage(name) {
				if err := seenByOthers(dir, old, next); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			if data, err := os.ReadFile(filepath.Join(dir, trustFile)); err == nil && strings.TrimSpace(string(data)) == "" {
				t.Fatalf("%s: trust.pem is empty", what)
			}
			mustHold(t, what, dir, old, next)
		}
	}
}
