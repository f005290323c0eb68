package front_test

import (
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/server/telemetry"
	"github.com/natal-pki/natal/test/testserver"
)

var emptyChecks telemetry.Checks

// waitingCA adds a label "waiting" whose CA has no certificate yet.
func waitingCA(t testing.TB, s *testserver.Server) {
	t.Helper()
	_, err := s.CA.Create(t.Context(), testserver.Actor, ca.CreateRequest{Name: "external", Subject: "CN=External", Key: "ec:P-256", External: true, PublicURL: "http://localhost:8080"})
	if err != nil {
		t.Fatal(err)
	}
	label := registration.Label{Name: "waiting", CA: "external", Profile: "iot-device", Auth: []string{"code"}}
	if _, err := s.Book.AddLabel(t.Context(), testserver.Actor, label); err != nil {
		t.Fatal(err)
	}
}
