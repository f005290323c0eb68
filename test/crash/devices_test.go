// Package crash_test kills the built server, over and over, while devices enroll, and sends it hundreds of requests with one code at once.
// After each round test/invariants looks at the database and at what the devices received.
package crash_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/instance"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/invariants"
	"github.com/natal-pki/natal/test/testpki"
)

// site is a server under test, its administrator and its database.
type site struct {
	*harness.Server
	url   string
	admin *http.Client
	trust *x509.CertPool
}

func newSite(t *testing.T, o harness.ServerOptions, url string) *site {
	t.Helper()
	s := &site{Server: harness.StartServer(t, o), url: url}
	if url == "" {
		s.url = "sqlite:" + s.Data + "/est.db"
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return instance.Dir(s.Data).DialSocket(ctx) }
	s.admin = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	anchors, err := os.ReadFile(s.Trust())
	if err != nil {
		t.Fatal(err)
	}
	s.trust = x509.NewCertPool()
	s.trust.AppendCertsFromPEM(anchors)
	return s
}

// operate calls the administration API. An error means that the server is gone.
func (s *site) operate(method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, "http://admin.sock/api/v1"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := s.admin.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %d %s", method, path, answer.StatusCode, content)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(content, out)
}

// device is one device with a code.
type device struct {
	id, code string
	key      crypto.Signer
	got      []*x509.Certificate // every answer with a certificate
}

func (s *site) newDevice(t *testing.T, id string, key crypto.Signer) *device {
	t.Helper()
	d, err := s.tryDevice(id, key)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (s *site) tryDevice(id string, key crypto.Signer) (*device, error) {
	var code struct{ Code string }
	err := s.operate(http.MethodPost, "/codes", map[string]string{"device": id}, &code)
	return &device{id: id, key: key, code: code.Code}, err
}

// client is an HTTP client of its own address, 127.x.y.z, so that the throttle for wrong codes takes each for somebody else.
func (s *site) client(n int) *http.Client {
	from := &net.TCPAddr{IP: net.IPv4(127, 1, byte(n/250), byte(n%250+1))}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext:     (&net.Dialer{LocalAddr: from, Timeout: 5 * time.Second}).DialContext,
		TLSClientConfig: &tls.Config{RootCAs: s.trust, MinVersion: tls.VersionTLS13},
	}}
}

// csr is a request of the device for a key.
func (d *device) csr(t *testing.T, key crypto.Signer) []byte {
	return testpki.CSR(t, key, d.id, nil)
}

// warm opens the clients' connections, so that the requests of a round come at the same time and not as the handshakes end.
func (s *site) warm(t *testing.T, clients []*http.Client) {
	t.Helper()
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			answer, err := c.Get(s.URL() + "/.well-known/est/cacerts")
			if err != nil {
				t.Error(err)
				return
			}
			defer answer.Body.Close()
			if _, err := io.Copy(io.Discard, answer.Body); err != nil { // to the end, or the connection is not kept
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// clients are n warm clients.
func (s *site) clients(t *testing.T, n int) []*http.Client {
	t.Helper()
	list := make([]*http.Client, n)
	for i := range list {
		list[i] = s.client(i)
		t.Cleanup(list[i].CloseIdleConnections)
	}
	s.warm(t, list)
	return list
}

// enroll sends one request, with curl's simplicity: it is the protocol that counts here, not our client.
func (s *site) enroll(c *http.Client, d *device, csr []byte) (status int, certificate *x509.Certificate, err error) {
	r, err := http.NewRequest(http.MethodPost, s.URL()+"/.well-known/est/simpleenroll", bytes.NewReader([]byte(base64.StdEncoding.EncodeToString(csr))))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/pkcs10")
	r.SetBasicAuth(d.id, d.code)
	answer, err := c.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return answer.StatusCode, nil, fmt.Errorf("%d %s", answer.StatusCode, body)
	}
	der, err := wire.DecodeBase64(body)
	if err != nil {
		return answer.StatusCode, nil, err
	}
	certificates, err := wire.ParseCertsOnly(der)
	if err != nil || len(certificates) == 0 {
		return answer.StatusCode, nil, fmt.Errorf("an answer 200 without a certificate: %v", err)
	}
	return answer.StatusCode, certificates[0], nil
}

func received(devices []*device) (list []invariants.Received) {
	for _, d := range devices {
		for _, c := range d.got {
			list = append(list, invariants.Received{Device: d.id, Credential: "code of " + d.id, Certificate: c.Raw})
		}
	}
	return list
}

// require waits for the server to have caught up - revocations of before a crash are published in the background - and then holds it to
// the invariants.
func (s *site) require(t *testing.T, devices []*device) {
	t.Helper()
	state := invariants.State{Settled: true}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if len(invariants.Check(t.Context(), s.url, state, received(devices)...)) == 0 {
			return
		}
	}
	state.Now = time.Now()
	invariants.Require(t, s.url, state, received(devices)...)
}

// keys are for one certificate each: a key of another end entity is refused.
func keys(t *testing.T, n int) []crypto.Signer {
	t.Helper()
	list := make([]crypto.Signer, n)
	for i := range list {
		list[i] = testpki.Key(t, "ec:P-256")
	}
	return list
}
