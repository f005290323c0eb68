// A real PostgreSQL in a temporary directory. Tests that run at the same time share one cluster, each with a
// database of its own; the last to end stops it.

package harness

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var cluster struct {
	sync.Mutex
	users     int
	databases int
	dir       string
	port      string
	process   *Process
}

// PostgresURL returns the URL of a new, empty database ("postgres://..."), which is gone when the test ends.
func PostgresURL(t testing.TB) string {
	t.Helper()
	RequirePrograms(t, "initdb", "postgres", "psql")
	cluster.Lock()
	defer cluster.Unlock()
	if cluster.users == 0 {
		startCluster(t)
	}
	cluster.users++
	t.Cleanup(releaseCluster)
	cluster.databases++
	name := fmt.Sprintf("natal_%d", cluster.databases)
	psql(t, "CREATE DATABASE "+name)
	return fmt.Sprintf("postgres:///%s?host=%s&port=%s&user=postgres&sslmode=disable", name, cluster.dir, cluster.port)
}

// PostgresProcess is the running server, for tests that kill it. Valid while the test holds a PostgresURL. Such a test
// must not run in parallel with others of its package.
func PostgresProcess() *Process {
	cluster.Lock()
	defer cluster.Unlock()
	return cluster.process
}

func releaseCluster() {
	cluster.Lock()
	defer cluster.Unlock()
	cluster.users--
	if cluster.users > 0 {
		return
	}
	cluster.process.Signal(syscall.SIGINT) // fast shutdown: does not wait for clients
	select {
	case <-cluster.process.done:
	case <-time.After(10 * time.Second):
		cluster.process.Kill()
	}
	os.RemoveAll(cluster.dir)
}

// startCluster makes the directory by itself: the server refuses to run as root, and the user it runs as may not
// enter a test's temporary directory.
func startCluster(t testing.TB) {
	t.Helper()
	dir, err := os.MkdirTemp("", "natal-pg-")
	if err != nil {
		t.Fatal(err)
	}
	attr := postgresUser(t, dir)
	data := filepath.Join(dir, "data")
	Command{Path: Program(t, "initdb"), Dir: dir, Attr: attr,
		Args: []string{"-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"}}.MustRun(t)
	cluster.dir, cluster.port = dir, Port(t, FreeAddress(t))
	// Without fsync: the tests kill processes, never the machine.
	cluster.process, err = Command{Path: Program(t, "postgres"), Attr: attr,
		Args: []string{"-D", data, "-k", dir, "-p", cluster.port, "-c", "listen_addresses=", "-c", "max_connections=300",
			"-c", "fsync=off", "-c", "full_page_writes=off"}}.start(dir)
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	Eventually(t, 30*time.Second, "PostgreSQL to accept connections", func() bool {
		return Command{Path: Program(t, "psql"), Args: psqlArgs("SELECT 1")}.Run(t).Code == 0
	})
}

func psql(t testing.TB, statement string) string {
	t.Helper()
	r := Command{Path: Program(t, "psql"), Args: psqlArgs(statement)}.MustRun(t)
	return strings.TrimSpace(r.Stdout)
}

func psqlArgs(statement string) []string {
	return []string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", cluster.dir, "-p", cluster.port, "-U", "postgres", "-d", "postgres", "-c", statement}
}

// postgresUser gives dir to the user "postgres" when the test runs as root.
func postgresUser(t testing.TB, dir string) *syscall.SysProcAttr {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("PostgreSQL does not run as root: %v", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("user postgres: uid %q, gid %q", u.Uid, u.Gid)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}
