// CSRs between installations: our CA's own, for an external parent, and the CSR of a CA that lives elsewhere, which is signed here.

package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/lint"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/database"
)

// Sign signs the CSR of a CA that lives elsewhere, for an installation with an offline root. It returns the certificate, PEM.
func (a *Authorities) Sign(ctx context.Context, actor, name string, csrPEM []byte, years int) ([]byte, error) {
	return a.SignBy(ctx, actor, name, csrPEM, years, "")
}

// SignBy is Sign by a profile of use ca, which says how long the certificate is valid; years is 0 then.
func (a *Authorities) SignBy(ctx context.Context, actor, name string, csrPEM []byte, years int, profileName string) ([]byte, error) {
	prof, err := a.caProfile(ctx, profileName, years)
	if err != nil {
		return nil, err
	}
	au, err := a.authority(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := au.mayIssue(); err != nil {
		return nil, err
	}
	if err := a.checkClock(ctx); err != nil {
		return nil, err
	}
	if au.certificate.MaxPathLenZero {
		return nil, refuse(Conflict, "path_length", "path length exceeded at %s: pathlen 0 allows no CA below it", au.certificate.Subject)
	}
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	if years == 0 {
		years = 10
	}
	if years < 1 || years > 40 {
		return nil, refuse(Invalid, "ca_years", "a CA lives 1 to 40 years, not %d", years)
	}
	p, err := a.prepareCA(au, csr.Subject, csr.PublicKey, years, false, prof)
	if err != nil {
		return nil, err
	}
	p.template.RawSubject = csr.RawSubject
	if p, err = a.encodeAgain(au, p, csr.PublicKey); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(csr.Raw)
	p.row.Requester = "csr:" + hex.EncodeToString(sum[:])
	p.row.Claim = "serial/" + p.row.Serial
	if err := a.db.Write(ctx, "ca.intend_signed", func(tx *database.Tx) error {
		if err := checkKey(tx, &p.row, nil); err != nil {
			return err
		}
		return a.intend(tx, &p.row, actor)
	}); err != nil {
		return nil, passThrough("record CA certificate", err)
	}
	certificate, err := a.complete(ctx, au, &p.row)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.DER}), nil
}

// encodeAgain re-encodes p after its template changed.
func (a *Authorities) encodeAgain(au *authority, p *prepared, public crypto.PublicKey) (*prepared, error) {
	again, err := a.encode(au, au.certificate, p.template, public, a.clock.Now(), lint.Context{Use: profile.UseCA, CRL: first(p.template.CRLDistributionPoints)})
	if err != nil {
		return nil, err
	}
	again.row.ProfileHash = p.row.ProfileHash
	again.row.Profile, again.row.RequesterKind = p.row.Profile, p.row.RequesterKind
	return again, nil
}

func parseRequest(csrPEM []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || !strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") {
		return nil, refuse(Invalid, "csr", "want a PKCS#10 request in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, &Error{Kind: Invalid, Rule: "csr", Detail: "the request cannot be read", Err: err}
	}
	spec, err := profile.KeySpec(csr.PublicKey)
	if err == nil && !slices.Contains(keystore.Specs, spec) {
		err = fmt.Errorf("key %s is not one of %s", spec, strings.Join(keystore.Specs, ", "))
	}
	if err != nil {
		return nil, refuse(ProfileViolation, "key_type", "%v", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, refuse(Invalid, "csr_signature", "the request is not signed by its own key")
	}
	if len(csr.RawSubject) <= 2 {
		return nil, refuse(Invalid, "csr", "the request has no subject")
	}
	return csr, nil
}

// CSR returns the PKCS#10 request of a CA, PEM, for an external parent.
func (a *Authorities) CSR(ctx context.Context, name string) ([]byte, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: au.row.CSR}), nil
}

// certificateRequest is signed by the CA's key and asks for a CA below which there is none.
func certificateRequest(key crypto.Signer, subject pkix.Name) ([]byte, error) {
	algorithm, _, err := signatureAlgorithm(key.Public())
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, SignatureAlgorithm: algorithm}, key)
	if err != nil {
		return nil, &Error{Kind: Invalid, Rule: "encoding", Detail: "the request cannot be encoded", Err: err}
	}
	return der, nil
}

// sameKey compares two public keys.
func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
