// Waiting is polling with a deadline; ports are free ones; a missing program is named.

package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Eventually polls ok every 10 ms until it holds; after limit the test fails with what was awaited.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain for: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ports hands out each port once. A test process has a window of its own, so that those running beside it take others.
var ports = struct {
	sync.Mutex
	window, next int
}{window: 15000 + os.Getpid()%17*1000, next: rand.IntN(1000)}

// FreeAddress is a loopback HOST:PORT that nothing listens on, another one at each call. The port is below the range that the kernel
// gives to outgoing connections, so only another listener could take it in the meantime.
func FreeAddress(t testing.TB) string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", ports.window+ports.next%1000)
		ports.next++
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		l.Close()
		return address
	}
	t.Fatal("no free port found")
	return ""
}

// Port is the port of a HOST:PORT.
func Port(t testing.TB, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Listening says whether something accepts connections at HOST:PORT.
func Listening(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// packages are the Debian packages of the programs that are not called like their package.
var packages = map[string]string{
	"mosquitto_pub": "mosquitto-clients", "mosquitto_sub": "mosquitto-clients", "mosquitto_ctrl": "mosquitto",
	"postgres": "postgresql", "initdb": "postgresql", "promtool": "prometheus", "systemd-analyze": "systemd",
}

// RequirePrograms skips the test (or fails it when NATAL_PROGRAMS=required) unless all these programs are installed.
func RequirePrograms(t testing.TB, names ...string) {
	t.Helper()
	var missing []string
	for _, name := range names {
		if find(name) == "" {
			pkg := packages[name]
			if pkg == "" {
				pkg = name
			}
			missing = append(missing, fmt.Sprintf("%s (Debian package %s)", name, pkg))
		}
	}
	if missing == nil {
		return
	}
	message := "not installed: " + strings.Join(missing, ", ")
	if os.Getenv("NATAL_PROGRAMS") == "required" {
		t.Fatal(message)
	}
	t.Skip(message)
}

// Program is the path of an installed program; call RequirePrograms before.
func Program(t testing.TB, name string) string {
	t.Helper()
	path := find(name)
	if path == "" {
		t.Fatalf("%s is not installed", name)
	}
	return path
}

// find looks along PATH and where Debian keeps daemons.
func find(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, pattern := range []string{"/usr/sbin", "/usr/local/sbin", "/usr/lib/postgresql/*/bin"} {
		hits, _ := filepath.Glob(filepath.Join(pattern, name))
		if len(hits) > 0 {
			return hits[len(hits)-1]
		}
	}
	return ""
}
