// The same cases against the built program, set up by its commands.

package conformance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/natal-pki/natal/internal/conformance"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestBuiltServer(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the built server")
	}
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	dir := t.TempDir()
	factory := testpki.Root(t, "Factory CA")
	s.MustCLI(t, "birth-ca", "add", "default", testpki.WriteFile(t, filepath.Join(dir, "factory.pem"), factory.PEM()))
	for _, name := range []string{"ca-a", "ca-b"} {
		s.MustCLI(t, "ca", "create", name, "--subject", "CN="+name, "--key", "ec:P-256", "--parent", "root")
	}
	labels := conformance.Labels{A: "plant-a", B: "plant-b", LikeOperation: "my-cacerts-ca", Long: strings.Repeat("l", 128)}
	for label, caName := range map[string]string{labels.A: "ca-a", labels.B: "ca-b", labels.LikeOperation: "ca-a", labels.Long: "ca-a"} {
		s.MustCLI(t, "label", "add", label, "--ca", caName, "--profile", "iot-device", "--auth", "code,birth")
	}
	anchors, err := os.ReadFile(s.Trust())
	if err != nil {
		t.Fatal(err)
	}
	var devices atomic.Int64
	newID := func() string { return fmt.Sprintf("SN-%06d", devices.Add(1)) }
	birth := func(options ...testpki.Option) func(context.Context) (conformance.Identity, error) {
		return func(context.Context) (conformance.Identity, error) {
			id := newID()
			return conformance.Identity{Device: id, Certificate: factory.Birth(t, id, options...).TLS()}, nil
		}
	}
	roll := func(old, next string) func(context.Context) error {
		return func(context.Context) error {
			s.MustCLI(t, "ca", "rollover", old)
			s.MustCLI(t, "ca", "activate", next)
			return nil
		}
	}
	session := &conformance.Session{Target: conformance.Target{
		URL: s.URL(), Anchors: testpki.ParsePEM(t, anchors), Labels: labels,
		Code: func(_ context.Context, label string) (conformance.Code, error) {
			id := newID()
			args := []string{}
			if label != "" {
				args = []string{"--label", label}
			}
			code, err := os.ReadFile(s.CodeFile(t, id, args...))
			return conformance.Code{Device: id, Code: strings.TrimSpace(string(code))}, err
		},
		RollRoot:     roll("root", "root-2"),
		RollIssuer:   roll("devices", "devices-2"),
		Birth:        birth(),
		ExpiredBirth: birth(testpki.Expired()),
		Revoke: func(_ context.Context, cert *x509.Certificate) error {
			s.MustCLI(t, "cert", "revoke", cert.SerialNumber.Text(16), "--reason", "keyCompromise")
			return nil
		},
	}}
	for _, c := range conformance.Cases() {
		if c.Slow {
			continue // TestCases has it: nothing of it depends on the program
		}
		t.Run(c.ID, func(t *testing.T) {
			err := session.Run(t.Context(), c)
			if errors.Is(err, conformance.ErrSkip) {
				t.Skip(err)
			}
			if err != nil {
				t.Errorf("%s (%s, %s): %v", c.Title, c.Level, c.Source, err)
			}
		})
	}
}
