// A renewed certificate counts from the next request on, also while a long poll keeps a connection busy.

package bridge

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/test/testpki"
)

func TestReconnectLeavesABusyConnection(t *testing.T) {
	t.Parallel()
	root := testpki.Root(t, "root")
	var mu sync.Mutex
	seen, refused := "", "" // certificate of the last request; whose certificate does not count any more
	polling, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = r.TLS.PeerCertificates[0].Subject.CommonName
		no := seen == refused
		mu.Unlock()
		if no {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.URL.Path == "/bridge/v1/changes" {
			close(polling)
			<-release
		}
		w.Write([]byte("{}"))
	}))
	pair := root.Leaf(t, "127.0.0.1", testpki.Names("127.0.0.1"), testpki.EKU(x509.ExtKeyUsageServerAuth)).TLS()
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()
	defer server.Close()
	own := root.Leaf(t, "first").TLS()
	identity := func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		c := own
		return &c, nil
	}
	renew := func(name string) {
		c := root.Leaf(t, name).TLS()
		mu.Lock()
		defer mu.Unlock()
		own = c
	}
	by := func() string {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
	f := NewFeed(server.URL, fixed(root.Certificate), identity, clock.System())
	ended := make(chan error)
	go func() {
		_, err := f.Changes(t.Context(), 1, time.Minute)
		ended <- err
	}()
	<-polling
	renew("second")
	f.Reconnect()
	close(release)
	if err := <-ended; err != nil {
		t.Fatalf("the poll under way: %v", err)
	}
	for range 3 {
		if _, err := f.Devices(t.Context()); err != nil || by() != "second" {
			t.Errorf("after the renewal: the server saw %q, %v", by(), err)
		}
	}

	// A refused certificate is not presented twice, if there is another one by now.
	renew("third")
	mu.Lock()
	refused = "second"
	mu.Unlock()
	if _, err := f.Devices(t.Context()); err == nil {
		t.Error("the server refused, and there is no error")
	}
	if _, err := f.Devices(t.Context()); err != nil || by() != "third" {
		t.Errorf("after a refusal: the server saw %q, %v", by(), err)
	}
}
