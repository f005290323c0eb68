// Package testserver runs an EST server inside a test: real TLS, real CAs, a real database in a temporary directory, and a
// clock that stands still until it is moved. What the built programs do is test/e2e's business.
package testserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/server/front"
	"github.com/natal-pki/natal/server/instance"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/server/telemetry"
	"github.com/natal-pki/natal/test/testpki"
)

// Actor is who the test's changes are audited as.
const Actor = "cli:uid=0"

// Server is a running server. Everything is stopped at the end of the test.
type Server struct {
	*instance.Instance
	Manual   *clock.Manual
	Metrics  *telemetry.Metrics
	Front    *front.Front
	Factory  *testpki.Authority // birth CA of the default label
	URL      string             // https://127.0.0.1:port
	PlainURL string             // the same handler without TLS

	devices     *atomic.Int64
	certificate *instance.ServerCertificate
}

// Start makes an instance and serves it. log may be nil.
func Start(t testing.TB, log *slog.Logger) *Server {
	t.Helper()
	dir := t.TempDir()
	manual := clock.NewManual(time.Now())
	passphrase := testpki.WriteFile(t, filepath.Join(dir, "passphrase"), []byte("only for a test\n"))
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	options := instance.Options{Dir: instance.Dir(filepath.Join(dir, "data")), PassphraseFile: passphrase, Clock: manual.Clock(), Log: log}
	inst, err := instance.Init(t.Context(), options, instance.Plan{PublicURL: "http://localhost:8080", PassphraseFile: passphrase})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inst.Close() })
	s := &Server{Instance: inst, Manual: manual, Factory: testpki.Root(t, "Factory CA"), devices: &atomic.Int64{}}
	if s.certificate, err = inst.ServerCertificate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Book.AddBirthCA(t.Context(), Actor, registration.Default, s.Factory.PEM()); err != nil {
		t.Fatal(err)
	}
	return s.Another(t, log)
}

// Another serves the same instance once more, with an EST front, metrics and addresses of its own. Making an instance is dear: keys are
// encrypted slowly on purpose.
func (s *Server) Another(t testing.TB, log *slog.Logger) *Server {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	other := *s
	other.Metrics = telemetry.New(front.Outcomes())
	var err error
	other.Front, err = front.New(front.Config{
		Book: s.Book, CA: s.CA, Anchors: s.ManagementTrust, Clock: s.Manual.Clock(), Log: log, Metrics: other.Metrics,
	})
	if err != nil {
		t.Fatal(err)
	}
	config := front.TLSConfig(s.certificate.Get, s.Manual.Clock())
	other.URL = "https://" + listen(t, front.Server(other.Front, config, log), true)
	other.PlainURL = "http://" + listen(t, front.Server(other.Front, nil, log), false)
	return &other
}

func listen(t testing.TB, srv *http.Server, withTLS bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		if withTLS {
			done <- srv.ServeTLS(l, "", "")
		} else {
			done <- srv.Serve(l)
		}
	}()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// AddLabel adds a label of profile iot-device under a CA, which is made below the root if there is none of that name.
func (s *Server) AddLabel(t testing.TB, name, caName string) {
	t.Helper()
	if _, err := s.CA.Get(t.Context(), caName); err != nil {
		_, err := s.CA.Create(t.Context(), Actor, ca.CreateRequest{
			Name: caName, Subject: "CN=" + caName, Key: "ec:P-256", Parent: instance.RootCA, Years: 5, Use: "broker", PublicURL: "http://localhost:8080",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	label := registration.Label{Name: name, CA: caName, Profile: "iot-device", Auth: []string{"code", "birth"}}
	if _, err := s.Book.AddLabel(t.Context(), Actor, label); err != nil {
		t.Fatal(err)
	}
}

// Anchor is the root that devices pin.
func (s *Server) Anchor(t testing.TB) *x509.Certificate {
	t.Helper()
	chain, err := s.ManagementChain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return chain[len(chain)-1]
}

// NewID returns a device id that was not used before.
func (s *Server) NewID() string { return fmt.Sprintf("SN-%06d", s.devices.Add(1)) }

// Client is an HTTP client that trusts the server and presents a certificate, if one is given.
func (s *Server) Client(t testing.TB, certificates ...tls.Certificate) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(s.Anchor(t))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certificates}, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}
