// The tests drive what users run: the linked binaries, the release build unless a test needs the
// test clock or fault points.

package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// Binary is the path of a release binary: est-server, broker-bridge or estclient-example.
func Binary(t testing.TB, name string) string {
	t.Helper()
	return binary(t, name, "")
}

// CgoBinary is the path of the same program built with cgo, as PKCS#11 needs it.
func CgoBinary(t testing.TB, name string) string {
	t.Helper()
	RequirePrograms(t, "cc")
	return binary(t, name, "cgo")
}

// HooksBinary is the path of the same program built with the tag testhooks.
func HooksBinary(t testing.TB, name string) string {
	t.Helper()
	return binary(t, name, "testhooks")
}

var built struct {
	sync.Mutex
	paths map[string]string
}

// binary looks into NATAL_BIN, where "make test" has built everything, or else builds into bin/test of the
// repository, once per process and one process at a time.
func binary(t testing.TB, name, variant string) string {
	t.Helper()
	if dir := os.Getenv("NATAL_BIN"); dir != "" {
		path := filepath.Join(dir, variant, name)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("NATAL_BIN is set: %v", err)
		}
		return path
	}
	built.Lock()
	defer built.Unlock()
	dir := filepath.Join(Root(), "bin", "test", variant)
	path := filepath.Join(dir, name)
	if built.paths[path] != "" {
		return path
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(dir, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatalf("lock %s: %v", lock.Name(), err)
	}
	program := map[string]string{"est-server": "./server"}[name]
	if program == "" {
		program = "./" + name
	}
	build := exec.Command("go", "build", "-trimpath", "-tags", variant, "-o", path+".new", program)
	build.Dir = Root()
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if variant == "cgo" {
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if built.paths == nil {
		built.paths = map[string]string{}
	}
	built.paths[path] = path
	return path
}

// Root is the top directory of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	if !filepath.IsAbs(file) { // built with -trimpath: the test's working directory is inside the repository
		file, _ = os.Getwd()
	}
	for dir := filepath.Dir(file); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			panic("harness: go.mod not found above " + file)
		}
	}
}
