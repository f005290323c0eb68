// Canaries: certificates of reserved names that let a bridge prove what its broker accepts and refuses.

package feed

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/http"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/feedapi"
)

// CanaryProfile is the profile that canaries are issued under; its names begin with CanaryPrefix, which no device may have.
const (
	CanaryProfile = "canary"
	CanaryPrefix  = "natal-canary-"
)

// canaryReason is why a canary is revoked: its work is done as soon as it exists.
const canaryReason = "cessationOfOperation"

func (f *Feed) postCanary(w http.ResponseWriter, r *http.Request, bridge string) error {
	var req feedapi.CanaryRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return badRequest("invalid", "the body is not a canary request")
	}
	block, _ := pem.Decode([]byte(req.CSR))
	if block == nil {
		return badRequest("bad_csr", "csr: not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return badRequest("bad_csr", "csr: not a PKCS#10 request")
	}
	if err := csr.CheckSignature(); err != nil {
		return badRequest("bad_csr", "csr: its signature does not fit its key")
	}
	info, err := f.cfg.CA.Get(r.Context(), req.Issuer)
	if err != nil {
		return err
	}
	if info.Use != "broker" {
		return badRequest("invalid", "issuer: not a CA of the trust set")
	}
	random := make([]byte, 8)
	rand.Read(random)
	cert, err := f.cfg.CA.Issue(r.Context(), ca.Request{
		Actor: "bridge:" + bridge, CA: req.Issuer, Profile: CanaryProfile, Device: CanaryPrefix + hex.EncodeToString(random),
		PublicKey: csr.PublicKey, RequesterKind: "bridge", Requester: bridge,
	})
	if err != nil {
		return err
	}
	if req.Revoke {
		if cert, err = f.cfg.CA.Revoke(r.Context(), "bridge:"+bridge, cert.Serial, canaryReason); err != nil {
			return err
		}
	}
	out := feedapi.Canary{NotAfter: cert.NotAfter, Revoked: req.Revoke}
	out.Certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.DER}))
	out.Chain = encode(info.Certificate)
	for _, above := range info.Chain {
		if string(above.RawSubject) != string(above.RawIssuer) {
			out.Chain += encode(above)
		}
	}
	answer(w, http.StatusOK, out)
	return nil
}
