package front_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// A wrong code leaves one line in the audit log, with the cause and without the code; a request without any credential leaves none, and
// is no refusal in the metrics.
func refusalIsAudited(t *testing.T, s *testserver.Server) {
	s = s.Another(t, nil)
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
	const refused = `est_issuance_refused_total{label="default",reason="not_authenticated"}`
	if answer, _ := post(t, s.Client(t), enrollURL(s), csr, nil); answer.StatusCode != http.StatusUnauthorized {
		t.Fatalf("without a credential: %d", answer.StatusCode)
	}
	if line := grep(metrics(t, s), refused); strings.HasSuffix(line, " 1") {
		t.Errorf("a request without a credential counts as refused: %s", line)
	}
	answer, _ := post(t, s.Client(t), enrollURL(s), csr, func(r *http.Request) { r.SetBasicAuth(id, "wrong-code-of-this-test") })
	if answer.StatusCode != http.StatusUnauthorized {
		t.Fatalf("with a wrong code: %d", answer.StatusCode)
	}
	if line := grep(metrics(t, s), refused); !strings.HasSuffix(line, " 1") { // before the swapped one
		t.Errorf("a wrong code does not count as refused: %s", line)
	}
	// Fields that were swapped: the code stands where the name should be.
	if answer, _ := post(t, s.Client(t), enrollURL(s), csr, func(r *http.Request) { r.SetBasicAuth(code.Code, id) }); answer.StatusCode != http.StatusUnauthorized {
		t.Fatalf("with name and code swapped: %d", answer.StatusCode)
	}
	var log strings.Builder
	if err := audit.Export(t.Context(), s.DB, &log, audit.Filter{}); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "enrollment_refused") && strings.Contains(line, id) {
			lines++
		}
	}
	if lines != 1 {
		t.Errorf("%d lines for one refusal", lines)
	}
	for _, secret := range []string{"wrong-code-of-this-test", code.Code} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the audit log holds %q", secret)
		}
	}
}
