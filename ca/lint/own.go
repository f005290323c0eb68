// Our own rules: what zlint cannot know, because it depends on the issuer and on what the certificate is for. They read the certificate
// anew from its bytes and share no code with what made it.

package lint

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Context is what a certificate is held against.
type Context struct {
	Issuer *x509.Certificate // of a root: itself
	Use    string            // of its profile: broker, birth, management, ocsp, ca
	CRL    string            // address of the CRL that it will be on; "" when it carries none
}

// Rules are the names of our own rules and what each asks for.
var Rules = map[string]string{
	"natal_validity_seconds":     "notBefore and notAfter are whole seconds in UTC, in this order",
	"natal_validity_in_issuer":   "both ends of the validity lie within the issuer's",
	"natal_serial_form":          "17 octets, the first one 0x01, 128 random bits behind it: positive, at most 20 octets",
	"natal_subject_key_id":       "a subject key identifier of 20 octets",
	"natal_authority_key_id":     "the authority key identifier is the issuer's subject key identifier",
	"natal_issuer_name":          "the issuer's name is the issuer's subject, byte for byte",
	"natal_basic_constraints":    "CA:TRUE with keyCertSign for use ca, and for nothing else",
	"natal_eku_use":              "the extended key usage fits the use: clientAuth or none at all for broker and birth, OCSPSigning alone for ocsp, some for management",
	"natal_subject_common_name":  "exactly one common name, not empty, of printable characters",
	"natal_san_consistent":       "DNS names are host names in lower case; a server's certificate has one; an empty subject makes the extension critical",
	"natal_crl_address":          "the CRL distribution point is the one that the CA publishes for this serial number",
	"natal_no_unknown_extension": "no extension twice, and none critical that nobody knows",
}

var knownCritical = []asn1.ObjectIdentifier{{2, 5, 29, 15}, {2, 5, 29, 17}, {2, 5, 29, 19}, {2, 5, 29, 30}, {2, 5, 29, 37}}

// ours are the names of our rules that a certificate breaks.
func ours(der []byte, is Context) (broken []string, err error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	issuer := is.Issuer
	if is.Use == "ca" && issuer.Raw == nil { // a root is held against itself
		issuer = c
	}
	for name, ok := range map[string]bool{
		"natal_validity_seconds":     wholeSeconds(c.NotBefore) && wholeSeconds(c.NotAfter) && c.NotAfter.After(c.NotBefore),
		"natal_validity_in_issuer":   !c.NotBefore.Before(issuer.NotBefore) && !c.NotAfter.After(issuer.NotAfter),
		"natal_serial_form":          serialForm(c),
		"natal_subject_key_id":       len(c.SubjectKeyId) == 20,
		"natal_authority_key_id":     len(c.AuthorityKeyId) > 0 && bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId),
		"natal_issuer_name":          issuer.RawSubject == nil || bytes.Equal(c.RawIssuer, issuer.RawSubject),
		"natal_basic_constraints":    c.IsCA == (is.Use == "ca") && (c.KeyUsage&x509.KeyUsageCertSign != 0) == c.IsCA,
		"natal_eku_use":              ekuFits(c, is.Use),
		"natal_subject_common_name":  commonName(c, is.Use),
		"natal_san_consistent":       sanConsistent(c),
		"natal_crl_address":          strings.Join(c.CRLDistributionPoints, " ") == is.CRL,
		"natal_no_unknown_extension": extensionsKnown(c),
	} {
		if !ok {
			broken = append(broken, name)
		}
	}
	slices.Sort(broken)
	return broken, nil
}

func wholeSeconds(t time.Time) bool { return t.Location() == time.UTC && t.Nanosecond() == 0 }

func serialForm(c *x509.Certificate) bool {
	octets := c.SerialNumber.Bytes()
	return c.SerialNumber.Sign() > 0 && len(octets) == 17 && octets[0] == 1
}

func ekuFits(c *x509.Certificate, use string) bool {
	count := len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage)
	if slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return false
	}
	switch use {
	case "broker", "birth":
		return count == 0 || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	case "ocsp":
		return count == 1 && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning)
	case "management":
		return count > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning)
	}
	return true
}

// commonName: a CA may be called by other attributes, if another PKI's request says so.
func commonName(c *x509.Certificate, use string) bool {
	names := 0
	for _, attribute := range c.Subject.Names {
		if !attribute.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			continue
		}
		value, _ := attribute.Value.(string)
		if names++; value == "" || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return false
		}
	}
	return names == 1 || use == "ca"
}

func sanConsistent(c *x509.Certificate) bool {
	for _, name := range c.DNSNames {
		if _, err := netip.ParseAddr(name); err == nil || name == "" || strings.ToLower(name) != name || strings.ContainsAny(name, " /\\@:\x00") {
			return false
		}
	}
	if slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !c.IsCA && len(c.DNSNames)+len(c.IPAddresses) == 0 {
		return false
	}
	if len(c.Subject.Names) > 0 {
		return true
	}
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) && e.Critical })
}

func extensionsKnown(c *x509.Certificate) bool {
	seen := map[string]bool{}
	for _, e := range c.Extensions {
		id := e.Id.String()
		if seen[id] || e.Critical && !slices.ContainsFunc(knownCritical, e.Id.Equal) {
			return false
		}
		seen[id] = true
	}
	return true
}
