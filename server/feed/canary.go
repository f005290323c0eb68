// Canaries: certificates of reserved names that let a bridge prove what its broker accepts and refuses.

package feed

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// CanaryProfile is the profile that canaries are issued under; its names begin with CanaryPrefix, which no device may have.
const (
	CanaryProfile = "canary"
	CanaryPrefix  = "natal-canary-"
)

// RequesterKind is what a canary's record says beside the bridge that asked for it: whoever ends a bridge ends its canaries by that.
const RequesterKind = "canary"

// A bridge keeps its canaries; it needs a good and a revoked one for each CA every few weeks, or after it lost its state.
const (
	canariesPerHour = 8
	canaryWindow    = time.Hour
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
	slot, err := f.canarySlot(r.Context(), bridge, req)
	if err != nil {
		return err
	}
	random := make([]byte, 8)
	rand.Read(random)
	cert, err := f.cfg.CA.Issue(r.Context(), ca.Request{
		Actor: "bridge:" + bridge, CA: req.Issuer, Profile: CanaryProfile, Device: CanaryPrefix + hex.EncodeToString(random),
		PublicKey: csr.PublicKey, RequesterKind: RequesterKind, Requester: bridge, Upkeep: true, ClaimKey: slot, Claim: slotIsFree(slot),
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

// canarySlot is a claim that is free: in each hour of the clock there are a few for each bridge, CA and kind of canary.
func (f *Feed) canarySlot(ctx context.Context, bridge string, req feedapi.CanaryRequest) (string, error) {
	kind := "good"
	if req.Revoke {
		kind = "revoked"
	}
	now := f.cfg.Clock.Now()
	slots := make([]any, canariesPerHour)
	for n := range slots {
		slots[n] = fmt.Sprintf("canary/%s/%s/%s/%d/%d", bridge, req.Issuer, kind, now.Unix()/int64(canaryWindow/time.Second), n)
	}
	var taken []string
	err := f.cfg.DB.Select(ctx, &taken, "SELECT claim FROM certificates WHERE claim IN (?"+strings.Repeat(", ?", len(slots)-1)+")", slots...)
	if err != nil {
		return "", err
	}
	for _, slot := range slots {
		if slot := slot.(string); !slices.Contains(taken, slot) {
			return slot, nil
		}
	}
	return "", &refusal{
		status: http.StatusTooManyRequests, reason: "canary_limit", text: fmt.Sprintf("%d %s canaries of %s in this hour are enough", canariesPerHour, kind, req.Issuer),
		retryAfter: now.Truncate(canaryWindow).Add(canaryWindow).Sub(now),
	}
}

// slotIsFree refuses a slot that another request took since it was looked for.
func slotIsFree(slot string) func(tx *database.Tx, now time.Time, intended ca.ID) (*ca.ID, error) {
	return func(tx *database.Tx, _ time.Time, _ ca.ID) (*ca.ID, error) {
		_, taken, err := ca.FindInTx(tx, "claim = ?", slot)
		if err == nil && taken {
			err = &refusal{status: http.StatusTooManyRequests, reason: "canary_limit", text: "one canary at a time", retryAfter: time.Second}
		}
		return nil, err
	}
}
