// est-server on free loopback ports, with the files it wrote.

package harness

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// ServerOptions say how to start est-server; the zero value is "est-server run" of the release build on a fresh directory.
type ServerOptions struct {
	Data  string   // data directory; default: a new one
	Verb  string   // "run" (default) or "serve"
	Hooks bool     // the testhooks build
	Cgo   bool     // the build with PKCS#11
	Args  []string // more arguments
	Env   []string
}

// Server is a running est-server.
type Server struct {
	*Process
	Binary string
	Data   string

	EST, Public, Admin, Metrics string // HOST:PORT of the four listeners

	options ServerOptions
}

// StartServer starts est-server and waits until it is ready.
func StartServer(t testing.TB, o ServerOptions) *Server {
	t.Helper()
	s := &Server{Data: o.Data, options: o,
		EST: FreeAddress(t), Public: FreeAddress(t), Admin: FreeAddress(t), Metrics: FreeAddress(t)}
	if s.Data == "" {
		s.Data = filepath.Join(t.TempDir(), "data")
	}
	if o.Verb == "" {
		s.options.Verb = "run"
	}
	s.Binary = Binary(t, "est-server")
	if o.Hooks {
		s.Binary = HooksBinary(t, "est-server")
	}
	if o.Cgo {
		s.Binary = CgoBinary(t, "est-server")
	}
	s.Start(t)
	return s
}

// Start starts the server (again, after Stop or Kill), on the same addresses and data.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.Launch(t)
	Eventually(t, 60*time.Second, "est-server to be ready", func() bool {
		if !s.Running() {
			t.Fatalf("est-server ended by itself:\n%s", s.Output())
		}
		return s.Ready()
	})
}

// Launch is Start for a server that does not get ready.
func (s *Server) Launch(t testing.TB) {
	t.Helper()
	s.Process = Command{Path: s.Binary, Args: s.args(), Env: s.options.Env}.Start(t)
}

func (s *Server) args() []string {
	args := []string{s.options.Verb, "--data", s.Data,
		"--est-listen", s.EST, "--public-listen", s.Public, "--admin-listen", s.Admin, "--metrics-listen", s.Metrics}
	if s.options.Verb == "run" {
		args = append(args, "--host", "localhost", "--host", "127.0.0.1")
	}
	return append(args, s.options.Args...)
}

// Ready says whether /readyz answers 200.
func (s *Server) Ready() bool {
	client := http.Client{Timeout: 2 * time.Second}
	answer, err := client.Get("http://" + s.Metrics + "/readyz")
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// URL is the address of the EST listener, "https://127.0.0.1:PORT".
func (s *Server) URL() string { return "https://" + s.EST }

// Trust is the file with the trust anchor of the EST server.
func (s *Server) Trust() string { return filepath.Join(s.Data, "trust.pem") }

// CLI runs an est-server command on the server's data directory, whatever its exit code.
func (s *Server) CLI(t testing.TB, args ...string) Result {
	t.Helper()
	return Command{Path: s.Binary, Args: append([]string{"--data", s.Data}, args...), Env: s.options.Env}.Run(t)
}

// MustCLI is CLI for a command that has to succeed.
func (s *Server) MustCLI(t testing.TB, args ...string) Result {
	t.Helper()
	return Command{Path: s.Binary, Args: append([]string{"--data", s.Data}, args...), Env: s.options.Env}.MustRun(t)
}

// CodeFile makes an enrollment code for the device and returns the 0600 file that holds it.
func (s *Server) CodeFile(t testing.TB, device string, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "code")
	s.MustCLI(t, append([]string{"code", "create", device, "--out", file}, args...)...)
	return file
}

// HTTP is a client that trusts the server's anchor; with a certificate it presents that.
func (s *Server) HTTP(t testing.TB, certificates ...tls.Certificate) *http.Client {
	t.Helper()
	anchors, err := os.ReadFile(s.Trust())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(anchors) {
		t.Fatalf("%s: no certificate", s.Trust())
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool, Certificates: certificates, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// Get reads a page of the public or metrics listener ("http://..."), or of the EST listener.
func (s *Server) Get(t testing.TB, url string) (status int, body []byte, header http.Header) {
	t.Helper()
	answer, err := s.HTTP(t).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("read %s: %v", url, err)
	}
	return answer.StatusCode, body, answer.Header
}
