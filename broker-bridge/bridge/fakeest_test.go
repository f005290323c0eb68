// As much of an EST server as a bridge uses: codes for label bridge, the bridge's certificate for label mqtt-server.

package bridge

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/wire"
)

// certificateLife is shorter than a canary's and a CRL's, so that a test can outlive it alone.
const certificateLife = 2 * time.Hour

func (f *fakeFeed) est(w http.ResponseWriter, r *http.Request) {
	rest, _ := strings.CutPrefix(r.URL.Path, wire.PathPrefix+"/")
	label, operation, labelled := strings.Cut(rest, "/")
	if !labelled {
		operation, label = label, ""
	}
	switch operation {
	case wire.OpCACerts:
		f.certsOnly(w, f.root.Certificate, f.management.Certificate)
	case wire.OpCSRAttrs:
		w.WriteHeader(http.StatusNoContent)
	case wire.OpSimpleEnroll, wire.OpSimpleReenroll:
		f.enroll(w, r, label)
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeFeed) certsOnly(w http.ResponseWriter, certs ...*x509.Certificate) {
	der, err := wire.CertsOnly(certs...)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", wire.TypeCertsOnly)
	w.Write(wire.EncodeBase64(der))
}

func (f *fakeFeed) enroll(w http.ResponseWriter, r *http.Request, label string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	user, code, _ := r.BasicAuth()
	byCode := code != "" && f.codes[user] == code
	byCertificate := len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].CheckSignatureFrom(f.management.Certificate) == nil
	if byCertificate {
		user = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	if !byCertificate && (!byCode || label != "bridge") {
		w.Header()[wire.AuthenticateHeader] = []string{`Basic realm="est"`}
		http.Error(w, "not_authenticated: no", http.StatusUnauthorized)
		return
	}
	body, _ := io.ReadAll(r.Body)
	der, err := wire.DecodeBase64(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil || csr.Subject.CommonName != user {
		http.Error(w, "bad_csr: no", http.StatusBadRequest)
		return
	}
	f.serials++
	now := f.now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(f.serials), Subject: pkix.Name{CommonName: user}, DNSNames: csr.DNSNames, IPAddresses: csr.IPAddresses,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(certificateLife), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if label == "mqtt-server" {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	raw, err := x509.CreateCertificate(rand.Reader, t, f.management.Certificate, csr.PublicKey, f.management.Key)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	cert, _ := x509.ParseCertificate(raw)
	f.certsOnly(w, cert)
}
