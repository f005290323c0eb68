// From a request to a template: every rule of the profile, each with its name.

package profile

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Input is all that a certificate may depend on.
type Input struct {
	Device     string                   // the id of the end entity, authenticated; becomes the CN
	Registered []string                 // names registered with the end entity: "dns:NAME", "ip:ADDRESS"
	Reserved   func(name string) bool   // tells whether a name that a request chose ("dns:NAME", ...) is somebody else's; nil: none is
	CSR        *x509.CertificateRequest // nil: only PublicKey
	PublicKey  crypto.PublicKey         // used when CSR is nil
	Issuer     *x509.Certificate        // the issuing CA's certificate
	Signature  x509.SignatureAlgorithm  // what the issuing CA signs with
	PublicURL  string                   // base of the CRL and CA addresses
	IssuerName string                   // name of the CA in those addresses
	CRLPath    string                   // of the CRL that the certificate will be on, below "/crl/": "devices.crl"; empty: IssuerName.crl
	Renewed    time.Time                // end of the certificate that this one renews; zero if none
	Now        time.Time
}

// CRL is the address of the CRL that a certificate of p carries, or "".
func (in Input) CRL(p *Profile) string {
	if in.PublicURL == "" || !p.Distribution() {
		return ""
	}
	path := in.CRLPath
	if path == "" {
		path = url.PathEscape(in.IssuerName) + ".crl"
	}
	return in.PublicURL + "/crl/" + path
}

// Finding is one rule and whether the request keeps it.
type Finding struct {
	Rule   string `json:"rule"` // stable word: also the reason in answers, logs, metrics and audit
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // safe to show to the device
}

// Violation is the first broken rule.
type Violation struct{ Finding Finding }

func (v *Violation) Error() string { return v.Finding.Rule + ": " + v.Finding.Detail }

var (
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidNoCheck          = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	oidEKU              = asn1.ObjectIdentifier{2, 5, 29, 37}
)

type builder struct {
	*Profile
	in       Input
	template *x509.Certificate
	findings []Finding
}

// rules are the words of all rules, in the order in which they are looked at, and what it means that none of them was touched.
var rules = []Finding{
	{"key_type", true, ""},
	{"signature", true, "the issuer may sign with what its key is for"},
	{"san_unlisted", true, "no alternative name beyond what the profile lists"},
	{"san_not_registered", true, "no alternative name that would have to be registered"},
	{"san_not_allowed", true, "no alternative name outside the requester's rules"},
	{"san_reserved", true, "no alternative name of somebody else"},
	{"san_limit", true, "not more alternative names than the profile allows"},
	{"san_required", true, "the profile needs no alternative name"},
	{"subject_common_name", true, ""},
	{"san_cn", true, "the profile does not bind the common name to the alternative names"},
	{"subject_serial_number", true, "no other serial number asked for"},
	{"subject_field", true, "no rule about further attributes of the subject is broken"},
	{"subject_unlisted", true, "no attribute of the subject beyond what the profile lists"},
	{"basic_constraints", true, "not asked for: no CA"},
	{"key_usage", true, "not asked for: the profile's own"},
	{"extended_key_usage", true, "not asked for: the profile's own"},
	{"extension_unlisted", true, "no further extension asked for"},
	{"validity", true, ""},
	{"renewal_window", true, "not limited"},
}

// Build applies the profile. The findings list the rules that were looked at; the error is a *Violation for the
// first broken one, and then there is no template. The template lacks only its serial number.
func (p *Profile) Build(in Input) (*x509.Certificate, []Finding, error) {
	b := &builder{Profile: p, in: in, template: &x509.Certificate{BasicConstraintsValid: true, ExtKeyUsage: p.ekus, UnknownExtKeyUsage: p.unknownEKUs, Policies: p.policies}}
	if in.CSR != nil {
		b.in.PublicKey = in.CSR.PublicKey
	}
	b.key()
	b.signatureAlgorithm()
	b.san()
	b.subject()
	b.extensions()
	b.validity()
	b.renewal()
	b.addresses()
	for _, f := range b.findings {
		if !f.OK {
			return nil, b.findings, &Violation{f}
		}
	}
	return b.template, b.findings, nil
}

// Explain is every rule with what Build finds, in Build's order; rules that nothing touched pass.
func (p *Profile) Explain(in Input) []Finding {
	_, findings, _ := p.Build(in)
	for _, rule := range rules {
		if rule.Detail != "" && !slices.ContainsFunc(findings, func(f Finding) bool { return f.Rule == rule.Rule }) {
			findings = append(findings, rule)
		}
	}
	return findings
}

func (b *builder) pass(rule, format string, args ...any) {
	b.findings = append(b.findings, Finding{rule, true, fmt.Sprintf(format, args...)})
}

func (b *builder) fail(rule, format string, args ...any) {
	b.findings = append(b.findings, Finding{rule, false, fmt.Sprintf(format, args...)})
}

// unlisted refuses or drops what the profile does not list.
func (b *builder) unlisted(verdict, rule, format string, args ...any) {
	if verdict == "drop" {
		b.pass(rule, "dropped: "+format, args...)
		return
	}
	b.fail(rule, format+" (the profile does not list it)", args...)
}

func (b *builder) key() {
	spec, err := KeySpec(b.in.PublicKey)
	switch {
	case err != nil:
		b.fail("key_type", "%v", err)
		return
	case !slices.Contains(b.file.Keys, spec):
		b.fail("key_type", "%s is not one of %s", spec, strings.Join(b.file.Keys, ", "))
		return
	}
	b.pass("key_type", "%s", spec)
	b.template.KeyUsage = b.keyUsage()
	id, err := b.keyID()
	if err != nil {
		b.fail("key_type", "%v", err)
		return
	}
	b.template.SubjectKeyId = id
}

func (b *builder) signatureAlgorithm() {
	if b.signature == nil {
		return
	}
	if !slices.Contains(b.signature, b.in.Signature) {
		b.fail("signature", "the issuing CA signs with %s, the profile wants %s", b.in.Signature, strings.Join(b.file.Signature, " or "))
		return
	}
	b.pass("signature", "%s", b.in.Signature)
}

func (b *builder) validity() {
	from := b.in.Now.Add(-b.backdate).Truncate(time.Second)
	if from.Before(b.in.Issuer.NotBefore) {
		from = b.in.Issuer.NotBefore
	}
	to := from.Add(b.Profile.validity - time.Second) // the last second is part of the validity (RFC 5280 4.1.2.5)
	if !b.until.IsZero() && to.After(b.until) {
		to = b.until
	}
	if to.After(b.in.Issuer.NotAfter) {
		if b.file.BeyondIssuer == "refuse" {
			b.fail("validity", "it would end on %s, after its issuer (%s)", to.Format(time.RFC3339), b.in.Issuer.NotAfter.Format(time.RFC3339))
			return
		}
		to = b.in.Issuer.NotAfter
	}
	b.template.NotBefore, b.template.NotAfter = from, to
	if !b.until.IsZero() && !b.until.After(b.in.Now) {
		b.fail("validity", "the profile's certificates end on %s", b.until.Format(time.RFC3339))
		return
	}
	if !to.After(b.in.Now) || b.in.Now.Before(b.in.Issuer.NotBefore) {
		b.fail("validity", "the issuing CA is valid from %s to %s", b.in.Issuer.NotBefore.Format(time.RFC3339), b.in.Issuer.NotAfter.Format(time.RFC3339))
		return
	}
	b.pass("validity", "%s to %s", from.Format(time.RFC3339), to.Format(time.RFC3339))
}

func (b *builder) renewal() {
	if b.renewWithin == 0 || b.in.Renewed.IsZero() {
		return
	}
	from := b.in.Renewed.Add(-b.renewWithin)
	if b.in.Now.Before(from) {
		b.fail("renewal_window", "the certificate ends on %s and may be renewed from %s on", b.in.Renewed.Format(time.RFC3339), from.Format(time.RFC3339))
		return
	}
	b.pass("renewal_window", "open since %s", from.Format(time.RFC3339))
}

func (b *builder) addresses() {
	if b.in.PublicURL == "" {
		return
	}
	name := url.PathEscape(b.in.IssuerName)
	for _, kind := range b.file.Addresses {
		switch kind {
		case "crl":
			b.template.CRLDistributionPoints = []string{b.in.CRL(b.Profile)}
		case "issuer":
			b.template.IssuingCertificateURL = []string{b.in.PublicURL + "/ca/" + name + ".der"}
		case "ocsp":
			b.template.OCSPServer = []string{b.in.PublicURL + "/ocsp/" + name}
		}
	}
}

func (b *builder) keyID() ([]byte, error) {
	if b.in.CSR != nil {
		return spkiKeyID(b.in.CSR.RawSubjectPublicKeyInfo)
	}
	return KeyID(b.in.PublicKey)
}

// KeyID is the subject key identifier: the leftmost 160 bits of the SHA-256 of the key bits (RFC 7093 section 2, method 1).
func KeyID(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	return spkiKeyID(der)
}

func spkiKeyID(spki cryptobyte.String) ([]byte, error) {
	var inner, algorithm cryptobyte.String
	var key asn1.BitString
	if !spki.ReadASN1(&inner, cbasn1.SEQUENCE) || !inner.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !inner.ReadASN1BitString(&key) {
		return nil, errors.New("the public key cannot be read")
	}
	sum := sha256.Sum256(key.Bytes)
	return sum[:20], nil
}

// clip makes a value from a request fit to show.
func clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s), "?")
}
