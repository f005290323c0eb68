// What the server adds to the work that no enrollment can do without. TLS is left out on both sides: make bench has it.

package front_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// BenchmarkEnroll issues durable certificates by birth certificate, 16 at a time.
func BenchmarkEnroll(b *testing.B) {
	s := testserver.Start(b, nil)
	births, csrs := make([]*x509.Certificate, b.N), make([][]byte, b.N)
	for i := range births {
		births[i] = s.Factory.Birth(b, s.NewID()).Certificate
		csrs[i] = testpki.CSR(b, testpki.Key(b, "ec:P-256"), births[i].Subject.CommonName, nil)
	}
	var next atomic.Int64
	b.SetParallelism(8)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := next.Add(1) - 1
			w := httptest.NewRecorder()
			s.Front.ServeHTTP(w, request(context.Background(), births[i], csrs[i]))
			if w.Code != http.StatusOK {
				b.Errorf("%d %s", w.Code, w.Body)
				return
			}
		}
	})
}

// BenchmarkBare verifies the birth certificate, checks the request and signs: no store, no policy.
func BenchmarkBare(b *testing.B) {
	factory, authority := testpki.Root(b, "Factory CA"), testpki.Root(b, "Issuing CA")
	leaf := factory.Birth(b, "SN-1").Certificate
	der := testpki.CSR(b, testpki.Key(b, "ec:P-256"), "SN-1", nil)
	options := x509.VerifyOptions{Roots: testpki.Pool(factory), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := leaf.Verify(options); err != nil {
				b.Fatal(err)
			}
			csr, err := x509.ParseCertificateRequest(der)
			if err != nil || csr.CheckSignature() != nil {
				b.Fatal(err)
			}
			template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: csr.Subject, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
			if _, err := x509.CreateCertificate(rand.Reader, template, authority.Certificate, csr.PublicKey, authority.Key); err != nil {
				b.Fatal(err)
			}
		}
	})
}
