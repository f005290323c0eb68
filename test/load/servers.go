// The two servers as processes: started on free ports, watched through /proc, stopped by signal.

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type server struct {
	name    string
	url     string
	rsaURL  string
	public  string // HOST:PORT
	metrics string // HOST:PORT
	data    string
	args    []string
	trust   *x509.CertPool
	cmd     *exec.Cmd
}

// startReal makes an installation in data and serves it.
func startReal(ctx context.Context, data, birthCA string, rsa bool) (*server, error) {
	path, err := program("est-server")
	if err != nil {
		return nil, err
	}
	var ports [4]string
	for i := range ports {
		if ports[i], err = freeAddress(); err != nil {
			return nil, err
		}
	}
	s := &server{name: "est-server", url: "https://" + ports[0] + "/.well-known/est/simpleenroll", rsaURL: "https://" + ports[0] + "/.well-known/est/rsa/simpleenroll", public: ports[1], metrics: ports[3], data: data,
		args: []string{path, "run", "--data", data, "--host", "localhost", "--est-listen", ports[0], "--public-listen", ports[1], "--admin-listen", ports[2], "--metrics-listen", ports[3]}}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	commands := [][]string{{"birth-ca", "add", "default", birthCA}}
	if rsa {
		commands = append(commands, []string{"ca", "create", "rsa", "--parent", "root", "--key", "rsa:4096", "--subject", "CN=rsa"},
			[]string{"label", "add", "rsa", "--ca", "rsa", "--profile", "iot-device", "--auth", "birth"}, []string{"birth-ca", "add", "rsa", birthCA})
	}
	for _, args := range commands {
		if out, err := exec.CommandContext(ctx, path, append(args, "--data", data)...).CombinedOutput(); err != nil {
			s.stop()
			return nil, fmt.Errorf("est-server %s: %s", strings.Join(args, " "), out)
		}
	}
	s.trust, err = readPool(filepath.Join(data, "trust.pem"))
	return s, err
}

// start serves, and returns once the server is ready.
func (s *server) start(ctx context.Context) error {
	var output bytes.Buffer
	s.cmd = exec.CommandContext(ctx, s.args[0], s.args[1:]...)
	s.cmd.Stderr = &output
	if err := s.cmd.Start(); err != nil {
		return err
	}
	if err := wait(ctx, func() bool { return ready("http://" + s.metrics + "/readyz") }); err != nil {
		s.stop()
		return fmt.Errorf("est-server: %w: %s", err, output.String())
	}
	return nil
}

func startBare(ctx context.Context, dir, birthCA string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	trust, address := filepath.Join(dir, "bare.pem"), filepath.Join(dir, "bare.address")
	cmd := exec.CommandContext(ctx, self, "bare", "-birth-ca", birthCA, "-trust", trust, "-address", address)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{name: "bare handler", cmd: cmd}
	var at []byte
	if err := wait(ctx, func() bool { at, err = os.ReadFile(address); return err == nil && len(at) > 0 }); err != nil {
		s.stop()
		return nil, fmt.Errorf("bare handler: %w", err)
	}
	s.url = "https://" + string(at) + "/"
	s.trust, err = readPool(trust)
	return s, err
}

// stop may be called again.
func (s *server) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Wait()
}

// cpu is the process's user and system time so far.
func (s *server) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// peak is the most memory that was resident, in bytes.
func (s *server) peak() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

func readPool(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func ready(url string) bool {
	answer, err := http.Get(url)
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

func wait(ctx context.Context, done func() bool) error {
	limit := time.After(30 * time.Second)
	for !done() {
		select {
		case <-limit:
			return errors.New("not ready in 30 s")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
