// A CA that another PKI signs: its certificate is checked as strictly as a device will check it, then imported.

package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// Import gives a waiting CA its certificate. chainPEM holds its issuers up to a self-signed root, in any order; certPEM may hold
// them too. On any error the CA stays as it was; the rules are ca_key_mismatch, ca_not_a_ca, ca_key_usage, ca_key_id, ca_expired,
// ca_signature, ca_chain, path_length.
func (a *Authorities) Import(ctx context.Context, actor, name string, certPEM, chainPEM []byte) (Info, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return Info{}, err
	}
	if au.row.State != Waiting {
		return Info{}, refuse(Conflict, "ca_state", "CA %q is %s: only a waiting CA takes a certificate", name, au.row.State)
	}
	given, err := parseCertificates(certPEM)
	if err != nil {
		return Info{}, err
	}
	issuers, err := parseCertificates(chainPEM)
	if err != nil && len(chainPEM) > 0 {
		return Info{}, err
	}
	if len(given) == 0 {
		return Info{}, refuse(Invalid, "ca_certificate", "there is no certificate in the file")
	}
	certificate, issuers := given[0], append(given[1:], issuers...)
	own, err := x509.ParseCertificateRequest(au.row.CSR)
	if err != nil {
		return Info{}, unavailable("read CA request", err)
	}
	if !sameKey(own.PublicKey, certificate.PublicKey) {
		return Info{}, refuse(Conflict, "ca_key_mismatch", "%s is for another key than that of CA %q", certificate.Subject, name)
	}
	if err := a.checkSubject(a.replaced(au), certificate.Subject.String()); err != nil {
		return Info{}, err
	}
	chain, err := a.checkCA(ctx, certificate, issuers)
	if err != nil {
		return Info{}, err
	}
	if err := a.storeImported(ctx, actor, name, certificate, chain); err != nil {
		return Info{}, err
	}
	if err := a.afterActivation(ctx, name); err != nil {
		return Info{}, err
	}
	return a.Get(ctx, name)
}

// checkCA returns the chain of certificate up to its root if it can serve as an issuing CA. The CAs that are known here count as given.
func (a *Authorities) checkCA(ctx context.Context, certificate *x509.Certificate, issuers []*x509.Certificate) ([]*x509.Certificate, error) {
	known, err := a.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, info := range known {
		if info.Certificate != nil {
			issuers = append(append(issuers, info.Certificate), info.Chain...)
		}
	}
	now := a.clock.Now()
	if err := checkCACertificate(certificate, now); err != nil {
		return nil, err
	}
	if len(certificate.SubjectKeyId) == 0 { // what it signs could not name it, and would be refused by the lint
		return nil, refuse(ProfileViolation, "ca_key_id", "%s has no subject key identifier (RFC 5280 section 4.2.1.2)", certificate.Subject)
	}
	var chain []*x509.Certificate
	for child := certificate; !selfSigned(child); {
		parent, err := findIssuer(child, issuers)
		if err != nil {
			return nil, err
		}
		if err := checkCACertificate(parent, now); err != nil {
			return nil, err
		}
		// pathLenConstraint: how many CAs may stand between the parent and the leaves (RFC 5280 section 4.2.1.9)
		below := len(chain) + 1
		if limit := parent.MaxPathLen; limit >= 0 && (limit > 0 || parent.MaxPathLenZero) && below > limit {
			return nil, refuse(ProfileViolation, "path_length", "path length exceeded at %s: its pathlen %d allows %d below it, the chain has %d", parent.Subject, limit, limit, below)
		}
		if child.NotAfter.After(parent.NotAfter) {
			a.log.Warn("a CA outlives its issuer", "subject", child.Subject.String(), "not_after", child.NotAfter, "issuer_not_after", parent.NotAfter)
		}
		if chain = append(chain, parent); len(chain) > 8 {
			return nil, refuse(ProfileViolation, "ca_chain", "the chain is longer than 8 certificates")
		}
		child = parent
	}
	return chain, verifyAsOthersDo(certificate, chain, now)
}

// verifyAsOthersDo runs the path validation of the standard library over the CA's own certificate: critical extensions that nobody knows, or extended
// key usages that no device could have, would otherwise show only at the broker.
func verifyAsOthersDo(certificate *x509.Certificate, chain []*x509.Certificate, now time.Time) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for i, c := range chain {
		if i == len(chain)-1 {
			roots.AddCert(c)
		} else {
			intermediates.AddCert(c)
		}
	}
	if len(chain) == 0 {
		roots.AddCert(certificate)
	}
	_, err := certificate.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return &Error{Kind: ProfileViolation, Rule: "ca_chain", Detail: "devices and brokers would refuse the chain: " + err.Error()}
	}
	return nil
}

func checkCACertificate(c *x509.Certificate, now time.Time) error {
	const both = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return refuse(ProfileViolation, "ca_not_a_ca", "%s is not a CA certificate (basicConstraints CA:TRUE is missing)", c.Subject)
	case c.KeyUsage&both != both && !(c.KeyUsage == 0 && selfSigned(c)): // a root may leave key usage out
		return refuse(ProfileViolation, "ca_key_usage", "%s lacks key usage %s", c.Subject, missingUsage(c.KeyUsage))
	case now.After(c.NotAfter):
		return refuse(ProfileViolation, "ca_expired", "%s expired on %s", c.Subject, c.NotAfter.Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return refuse(ProfileViolation, "ca_expired", "%s is not valid before %s", c.Subject, c.NotBefore.Format(time.RFC3339))
	}
	return nil
}

func missingUsage(have x509.KeyUsage) string {
	switch {
	case have&x509.KeyUsageCertSign == 0 && have&x509.KeyUsageCRLSign == 0:
		return "keyCertSign and cRLSign"
	case have&x509.KeyUsageCertSign == 0:
		return "keyCertSign"
	}
	return "cRLSign"
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// findIssuer picks the certificate whose name is child's issuer and whose key signed it.
func findIssuer(child *x509.Certificate, candidates []*x509.Certificate) (*x509.Certificate, error) {
	named := false
	for _, c := range candidates {
		if !bytes.Equal(c.RawSubject, child.RawIssuer) || bytes.Equal(c.Raw, child.Raw) {
			continue
		}
		named = true
		if c.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature) == nil {
			return c, nil
		}
	}
	if named {
		return nil, refuse(ProfileViolation, "ca_signature", "%s is not signed by the given %s (or with an algorithm that is not accepted)", child.Subject, child.Issuer)
	}
	return nil, refuse(ProfileViolation, "ca_chain", "the chain ends at %s: its issuer %s is missing; give all certificates up to a self-signed root", child.Subject, child.Issuer)
}

func (a *Authorities) storeImported(ctx context.Context, actor, name string, certificate *x509.Certificate, chain []*x509.Certificate) error {
	var chainDER []byte
	for _, c := range chain {
		chainDER = slices.Concat(chainDER, c.Raw)
	}
	sum := sha256.Sum256(certificate.Raw)
	err := a.db.Write(ctx, "ca.import", func(tx *database.Tx) error {
		rows, err := tx.Exec("UPDATE authorities SET certificate = ?, chain = ?, subject = ?, state = "+firstState+" WHERE name = ? AND state = 'waiting'",
			certificate.Raw, chainDER, certificate.Subject.String(), name)
		if err != nil {
			return err
		}
		if rows == 0 {
			return refuse(Conflict, "ca_state", "CA %q is not waiting any more", name)
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		a.changes.Append(tx, feedapi.Change{At: a.clock.Now(), Kind: feedapi.TrustSetChanged})
		return a.append(tx, audit.Entry{Actor: actor, Action: "ca_imported", Object: name, Detail: map[string]string{
			"subject": certificate.Subject.String(), "issuer": certificate.Issuer.String(), "sha256": hex.EncodeToString(sum[:]),
		}})
	})
	return passThrough("store CA certificate", err)
}

// parseCertificates reads all certificates of a PEM file.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	const most = 20
	var list []*x509.Certificate
	for len(list) < most {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, &Error{Kind: Invalid, Rule: "ca_certificate", Detail: fmt.Sprintf("certificate %d of the file cannot be read", len(list)+1), Err: err}
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, refuse(Invalid, "ca_certificate", "there is no certificate in the file (want PEM)")
	}
	return list, nil
}
