// From a request to a template: every rule of the profile, each with its name.

package profile

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	CSR        *x509.CertificateRequest // nil: only PublicKey
	PublicKey  crypto.PublicKey         // used when CSR is nil
	Issuer     *x509.Certificate        // the issuing CA's certificate
	PublicURL  string                   // base of the CRL and CA addresses
	IssuerName string                   // name of the CA in those addresses
	CRLPath    string                   // of the CRL that the certificate will be on, below "/crl/": "devices.crl"; empty: IssuerName.crl
	Now        time.Time
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
	oidCommonName       = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialNumber     = asn1.ObjectIdentifier{2, 5, 4, 5}
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

// Build applies the profile. The findings list every rule, passed and broken, for explanations; the error is a *Violation for the
// first broken one, and then there is no template. The template lacks only its serial number.
func (p *Profile) Build(in Input) (*x509.Certificate, []Finding, error) {
	b := &builder{Profile: p, in: in, template: &x509.Certificate{BasicConstraintsValid: true, ExtKeyUsage: p.ekus}}
	if in.CSR != nil {
		b.in.PublicKey = in.CSR.PublicKey
	}
	b.key()
	b.san()
	b.subject()
	b.extensions()
	b.validity()
	b.addresses()
	for _, f := range b.findings {
		if !f.OK {
			return nil, b.findings, &Violation{f}
		}
	}
	return b.template, b.findings, nil
}

func (b *builder) pass(rule, format string, args ...any) {
	b.findings = append(b.findings, Finding{rule, true, fmt.Sprintf(format, args...)})
}

func (b *builder) fail(rule, format string, args ...any) {
	b.findings = append(b.findings, Finding{rule, false, fmt.Sprintf(format, args...)})
}

// unlisted refuses or drops what the profile does not list.
func (b *builder) unlisted(rule, format string, args ...any) {
	if b.file.CSR.Unlisted == "drop" {
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
	b.template.KeyUsage = x509.KeyUsageDigitalSignature
	if _, isRSA := b.in.PublicKey.(*rsa.PublicKey); isRSA && b.file.Use != UseOCSP {
		b.template.KeyUsage |= x509.KeyUsageKeyEncipherment // TLS 1.2 RSA key exchange; forbidden for EC by RFC 8813
	}
	id, err := b.keyID()
	if err != nil {
		b.fail("key_type", "%v", err)
		return
	}
	b.template.SubjectKeyId = id
}

func (b *builder) subject() {
	want := b.in.Device
	if b.file.Subject.CommonName == "first_dns" {
		want = ""
		if len(b.template.DNSNames) > 0 {
			want = b.template.DNSNames[0]
		}
	}
	b.template.Subject = pkix.Name{CommonName: want}
	if want == "" {
		b.fail("subject_common_name", "there is no identity to name")
	}
	if b.file.Subject.SerialNumber == "device" {
		b.template.Subject.SerialNumber = b.in.Device
	}
	if b.in.CSR == nil {
		return
	}
	commonNames, ok := 0, true
	for _, attribute := range b.in.CSR.Subject.Names {
		value, _ := attribute.Value.(string)
		switch {
		case attribute.Type.Equal(oidCommonName):
			if commonNames++; value != want {
				ok = false
				b.fail("subject_common_name", "the request names %q, the authenticated identity is %q", clip(value), want)
			}
		case attribute.Type.Equal(oidSerialNumber) && value == b.in.Device:
		case attribute.Type.Equal(oidSerialNumber):
			ok = false
			b.fail("subject_serial_number", "the request names %q, the authenticated identity is %q", clip(value), want)
		default:
			b.unlisted("subject_unlisted", "subject attribute %v", attribute.Type)
		}
	}
	if commonNames > 1 {
		ok = false
		b.fail("subject_common_name", "the request has %d common names: one identity, one name", commonNames)
	}
	if ok {
		b.pass("subject_common_name", "%s", want)
	}
}

// san decides the subject alternative names: never more than the identity and what is registered with it.
func (b *builder) san() {
	allowed := b.allowedNames()
	asked := b.askedNames()
	if asked == nil {
		b.addNames(allowed)
	} else {
		granted := asked[:0:0]
		for _, name := range asked {
			kind, _, _ := strings.Cut(name, ":")
			switch {
			case !slices.Contains(b.file.CSR.Allow, "san."+kind):
				b.unlisted("san_unlisted", "subject alternative name %s", clip(name))
			case !slices.Contains(allowed, name):
				b.fail("san_not_registered", "%s is not registered for %s", clip(name), b.in.Device)
			default:
				granted = append(granted, name)
			}
		}
		if b.file.SAN.DeviceDNS && len(allowed) > 0 && !slices.Contains(granted, allowed[0]) {
			granted = append([]string{allowed[0]}, granted...) // the CN of a server must be in its SAN
		}
		b.addNames(granted)
	}
	if b.file.SAN.Required {
		if len(b.template.DNSNames)+len(b.template.IPAddresses) == 0 {
			b.fail("san_required", "the profile needs a subject alternative name")
		} else {
			b.pass("san_required", "%d names", len(b.template.DNSNames)+len(b.template.IPAddresses))
		}
	}
}

func (b *builder) allowedNames() []string {
	var names []string
	if b.file.SAN.DeviceDNS {
		names = append(names, NameOf(b.in.Device))
	}
	if b.file.SAN.Registered {
		for _, name := range b.in.Registered {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// askedNames is nil when the request asks for none.
func (b *builder) askedNames() []string {
	csr := b.in.CSR
	if csr == nil || !slices.ContainsFunc(csr.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSAN) }) {
		return nil
	}
	names := []string{}
	for _, n := range csr.DNSNames {
		names = append(names, "dns:"+strings.ToLower(n))
	}
	for _, ip := range csr.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			names = append(names, "ip:"+a.Unmap().String())
		}
	}
	for _, n := range csr.EmailAddresses {
		names = append(names, "email:"+n)
	}
	for _, u := range csr.URIs {
		names = append(names, "uri:"+u.String())
	}
	if counted := countNames(csr); counted != len(names) {
		names = append(names, "other:") // otherName, directoryName, registeredID: kinds that no profile lists
	}
	return names
}

// countNames counts the entries of the SAN extension, the kinds that x509 does not parse included.
func countNames(csr *x509.CertificateRequest) int {
	n := 0
	for _, e := range csr.Extensions {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return -1
		}
		n += len(names)
	}
	return n
}

func (b *builder) addNames(names []string) {
	for _, name := range names {
		kind, value, _ := strings.Cut(name, ":")
		if kind == "ip" {
			b.template.IPAddresses = append(b.template.IPAddresses, net.ParseIP(value))
		} else {
			b.template.DNSNames = append(b.template.DNSNames, value)
		}
	}
}

// NameOf is the SAN entry of a host name or address: "ip:..." or "dns:...".
func NameOf(host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		return "ip:" + a.Unmap().String()
	}
	return "dns:" + strings.ToLower(host)
}

func (b *builder) extensions() {
	if b.file.NoCheck {
		b.template.ExtraExtensions = []pkix.Extension{{Id: oidNoCheck, Value: asn1.NullBytes}}
	}
	if b.in.CSR == nil {
		return
	}
	for _, e := range b.in.CSR.Extensions {
		switch {
		case e.Id.Equal(oidSAN):
		case e.Id.Equal(oidBasicConstraints):
			b.askedBasicConstraints(e.Value)
		case e.Id.Equal(oidKeyUsage):
			b.askedKeyUsage(e.Value)
		case e.Id.Equal(oidEKU):
			b.askedEKU(e.Value)
		default:
			b.unlisted("extension_unlisted", "extension %v", e.Id)
		}
	}
}

func (b *builder) askedBasicConstraints(der []byte) {
	var asked struct {
		IsCA    bool `asn1:"optional"`
		PathLen int  `asn1:"optional,default:-1"`
	}
	if rest, err := asn1.Unmarshal(der, &asked); err != nil || len(rest) > 0 || asked.IsCA || asked.PathLen != -1 {
		b.fail("basic_constraints", "the request asks to be a certification authority")
		return
	}
	b.pass("basic_constraints", "CA:FALSE")
}

func (b *builder) askedKeyUsage(der []byte) {
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(der, &bits); err != nil || len(rest) > 0 {
		b.fail("key_usage", "the requested key usage cannot be read")
		return
	}
	for i := range bits.BitLength {
		if bits.At(i) == 1 && b.template.KeyUsage&(1<<i) == 0 {
			b.fail("key_usage", "the request asks for key usage bit %d, which the profile does not give to this key", i)
			return
		}
	}
	b.pass("key_usage", "what is asked for is what the profile gives")
}

func (b *builder) askedEKU(der []byte) {
	var asked []asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(der, &asked); err != nil || len(rest) > 0 {
		b.fail("extended_key_usage", "the requested extended key usage cannot be read")
		return
	}
	oids := map[string]x509.ExtKeyUsage{"1.3.6.1.5.5.7.3.1": x509.ExtKeyUsageServerAuth, "1.3.6.1.5.5.7.3.2": x509.ExtKeyUsageClientAuth, "1.3.6.1.5.5.7.3.9": x509.ExtKeyUsageOCSPSigning}
	for _, oid := range asked {
		eku, known := oids[oid.String()]
		if !known || !slices.Contains(b.ekus, eku) {
			b.fail("extended_key_usage", "the request asks for %v, the profile gives %s", oid, strings.Join(b.file.EKU, ", "))
			return
		}
	}
	b.pass("extended_key_usage", "what is asked for is what the profile gives")
}

func (b *builder) validity() {
	from := b.in.Now.Add(-b.backdate).Truncate(time.Second)
	if from.Before(b.in.Issuer.NotBefore) {
		from = b.in.Issuer.NotBefore
	}
	to := from.Add(b.Profile.validity - time.Second) // the last second is part of the validity (RFC 5280 4.1.2.5)
	if to.After(b.in.Issuer.NotAfter) {
		to = b.in.Issuer.NotAfter
	}
	b.template.NotBefore, b.template.NotAfter = from, to
	if !to.After(b.in.Now) || b.in.Now.Before(b.in.Issuer.NotBefore) {
		b.fail("validity", "the issuing CA is valid from %s to %s", b.in.Issuer.NotBefore.Format(time.RFC3339), b.in.Issuer.NotAfter.Format(time.RFC3339))
		return
	}
	b.pass("validity", "%s to %s", from.Format(time.RFC3339), to.Format(time.RFC3339))
}

func (b *builder) addresses() {
	if b.in.PublicURL == "" {
		return
	}
	name := url.PathEscape(b.in.IssuerName)
	for _, kind := range b.file.Addresses {
		switch kind {
		case "crl":
			path := b.in.CRLPath
			if path == "" {
				path = name + ".crl"
			}
			b.template.CRLDistributionPoints = []string{b.in.PublicURL + "/crl/" + path}
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
