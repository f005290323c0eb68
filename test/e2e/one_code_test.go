// One code, many requests at the same moment, each with a key of its own: one certificate, and everybody else learns nothing on the wire; the operator
// learns everything.

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestOneCodeOneCertificate(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	const id, at = "SN-000001", 6
	file := s.CodeFile(t, id)
	code := strings.TrimSpace(readText(t, file))
	state := func() string {
		t.Helper()
		var device struct{ State string }
		parse(t, s.MustCLI(t, "device", "show", id, "--json").Stdout, &device)
		return device.State
	}
	if got := state(); got != "new" {
		t.Errorf("before: %s, want new", got)
	}

	// said is all that the wire tells.
	said := func(client *http.Client, password string, csr []byte) string {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/.well-known/est/simpleenroll", strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
		if err != nil {
			return err.Error()
		}
		request.Header.Set("Content-Type", "application/pkcs10")
		request.SetBasicAuth(id, password)
		answer, err := client.Do(request)
		if err != nil {
			return err.Error()
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if answer.StatusCode == http.StatusOK {
			return "certificate"
		}
		return fmt.Sprint(answer.StatusCode, answer.Header["Est-Reason"], answer.Header["Www-Authenticate"], string(body), err)
	}
	uniform := said(s.HTTP(t), "a-guess-that-is-long-enough", testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil))
	if !strings.HasPrefix(uniform, "401 [not_authenticated]") {
		t.Fatalf("a wrong code: %s", uniform)
	}

	var answers [at]string
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i := range answers {
		client, csr := s.HTTP(t), testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
		ready.Add(1)
		done.Go(func() {
			ready.Done()
			<-start
			answers[i] = said(client, code, csr)
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
	got := map[string]int{}
	for _, a := range answers {
		got[a]++
	}
	if got["certificate"] != 1 || got[uniform] != at-1 {
		t.Errorf("%v, want one certificate and otherwise %s", got, uniform)
	}

	issued := certificates(t, s, "--device", id)
	if len(issued) != 1 || issued[0].State != "issued" {
		t.Fatalf("%+v, want exactly one certificate, issued", issued)
	}
	if got := state(); got != "generated" {
		t.Errorf("afterwards: %s, want generated", got)
	}
	var codes struct {
		Items []struct{ Device, State string }
	}
	parse(t, s.MustCLI(t, "code", "list", "--device", id, "--json").Stdout, &codes)
	if len(codes.Items) != 1 || codes.Items[0].State != "used" {
		t.Errorf("its codes: %+v, want one, used", codes.Items)
	}

	// The true cause stands in the log and in the audit log, for each of them, and names the certificate that won.
	cause := "was used for another key (certificate " + issued[0].Serial + ")"
	harness.Eventually(t, patience, fmt.Sprintf("%d lines of the log with %q", at-1, cause), func() bool { return strings.Count(s.Output(), cause) == at-1 })
	refusals := 0
	for line := range strings.Lines(s.MustCLI(t, "audit", "export", "--action", "enrollment_refused").Stdout) {
		var entry struct{ Detail json.RawMessage }
		if json.Unmarshal([]byte(line), &entry) == nil && strings.Contains(string(entry.Detail), cause) {
			refusals++
		}
	}
	if refusals != at-1 {
		t.Errorf("%d entries of the audit log say %q, want %d", refusals, cause, at-1)
	}
	s.MustCLI(t, "audit", "verify")
	if strings.Contains(s.Output(), code) {
		t.Error("the log has the code")
	}
}
