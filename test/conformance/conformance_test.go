// Package conformance runs the cases of internal/conformance against a server in this process.
package conformance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/conformance"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// server gives the cases what they need of a running server.
type server struct{ *testserver.Server }

func startServer(t testing.TB) server {
	t.Helper()
	var log *slog.Logger
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return server{testserver.Start(t, log)}
}

func (s server) code(ctx context.Context, label string) (conformance.Code, error) {
	if label == "" {
		label = registration.Default
	}
	id := s.NewID()
	code, err := s.Book.CreateCode(ctx, testserver.Actor, id, label, 0, nil)
	return conformance.Code{Device: id, Code: code.Code}, err
}

func (s server) birth(t testing.TB, options ...testpki.Option) func(context.Context) (conformance.Identity, error) {
	return func(context.Context) (conformance.Identity, error) {
		id := s.NewID()
		leaf := s.Factory.Birth(t, id, options...)
		return conformance.Identity{Device: id, Certificate: leaf.TLS()}, nil
	}
}

func (s server) revoke(ctx context.Context, cert *x509.Certificate) error {
	_, err := s.CA.Revoke(ctx, testserver.Actor, cert.SerialNumber.Text(16), "keyCompromise")
	return err
}

// roll makes the successor of a CA and lets it take over.
func (s server) roll(old, next string) func(context.Context) error {
	return func(ctx context.Context) error {
		if _, err := s.CA.Rollover(ctx, testserver.Actor, ca.RolloverRequest{CA: old}); err != nil {
			return err
		}
		_, err := s.CA.Activate(ctx, testserver.Actor, next, ca.Activation{MoveLabels: s.Book.MoveLabels})
		return err
	}
}

func (s server) target(t testing.TB) conformance.Target {
	t.Helper()
	long := strings.Repeat("l", 128)
	s.AddLabel(t, "plant-a", "ca-a")
	s.AddLabel(t, "plant-b", "ca-b")
	s.AddLabel(t, "my-cacerts-ca", "ca-a")
	s.AddLabel(t, long, "ca-a")
	return conformance.Target{
		URL: s.URL, PlainURL: s.PlainURL, Anchors: []*x509.Certificate{s.Anchor(t)},
		Labels:       conformance.Labels{A: "plant-a", B: "plant-b", LikeOperation: "my-cacerts-ca", Long: long},
		Code:         s.code,
		Birth:        s.birth(t),
		ExpiredBirth: s.birth(t, testpki.Expired()),
		Revoke:       s.revoke,
		RollRoot:     s.roll("root", "root-2"),
		RollIssuer:   s.roll("devices", "devices-2"),
		Pass:         func(_ context.Context, d time.Duration) error { s.Manual.Advance(d); return nil },
	}
}

// TestCases has one subtest for each case, by number. They run one after the other, because one of them moves the clock; the slow ones at the end.
func TestCases(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	session := &conformance.Session{Target: s.target(t)}
	for _, c := range conformance.Cases() {
		t.Run(c.ID, func(t *testing.T) {
			if c.Slow {
				if testing.Short() {
					t.Skip("slow")
				}
				t.Parallel()
			}
			if err := session.Run(t.Context(), c); err != nil {
				t.Errorf("%s (%s, %s): %v", c.Title, c.Level, c.Source, err)
			}
		})
	}
}

// A server that is not there passes no case.
func TestCasesFailWithoutAServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	root := testpki.Root(t, "Nobody")
	session := &conformance.Session{Target: conformance.Target{
		URL: "https://" + address, PlainURL: "http://" + address, Anchors: []*x509.Certificate{root.Certificate},
		Labels: conformance.Labels{A: "a", B: "b", LikeOperation: "my-cacerts-ca", Long: strings.Repeat("l", 128)},
		Code: func(context.Context, string) (conformance.Code, error) {
			return conformance.Code{Device: "d", Code: "abcdef"}, nil
		},
		Birth: func(context.Context) (conformance.Identity, error) {
			return conformance.Identity{Device: "d", Certificate: root.Birth(t, "d").TLS()}, nil
		},
		ExpiredBirth: func(context.Context) (conformance.Identity, error) {
			return conformance.Identity{Device: "d", Certificate: root.Birth(t, "d").TLS()}, nil
		},
		Revoke:     func(context.Context, *x509.Certificate) error { return nil },
		RollRoot:   func(context.Context) error { return nil },
		RollIssuer: func(context.Context) error { return nil },
	}}
	for _, c := range conformance.Cases() {
		if err := session.Run(t.Context(), c); err == nil || errors.Is(err, conformance.ErrSkip) {
			t.Errorf("%s without a server: %v", c.ID, err)
		}
	}
}

// Numbers are unique and every group of the list is there.
func TestCaseNumbers(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range conformance.Cases() {
		if seen[c.ID] {
			t.Errorf("two cases %s", c.ID)
		}
		seen[c.ID] = true
	}
	for group, last := range map[string]int{"A": 14, "B": 9, "E": 17, "F": 6, "G": 5, "H": 6, "J": 8, "C": 8} {
		for n := 1; n <= last; n++ {
			if id := fmt.Sprint(group, n); !seen[id] {
				t.Errorf("no case %s", id)
			}
		}
	}
}
