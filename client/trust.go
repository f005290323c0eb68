// Whom the device trusts: the checks between the bytes of /cacerts and a trust anchor (RFC 7030 sections 4.1.1 and 4.1.3).

package client

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/wire"
)

// Fingerprint is the SHA-256 of cert's DER in lower-case hexadecimal, as TrustFingerprint takes it.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// ParseCertificates reads all certificates of a PEM file, for example trust.pem. Other blocks are an error, and so is a file without a certificate.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q among certificates", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
		data = rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM form")
	}
	return certs, nil
}

// parseFingerprint reads the forms that people paste: openssl's with colons, ours without, upper or lower case.
func parseFingerprint(s string) ([]byte, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	s = strings.TrimPrefix(strings.TrimPrefix(s, "sha256"), ":")
	s = strings.NewReplacer(":", "", " ", "").Replace(s)
	sum, err := hex.DecodeString(s)
	if err != nil || len(sum) != sha256.Size {
		return nil, errors.New("trust fingerprint: it must be the SHA-256 of a certificate, 64 hexadecimal digits")
	}
	return sum, nil
}

// findRoot takes the one certificate out of an unauthenticated answer that the fingerprint vouches for.
func findRoot(body []byte, fingerprint string, now time.Time) (*x509.Certificate, error) {
	want, err := parseFingerprint(fingerprint)
	if err != nil {
		return nil, err
	}
	certs, err := decodeCerts(body)
	if err != nil {
		return nil, err
	}
	for _, cert := range certs {
		sum := sha256.Sum256(cert.Raw)
		if subtle.ConstantTimeCompare(sum[:], want) != 1 {
			continue
		}
		if err := checkRoot(cert, now); err != nil {
			return nil, fmt.Errorf("the certificate with the fingerprint: %w", err)
		}
		return cert, nil
	}
	return nil, errors.New("the server offers no CA certificate with the fingerprint given")
}

// readCACerts returns the certificates of an answer of /cacerts, roots first and newest first: "the EST client MUST
// be able to handle" the certificates of a root key update, and the one with the latest NotAfter is the current root. A cross certificate may also
// chain to an anchor of the device that the answer does not repeat: the old root of a rollover that is over.
func readCACerts(body []byte, anchors []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	certs, err := decodeCerts(body)
	if err != nil {
		return nil, err
	}
	var roots, others []*x509.Certificate
	for _, cert := range certs {
		switch {
		case now.After(cert.NotAfter):
			return nil, fmt.Errorf("%s: expired at %s", cert.Subject, cert.NotAfter.Format(time.RFC3339))
		case now.Before(cert.NotBefore):
			return nil, fmt.Errorf("%s: not valid before %s", cert.Subject, cert.NotBefore.Format(time.RFC3339))
		case isSelfSigned(cert):
			if err := checkRoot(cert, now); err != nil {
				return nil, err
			}
			roots = append(roots, cert)
		default:
			others = append(others, cert)
		}
	}
	if len(roots) == 0 {
		return nil, errors.New("no self-signed root among the CA certificates")
	}
	for _, cert := range others {
		if !cert.IsCA {
			return nil, fmt.Errorf("%s: not a CA certificate", cert.Subject)
		}
		if _, err := verifyChain(cert, slices.Concat(roots, anchors), others, now); err != nil {
			return nil, fmt.Errorf("%s: %w", cert.Subject, err)
		}
	}
	slices.SortStableFunc(roots, func(a, b *x509.Certificate) int { return b.NotAfter.Compare(a.NotAfter) })
	return append(roots, others...), nil
}

// follow returns those of roots that may authenticate the server from now on: the anchors themselves, and what a rollover made of them. A new root
// counts when one that counts has certified its name and key ("NewWithOld", RFC 4210 section 4.4). That a root is in the answer is not enough: it
// may stand above the label's CA alone, and then has nothing to say about the server.
func follow(anchors, roots, others []*x509.Certificate, now time.Time) []*x509.Certificate {
	trusted := slices.Clone(anchors)
	for grown := true; grown; {
		grown = false
		for _, root := range roots {
			if !slices.ContainsFunc(trusted, root.Equal) && slices.ContainsFunc(others, func(cross *x509.Certificate) bool { return vouches(cross, root, trusted, now) }) {
				trusted, grown = append(trusted, root), true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(roots), func(root *x509.Certificate) bool { return !slices.ContainsFunc(trusted, root.Equal) })
}

// vouches reports whether cross is root's name and key, certified by one of trusted. A certificate with limits is that of a CA below a root: whoever has
// its key could sign himself a root of the same name and key that has none, and that no revocation would reach.
func vouches(cross, root *x509.Certificate, trusted []*x509.Certificate, now time.Time) bool {
	return sameNameAndKey(cross, root) && cross.IsCA && !limited(cross) && !now.Before(cross.NotBefore) && !now.After(cross.NotAfter) &&
		slices.ContainsFunc(trusted, func(t *x509.Certificate) bool { return !now.After(t.NotAfter) && cross.CheckSignatureFrom(t) == nil })
}

// limited reports whether a CA certificate says what may stand below it.
func limited(c *x509.Certificate) bool {
	nameConstraints := asn1.ObjectIdentifier{2, 5, 29, 30}
	return c.MaxPathLen >= 0 || len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 ||
		slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(nameConstraints) })
}

func sameNameAndKey(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// links are the cross certificates of a root: with them behind a chain, who knows only the other root of a rollover verifies it too.
func links(root *x509.Certificate, others []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(others), func(c *x509.Certificate) bool { return !sameNameAndKey(c, root) })
}

func decodeCerts(body []byte) ([]*x509.Certificate, error) {
	der, err := wire.DecodeBase64(body)
	if err != nil {
		return nil, err
	}
	certs, err := wire.ParseCertsOnly(der)
	if err != nil {
		return nil, err
	}
	return slices.CompactFunc(certs, (*x509.Certificate).Equal), nil
}

// isSelfSigned looks at names and key identifiers only; checkRoot proves it.
func isSelfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawSubject, cert.RawIssuer) && cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

func checkRoot(cert *x509.Certificate, now time.Time) error {
	if !cert.IsCA || !cert.BasicConstraintsValid {
		return fmt.Errorf("%s: not a CA certificate", cert.Subject)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("%s: not self-signed: %w", cert.Subject, err)
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("%s: not valid at %s", cert.Subject, now.Format(time.RFC3339))
	}
	return nil
}

// verifyChain returns the shortest chain from cert to one of roots, both included, whatever the extended key usages.
func verifyChain(cert *x509.Certificate, roots, others []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	chains, err := cert.Verify(x509.VerifyOptions{
		Roots: pool(roots), Intermediates: pool(others), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, err
	}
	return slices.MinFunc(chains, func(a, b []*x509.Certificate) int { return len(a) - len(b) }), nil
}

// pool is never nil: x509 takes a nil pool for the system's roots.
func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, cert := range certs {
		p.AddCert(cert)
	}
	return p
}

// rootOf is the anchor that authenticated the server of a connection; nil if it was not authenticated.
func rootOf(state tls.ConnectionState) *x509.Certificate {
	if len(state.VerifiedChains) == 0 {
		return nil
	}
	chain := state.VerifiedChains[0]
	return chain[len(chain)-1]
}
