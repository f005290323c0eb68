// Codes and certificates in the wrong hands, at the wrong label, too often.

package front_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/instance"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// 60 devices at once, one code and 60 keys: one certificate.
func oneCodeManyKeys(t *testing.T, s *testserver.Server) {
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	const devices = 60
	client := s.Client(t)
	statuses := make([]int, devices)
	var wg sync.WaitGroup
	for i := range devices {
		csr := testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
		wg.Go(func() {
			answer, _ := post(t, client, enrollURL(s), csr, func(r *http.Request) { r.SetBasicAuth(id, code.Code) })
			statuses[i] = answer.StatusCode
		})
	}
	wg.Wait()
	good := 0
	for _, status := range statuses {
		switch status {
		case http.StatusOK:
			good++
		case http.StatusUnauthorized:
		default:
			t.Errorf("status %d", status)
		}
	}
	if good != 1 {
		t.Errorf("%d certificates from one code", good)
	}
}

// Too many wrong codes of an address are answered with 429, under whatever address it claims to have; the right code still works.
func wrongCodesAreThrottled(t *testing.T, s *testserver.Server) {
	s = s.Another(t, nil)
	id := s.NewID()
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, csr := s.Client(t), testpki.CSR(t, testpki.Key(t, "ec:P-256"), id, nil)
	limited := 0
	for i := range 150 {
		answer, _ := post(t, client, enrollURL(s), csr, func(r *http.Request) {
			r.SetBasicAuth(id, "wrong")
			r.Header.Set("X-Forwarded-For", "192.0.2."+string(rune('0'+i%10)))
			r.Header.Set("X-Real-IP", "192.0.2.1")
		})
		switch answer.StatusCode {
		case http.StatusUnauthorized:
			if limited > 0 {
				t.Fatalf("attempt %d: 401 after 429, with a clock that stands still", i)
			}
		case http.StatusTooManyRequests:
			limited++
			if answer.Header.Get("Retry-After") == "" {
				t.Fatal("429 without Retry-After")
			}
		default:
			t.Fatalf("attempt %d: %d", i, answer.StatusCode)
		}
	}
	if limited == 0 {
		t.Error("never throttled")
	}
	answer, body := post(t, client, enrollURL(s), csr, func(r *http.Request) { r.SetBasicAuth(id, code.Code) })
	if answer.StatusCode != http.StatusOK {
		t.Errorf("the right code from a throttled address: %d %s", answer.StatusCode, body)
	}
}

// A request for the bridge's own host name at label mqtt-server needs a bridge certificate.
func bridgeLabel(t *testing.T, s *testserver.Server) {
	host := "mqtt.example.com"
	code, err := s.Book.CreateCode(t.Context(), testserver.Actor, host, "bridge", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := testpki.Key(t, "ec:P-256")
	answer, body := post(t, s.Client(t), s.URL+wire.Path("bridge", wire.OpSimpleEnroll), testpki.CSR(t, key, host, nil), func(r *http.Request) { r.SetBasicAuth(host, code.Code) })
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("bridge: %d %s", answer.StatusCode, body)
	}
	bridge := s.Client(t, tls.Certificate{Certificate: [][]byte{issued(t, body).Raw}, PrivateKey: key})
	serverCSR := func(name string) []byte {
		return testpki.CSR(t, testpki.Key(t, "ec:P-256"), name, func(r *x509.CertificateRequest) { r.DNSNames = []string{name} })
	}
	url := s.URL + wire.Path("mqtt-server", wire.OpSimpleEnroll)
	answer, body = post(t, bridge, url, serverCSR(host), nil)
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("server certificate: %d %s", answer.StatusCode, body)
	}
	serverCertificate := issued(t, body)
	if err := serverCertificate.VerifyHostname(host); err != nil {
		t.Error(err)
	}
	if answer, body := post(t, bridge, url, serverCSR("other.example.com"), nil); answer.StatusCode < 400 || answer.StatusCode > 499 {
		t.Errorf("another host: %d %s", answer.StatusCode, body)
	}
	// a device's certificate, and the server certificate itself, authorise nothing there
	device := s.Factory.Birth(t, s.NewID())
	if answer, body := post(t, s.Client(t, device.TLS()), url, serverCSR(host), nil); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("birth certificate: %d %s", answer.StatusCode, body)
	}
	w := httptest.NewRecorder()
	r := request(t.Context(), serverCertificate, serverCSR(host))
	r.URL.Path = wire.Path("mqtt-server", wire.OpSimpleEnroll)
	if s.Front.ServeHTTP(w, r); w.Code != http.StatusUnauthorized {
		t.Errorf("server certificate as client: %d %s", w.Code, w.Body)
	}
}

// A revoked certificate of ours gets no second chance as a birth certificate.
func ownCertificatesAreNoBirthCertificates(t *testing.T, s *testserver.Server) {
	id := s.NewID()
	birth := s.Factory.Birth(t, id)
	key := testpki.Key(t, "ec:P-256")
	_, body := post(t, s.Client(t, birth.TLS()), enrollURL(s), testpki.CSR(t, key, id, nil), nil)
	cert := issued(t, body)
	root, err := s.CA.Get(t.Context(), instance.RootCA)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Book.AddBirthCA(t.Context(), testserver.Actor, registration.Default, testpki.CertPEM(root.Certificate)); err == nil {
		t.Error("the installation's own root became a birth CA")
	}
	if _, err := s.CA.Revoke(t.Context(), testserver.Actor, cert.SerialNumber.Text(16), "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	client := s.Client(t, tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key})
	if answer, body := post(t, client, enrollURL(s), testpki.CSR(t, key, id, nil), nil); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
}
