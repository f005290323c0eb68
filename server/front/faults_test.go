//go:build testhooks

// Steps that fail under a request, and a device that hangs up in the middle of one.

package front_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// Not parallel with TestFront: faults are set for the whole process.
func TestFaults(t *testing.T) {
	s := testserver.Start(t, nil)
	t.Cleanup(func() { fault.Set(nil) })
	enroll := func(ctx context.Context, leaf *testpki.Leaf, csr []byte) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		s.Front.ServeHTTP(w, request(ctx, leaf.Certificate, csr))
		return w
	}
	device := func() (*testpki.Leaf, []byte) {
		leaf := s.Factory.Birth(t, s.NewID())
		return leaf, testpki.CSR(t, testpki.Key(t, "ec:P-256"), leaf.Certificate.Subject.CommonName, nil)
	}

	for _, step := range []string{"ca.intend", "ca.sign", "ca.issued"} {
		for _, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
			leaf, csr := device()
			fault.Set(func(name string) fault.Mode {
				if name == step {
					return mode
				}
				return fault.None
			})
			w := enroll(t.Context(), leaf, csr)
			fault.Set(nil)
			if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "injected") {
				t.Errorf("%s, mode %d: %d %v %s", step, mode, w.Code, w.Header(), w.Body)
			}
			first := enroll(t.Context(), leaf, csr)
			again := enroll(t.Context(), leaf, csr)
			if first.Code != http.StatusOK || !bytes.Equal(first.Body.Bytes(), again.Body.Bytes()) {
				t.Errorf("%s, mode %d: the repeat: %d %s, then %d", step, mode, first.Code, first.Body, again.Code)
			}
		}
	}

	leaf, csr := device()
	ctx, hangUp := context.WithCancel(t.Context())
	fault.Set(func(name string) fault.Mode {
		if name == "ca.intend" {
			hangUp()
		}
		return fault.None
	})
	w := enroll(ctx, leaf, csr)
	fault.Set(nil)
	if ctx.Err() == nil {
		t.Fatal("the step was not reached")
	}
	if w.Code != http.StatusOK {
		t.Fatalf("hung up at the first write: %d %s", w.Code, w.Body)
	}
	if again := enroll(t.Context(), leaf, csr); again.Body.String() != w.Body.String() || again.Header().Get("Content-Type") != wire.TypeCertsOnly {
		t.Error("the repeat got another certificate")
	}
}
