// From flags to what package client takes: where the store is, whom to trust, who we are.

package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/natal-pki/natal/client"
	"github.com/natal-pki/natal/internal/clock"
)

var deviceID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// check refuses wrong usage, before anything is opened.
func (f *flags) check(command string) error {
	if f.Dir == "" {
		return errors.New("--dir is missing")
	}
	if command == "show" {
		return nil
	}
	if f.Server == "" {
		return errors.New("--server is missing")
	}
	switch {
	case f.ID != "" && !deviceID.MatchString(f.ID):
		return fmt.Errorf("--id %q: 1 to 64 letters, digits, dots, underscores and hyphens, the first a letter or digit", f.ID)
	case (f.BirthCert == "") != (f.BirthKey == ""):
		return errors.New("--birth-cert and --birth-key go together")
	case f.CodeFile != "" && f.BirthCert != "":
		return errors.New("--code-file and --birth-cert exclude each other")
	case f.Trust != "" && f.TrustFingerprint != "":
		return errors.New("--trust and --trust-fingerprint exclude each other")
	case command == "enroll" && !f.hasCredential():
		return errors.New("nothing to enroll with: give --code-file or EST_CODE, or --birth-cert and --birth-key")
	case f.BirthCert == "" && f.hasCredential() && f.ID == "" && command != "reenroll":
		return errors.New("--id is missing: it is the user name for the code")
	case f.Interval <= 0:
		return errors.New("--interval: it must be positive")
	}
	if f.MQTT != "" {
		if host, port, err := net.SplitHostPort(f.MQTT); err != nil || host == "" || port == "" {
			return fmt.Errorf("--mqtt %q: it must be HOST:PORT", f.MQTT)
		}
	}
	return checkKey(f.Key)
}

func checkKey(spec string) error {
	switch spec {
	case "ec:P-256", "ec:P-384", "rsa:2048", "rsa:3072":
		return nil
	}
	return fmt.Errorf("--key %q: ec:P-256, ec:P-384, rsa:2048 or rsa:3072", spec)
}

func (f *flags) hasCredential() bool {
	return f.CodeFile != "" || f.BirthCert != "" || os.Getenv("EST_CODE") != ""
}

type agent struct {
	flags
	stdin  io.Reader
	stdout io.Writer
	log    *slog.Logger
	clock  *clock.Clock
	store  *client.Store

	stdinOnce sync.Once
	stdinCode string
	stdinErr  error
}

func newAgent(f flags, stdin io.Reader, stdout, stderr io.Writer) *agent {
	return &agent{flags: f, stdin: stdin, stdout: stdout, log: slog.New(slog.NewTextHandler(stderr, nil)), clock: clock.System()}
}

func (a *agent) do(ctx context.Context, command string) (err error) {
	if command == "show" {
		if _, err := os.Stat(a.Dir); err != nil {
			return err
		}
	}
	if a.store, err = client.OpenStore(a.Dir); err != nil {
		return err
	}
	defer a.store.Close()
	switch command {
	case "enroll":
		return a.enroll(ctx)
	case "reenroll":
		return a.reenroll(ctx)
	case "run":
		return a.run(ctx)
	case "show":
		return a.show()
	}
	return fmt.Errorf("unknown command %q", command)
}

// newClient is made anew for each attempt: files may have come or changed since the last one.
func (a *agent) newClient() (*client.Client, error) {
	c := &client.Client{Server: a.Server, Label: a.Label, Clock: a.clock, UserAgent: "estclient-example"}
	anchors, err := a.store.Trust()
	switch {
	case err == nil:
		c.TrustAnchors = anchors // what an authenticated server said last is newer than any flag
	case a.Trust != "":
		if c.TrustAnchors, err = readCertificates(a.Trust); err != nil {
			return nil, fmt.Errorf("--trust: %w", err)
		}
	case a.TrustFingerprint != "":
		c.TrustFingerprint = a.TrustFingerprint
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("nothing to recognise the server by: give --trust or --trust-fingerprint, or put trust.pem into %s", a.Dir)
	default:
		return nil, err
	}
	return c, nil
}

// newEnrollClient is newClient with the credential for a first certificate.
func (a *agent) newEnrollClient() (*client.Client, client.Request, error) {
	c, err := a.newClient()
	if err != nil {
		return nil, client.Request{}, err
	}
	if a.BirthCert != "" {
		birth, err := readBirth(a.BirthCert, a.BirthKey)
		if err != nil {
			return nil, client.Request{}, err
		}
		c.Certificate = func() (*tls.Certificate, error) { return birth, nil }
		return c, client.Request{CommonName: a.birthID(birth.Leaf)}, nil
	}
	c.User = a.ID
	c.Password, err = a.code()
	return c, client.Request{CommonName: a.ID}, err
}

// birthID is the name that the server will give: the birth certificate's serial number attribute, or else its CN.
func (a *agent) birthID(leaf *x509.Certificate) string {
	switch {
	case a.ID != "":
		return a.ID
	case leaf.Subject.SerialNumber != "":
		return leaf.Subject.SerialNumber
	}
	return leaf.Subject.CommonName
}

func (a *agent) code() (string, error) {
	var code string
	switch {
	case a.CodeFile == "-":
		a.stdinOnce.Do(func() {
			var data []byte
			data, a.stdinErr = io.ReadAll(io.LimitReader(a.stdin, 4096))
			a.stdinCode = string(data)
		})
		if a.stdinErr != nil {
			return "", fmt.Errorf("--code-file -: %w", a.stdinErr)
		}
		code = a.stdinCode
	case a.CodeFile != "":
		data, err := os.ReadFile(a.CodeFile)
		if err != nil {
			return "", fmt.Errorf("--code-file: %w", err)
		}
		code = string(data)
	default:
		code = os.Getenv("EST_CODE")
	}
	code = strings.TrimSpace(code)
	if code == "" || strings.ContainsAny(code, "\r\n") || len(code) > 1024 {
		return "", errors.New("enrollment code: it must be one line")
	}
	return code, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := client.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

func readBirth(certPath, keyPath string) (*tls.Certificate, error) {
	chain, err := readCertificates(certPath)
	if err != nil {
		return nil, fmt.Errorf("--birth-cert: %w", err)
	}
	data, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("--birth-key: %w", err)
	}
	key, err := client.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("--birth-key: %s: %w", keyPath, err)
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); ok && !public.Equal(chain[0].PublicKey) {
		return nil, fmt.Errorf("--birth-key: %s is not the key of %s", keyPath, certPath)
	}
	id := client.Identity{Certificate: chain[0], Chain: chain, Key: key}
	return id.TLSCertificate(), nil
}

// file is the path of one of the store's files, for messages.
func (a *agent) file(name string) string { return filepath.Join(a.Dir, name) }
