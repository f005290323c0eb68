// The server in this process: what it prints, what its addresses answer, how it starts beside another and how it stops.

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/testpki"
)

// output collects what a running command prints.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// running is a command that serves.
type running struct {
	stdout, stderr output
	stop           context.CancelFunc
	done           chan int
	addresses      map[string]string // by "est", "public", "admin", "metrics"
}

var serving = regexp.MustCompile(`msg=serving est=(\S+) public=(\S+) admin=(\S+) metrics=(\S+)`)

// serveIn runs "run" or "serve" on free ports and waits until all are open.
func serveIn(t *testing.T, dir string, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{stop: cancel, done: make(chan int, 1)}
	args = append(args, "--data", dir, "--est-listen", "127.0.0.1:0", "--public-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
	go func() { r.done <- execute(ctx, args, strings.NewReader(""), &r.stdout, &r.stderr) }()
	t.Cleanup(func() { r.end(t) })
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if m := serving.FindStringSubmatch(r.stderr.String()); m != nil {
			r.addresses = map[string]string{"est": m[1], "public": m[2], "admin": m[3], "metrics": m[4]}
			return r
		}
		select {
		case code := <-r.done:
			r.done <- code
			t.Fatalf("%v ended with %d: %s", args, code, r.stderr.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v does not serve: %s", args, r.stderr.String())
		}
	}
}

// end stops the command and returns its exit code.
func (r *running) end(t *testing.T) int {
	t.Helper()
	r.stop()
	select {
	case code := <-r.done:
		r.done <- code
		return code
	case <-time.After(time.Minute):
		t.Fatal("it does not stop")
		return 0
	}
}

// get asks an address of the server, with TLS that trusts DIR/trust.pem.
func (r *running) get(t *testing.T, dir, url string, certificates ...tls.Certificate) (int, string) {
	t.Helper()
	anchors := testpki.ParsePEM(t, []byte(readFile(t, filepath.Join(dir, "trust.pem"))))
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		RootCAs: testpki.Pool(&testpki.Authority{Certificate: anchors[0]}), Certificates: certificates,
	}}}
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

func TestRunFromNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	r := serveIn(t, dir, "run", "--public-url", "http://pki.example.com")
	out := waitFor(t, r, "Ctrl-C stops")
	for _, want := range []string{"it protects nothing", "https://" + r.addresses["est"] + "/.well-known/est", filepath.Join(dir, "trust.pem"), "estclient-example enroll", "--id device-1", "curl --cacert", "birth-ca add default", r.addresses["metrics"]} {
		if !strings.Contains(out, want) {
			t.Errorf("run does not print %q:\n%s", want, out)
		}
	}
	code := filepath.Join(dir, "device-1.code")
	first := readFile(t, code)
	if strings.Contains(out, strings.TrimSpace(first)) {
		t.Error("run prints the code")
	}
	if status, body := r.get(t, dir, "https://"+r.addresses["est"]+"/.well-known/est/cacerts"); status != 200 || body == "" {
		t.Errorf("cacerts: %d", status)
	}
	if status, _ := r.get(t, dir, "http://"+r.addresses["public"]+"/crl/devices.crl"); status != 200 {
		t.Errorf("CRL: %d", status)
	}
	if status, body := r.get(t, dir, "http://"+r.addresses["metrics"]+"/readyz"); status != 200 {
		t.Errorf("readyz: %d %s", status, body)
	}
	if status, _ := r.get(t, dir, "https://"+r.addresses["admin"]+"/api/v1/cas"); status != 401 {
		t.Errorf("admin address without a certificate: %d", status)
	}
	if code := r.end(t); code != 0 {
		t.Errorf("exit code %d after the stop: %s", code, r.stderr.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "admin.sock")); err == nil {
		t.Error("the socket is still there")
	}
	// Once more: the same line as long as the code is good, another device once it is used.
	r = serveIn(t, dir, "run")
	if out := waitFor(t, r, "Ctrl-C stops"); !strings.Contains(out, "--id device-1") || readFile(t, code) != first {
		t.Errorf("the second start made another code:\n%s", out)
	}
	must(t, dir, "code", "revoke", "device-1")
	r.end(t)
	r = serveIn(t, dir, "run")
	if out := waitFor(t, r, "Ctrl-C stops"); !strings.Contains(out, "--id device-1") || readFile(t, code) == first {
		t.Errorf("after the revocation there is no fresh code:\n%s", out)
	}
	must(t, dir, "device", "revoke", "device-1", "--reason", "cessationOfOperation")
	r.end(t)
	r = serveIn(t, dir, "run")
	if out := waitFor(t, r, "Ctrl-C stops"); !strings.Contains(out, "--id device-2") {
		t.Errorf("a revoked device is offered:\n%s", out)
	}
}

func waitFor(t *testing.T, r *running, text string) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if out := r.stdout.String(); strings.Contains(out, text) {
			return out
		}
	}
	t.Fatalf("%q is never printed:\n%s", text, r.stdout.String())
	return ""
}

func TestOneServerOnOneDirectory(t *testing.T) {
	t.Parallel()
	dir := instanceDir(t)
	serveIn(t, dir, "serve")
	r := run(t, "serve", "--data", dir)
	if r.code != exitFailed || !strings.Contains(r.stderr, fmt.Sprintf("in use by another process (process %d)", os.Getpid())) {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	if out := must(t, dir, "ca", "list"); !strings.Contains(out, "devices") {
		t.Errorf("a command beside the server: %s", out)
	}
}

func TestBusyPorts(t *testing.T) {
	t.Parallel()
	dir := instanceDir(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	flags := []string{"--est-listen", "--public-listen", "--admin-listen", "--metrics-listen"}
	for _, busy := range flags {
		args := []string{"serve", "--data", dir}
		for _, f := range flags {
			address := "127.0.0.1:0"
			if f == busy {
				address = taken.Addr().String()
			}
			args = append(args, f, address)
		}
		if r := run(t, args...); r.code != exitFailed || !strings.Contains(r.stderr, "address "+taken.Addr().String()+" is in use: choose another one with "+busy) {
			t.Errorf("%s: exit code %d: %s", busy, r.code, r.stderr)
		}
	}
}

// The same commands through the socket, the admin address and in process, with the same result.
func TestThreeWaysToTheAPI(t *testing.T) {
	t.Parallel()
	dir := instanceDir(t)
	inProcess := must(t, dir, "ca", "list", "--json")
	r := serveIn(t, dir, "serve")
	if socket := must(t, dir, "ca", "list", "--json"); socket != inProcess {
		t.Errorf("through the socket:\n%s in process:\n%s", socket, inProcess)
	}
	admin := filepath.Join(dir, "admin")
	remote := run(t, "ca", "list", "--json", "--server", "https://"+r.addresses["admin"], "--cert", filepath.Join(admin, "cert.pem"), "--key", filepath.Join(admin, "key.pem"))
	if remote.stdout != inProcess {
		t.Errorf("over TLS:\n%s%s in process:\n%s", remote.stdout, remote.stderr, inProcess)
	}
	created := run(t, "ca", "create", "other", "--parent", "root", "--key", "ec:P-384", "--server", "https://"+r.addresses["admin"], "--cert", filepath.Join(admin, "cert.pem"))
	if created.code != 0 {
		t.Errorf("ca create over TLS: %s", created.stderr)
	}
	var head struct {
		Actor, Object string
	}
	export := strings.Split(strings.TrimSpace(must(t, dir, "audit", "export")), "\n")
	found := false
	for _, line := range export {
		if err := json.Unmarshal([]byte(line), &head); err != nil {
			t.Fatal(err)
		}
		found = found || (head.Actor == "admin:admin" && head.Object == "other")
	}
	if !found {
		t.Error("the audit log does not name the administrator")
	}
	// An operator may not, a removed one may nothing, and a server with another root is not believed.
	olga := filepath.Join(t.TempDir(), "olga")
	must(t, dir, "admin", "add", "olga", "--role", "operator", "--out", olga)
	as := func(args ...string) result {
		return run(t, append(args, "--server", "https://"+r.addresses["admin"], "--cert", filepath.Join(olga, "cert.pem"))...)
	}
	if got := as("device", "add", "SN-1"); got.code != 0 {
		t.Errorf("operator adds a device: %s", got.stderr)
	}
	if got := as("ca", "create", "x", "--parent", "root"); got.code != exitFailed || !strings.Contains(got.stderr, `role "operator" may not do this (not_authorized)`) {
		t.Errorf("operator creates a CA: %s", got.stderr)
	}
	foreign := testpki.WriteFile(t, filepath.Join(t.TempDir(), "trust.pem"), testpki.Root(t, "somebody").PEM())
	if got := as("device", "list", "--trust", foreign); got.code != exitFailed || !strings.Contains(got.stderr, "unknown authority") {
		t.Errorf("foreign root: %s", got.stderr)
	}
	must(t, dir, "admin", "remove", "olga")
	if got := as("device", "list"); got.code != exitFailed || !strings.Contains(got.stderr, "not_authenticated") {
		t.Errorf("removed operator: %s", got.stderr)
	}
}

// Certificates of ours that are no administrator's open nothing on the admin address, and no device certificate opens the feed.
func TestCertificatesStayInTheirPlace(t *testing.T) {
	t.Parallel()
	dir := instanceDir(t)
	r := serveIn(t, dir, "serve")
	admin, err := tls.LoadX509KeyPair(filepath.Join(dir, "admin", "cert.pem"), filepath.Join(dir, "admin", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	stranger := testpki.Root(t, "Natal Management CA").Leaf(t, "natal-admin-admin").TLS()
	for _, c := range []struct {
		name, url string
		cert      tls.Certificate
		want      int
	}{
		{"administrator on the admin address", "https://" + r.addresses["admin"] + "/api/v1/cas", admin, 200},
		{"stranger on the admin address", "https://" + r.addresses["admin"] + "/api/v1/cas", stranger, 401},
		{"administrator on the feed", "https://" + r.addresses["est"] + "/bridge/v1/devices", admin, 403},
		{"stranger on the feed", "https://" + r.addresses["est"] + "/bridge/v1/devices", stranger, 401},
		{"API on the EST address", "https://" + r.addresses["est"] + "/api/v1/cas", admin, 404},
		{"EST on the admin address", "https://" + r.addresses["admin"] + "/.well-known/est/cacerts", admin, 404},
	} {
		if got, body := r.get(t, dir, c.url, c.cert); got != c.want {
			t.Errorf("%s: %d %s", c.name, got, body)
		}
	}
}
