// What the story is played on: free ports, processes with their logs, one line a step.

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type stage struct {
	ctx   context.Context
	dir   string
	begun time.Time

	est, public, admin, metrics           string
	mqtt, control, backend, bridgeMetrics string

	running                   []*exec.Cmd
	backendLog, first, second *logFile
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

func (s *stage) trust() string { return s.path("data/trust.pem") }

func (s *stage) say(format string, args ...any) error {
	_, err := fmt.Printf("[%5.1f s] %s\n", time.Since(s.begun).Seconds(), fmt.Sprintf(format, args...))
	return err
}

func (s *stage) ports() error {
	for _, address := range []*string{&s.est, &s.public, &s.admin, &s.metrics, &s.mqtt, &s.control, &s.backend, &s.bridgeMetrics} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		*address = l.Addr().String()
	}
	return nil
}

func port(address string) string {
	_, p, _ := net.SplitHostPort(address)
	return p
}

// start starts a program whose output goes to a log; stop ends it.
func (s *stage) start(name, path string, args ...string) (*logFile, error) {
	log, err := os.Create(s.path(name + ".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.running = append(s.running, cmd)
	return &logFile{path: log.Name()}, nil
}

// stop ends everything, last started first.
func (s *stage) stop() {
	for i := len(s.running) - 1; i >= 0; i-- {
		cmd := s.running[i]
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
	}
}

func (s *stage) run(path string, args ...string) error {
	cmd := exec.CommandContext(s.ctx, path, args...)
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, out)
	}
	return nil
}

func (s *stage) cli(args ...string) error {
	return s.run(built("est-server"), append(args, "--data", s.path("data"))...)
}

// until waits for a condition; when it does not come true, the error shows the ends of the logs.
func (s *stage) until(what string, ok func() bool) error {
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-limit:
			return errors.New("waited 20 s for " + what + "\n" + s.logs())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func (s *stage) logs() string {
	var all strings.Builder
	paths, _ := filepath.Glob(s.path("*.log"))
	for _, path := range paths {
		data, _ := os.ReadFile(path)
		fmt.Fprintf(&all, "--- %s\n%s\n", filepath.Base(path), data[max(0, len(data)-1500):])
	}
	return all.String()
}

type logFile struct{ path string }

func (l *logFile) count(text string) int {
	data, _ := os.ReadFile(l.path)
	return strings.Count(string(data), text)
}

func (l *logFile) has(text string) bool { return l.count(text) > 0 }

// last is the last line that holds text.
func (l *logFile) last(text string) string {
	data, _ := os.ReadFile(l.path)
	found := ""
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, text) {
			found = strings.TrimSpace(line)
		}
	}
	return found
}

func answers(url string) bool {
	answer, err := http.Get(url)
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

func listening(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func writeFile(path, text string) error {
	return os.WriteFile(path, []byte(text), 0o644)
}

// makeBirth plays the factory: a birth CA, and one birth certificate with its key.
func makeBirth(caFile, certFile, keyFile, id string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Factory birth CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	birth := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Thing 3000", SerialNumber: id}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(20, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, birth, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(caFile, "CERTIFICATE", caDER), writePEM(certFile, "CERTIFICATE", der), writePEM(keyFile, "PRIVATE KEY", keyDER))
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
