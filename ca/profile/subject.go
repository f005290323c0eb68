// The subject: the authenticated identity, constants of the profile, and those attributes that a request may choose by a pattern.

package profile

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialNumber = asn1.ObjectIdentifier{2, 5, 4, 5}
)

// subjectFields are the attributes that a profile may rule about, beside the identity.
var subjectFields = map[string]asn1.ObjectIdentifier{
	"C": {2, 5, 4, 6}, "ST": {2, 5, 4, 8}, "L": {2, 5, 4, 7}, "STREET": {2, 5, 4, 9}, "POSTALCODE": {2, 5, 4, 17}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11},
}

var country = regexp.MustCompile(`\A[A-Z]{2}\z`)

// fieldForm tells whether a value can stand in a certificate: printable, not too long for RFC 5280's bounds, the same for every reader.
func fieldForm(name, value string) bool {
	if name == "C" {
		return country.MatchString(value)
	}
	printable := func(r rune) bool { return unicode.IsPrint(r) && r != unicode.ReplacementChar }
	return value != "" && len([]rune(value)) <= 64 && strings.TrimSpace(value) == value && !strings.ContainsFunc(value, func(r rune) bool { return !printable(r) })
}

func (b *builder) subject() {
	want := b.in.Device
	if b.file.Subject.CommonName == "first_dns" {
		want = b.firstRegistered()
	}
	b.template.Subject = pkix.Name{CommonName: want}
	before := len(b.findings)
	if want == "" {
		b.fail("subject_common_name", "there is no identity to name")
	}
	b.matchIdentity("CN", "subject_common_name", want)
	if b.file.Subject.SerialNumber == "device" {
		b.template.Subject.SerialNumber = b.in.Device
		b.matchIdentity("serialNumber", "subject_serial_number", b.in.Device)
	}
	chosen := b.askedSubject(want)
	if len(b.findings) == before {
		b.pass("subject_common_name", "%s", want)
	}
	b.fields(chosen)
	if b.file.SAN.CNInSAN {
		if b.named(want) {
			b.pass("san_cn", "%s is one of the alternative names", want)
		} else {
			b.fail("san_cn", "the common name %s is none of the alternative names", want)
		}
	}
}

// firstRegistered is the first DNS name that was not the request's own choice: what a request chooses names nobody.
func (b *builder) firstRegistered() string {
	registered := b.allowedNames()
	for _, name := range b.template.DNSNames {
		if slices.Contains(registered, "dns:"+name) {
			return name
		}
	}
	return ""
}

// matchIdentity holds the identity against the profile's pattern.
func (b *builder) matchIdentity(field, rule, value string) {
	if pattern := b.patterns[field]; pattern != nil && !pattern.MatchString(value) {
		b.fail(rule, "%q does not match %s", clip(value), b.file.Subject.Fields[field].Pattern)
	}
}

// named tells whether the common name is one of the alternative names.
func (b *builder) named(commonName string) bool {
	kind, value, _ := strings.Cut(NameOf(commonName), ":")
	if kind == "ip" {
		for _, ip := range b.template.IPAddresses {
			if NameOf(ip.String()) == "ip:"+value {
				return true
			}
		}
		return false
	}
	return slices.Contains(b.template.DNSNames, value)
}

// askedSubject compares the request's subject with the identity and returns what it says about other attributes.
func (b *builder) askedSubject(want string) map[string][]string {
	chosen := map[string][]string{}
	if b.in.CSR == nil {
		return chosen
	}
	commonNames, serialNumbers := 0, 0
	for _, attribute := range b.in.CSR.Subject.Names {
		value, _ := attribute.Value.(string)
		switch name := b.ruled(attribute.Type); {
		case attribute.Type.Equal(oidCommonName):
			if commonNames++; value != want {
				b.fail("subject_common_name", "the request names %q, the authenticated identity is %q", clip(value), want)
			}
		case attribute.Type.Equal(oidSerialNumber):
			if serialNumbers++; value != b.in.Device {
				b.fail("subject_serial_number", "the request names %q, the authenticated identity is %q", clip(value), want)
			}
		case name != "":
			chosen[name] = append(chosen[name], value)
		default:
			b.unlisted(b.file.CSR.UnlistedSubject, "subject_unlisted", "subject attribute %v", attribute.Type)
		}
	}
	if commonNames > 1 {
		b.fail("subject_common_name", "the request has %d common names: one identity, one name", commonNames)
	}
	if commonNames == 0 && b.file.Subject.Fields["CN"].Required {
		b.fail("subject_common_name", "the request has no common name, and the profile wants it there")
	}
	if serialNumbers == 0 && b.file.Subject.Fields["serialNumber"].Required {
		b.fail("subject_serial_number", "the request has no serial number in its subject, and the profile wants it there")
	}
	return chosen
}

// ruled is the name of an attribute that the profile has a rule for, or "".
func (b *builder) ruled(oid asn1.ObjectIdentifier) string {
	for name, known := range subjectFields {
		if _, has := b.file.Subject.Fields[name]; has && known.Equal(oid) {
			return name
		}
	}
	return ""
}

// fields fills the further attributes of the subject.
func (b *builder) fields(chosen map[string][]string) {
	s := &b.template.Subject
	for _, f := range []struct {
		name string
		to   *[]string
	}{
		{"C", &s.Country}, {"ST", &s.Province}, {"L", &s.Locality}, {"STREET", &s.StreetAddress}, {"POSTALCODE", &s.PostalCode}, {"O", &s.Organization}, {"OU", &s.OrganizationalUnit},
	} {
		rule, has := b.file.Subject.Fields[f.name]
		asked := chosen[f.name]
		switch {
		case !has:
		case len(asked) > 1:
			b.fail("subject_field", "the request has %s %d times", f.name, len(asked))
		case len(asked) == 0 && rule.Required:
			b.fail("subject_field", "the request has no %s, and the profile wants it there", f.name)
		case rule.Value != "" && len(asked) == 1 && asked[0] != rule.Value:
			b.fail("subject_field", "%s is always %q, the request has %q", f.name, rule.Value, clip(asked[0]))
		case rule.Value != "":
			*f.to = []string{rule.Value}
		case len(asked) == 0:
		case !fieldForm(f.name, asked[0]) || !b.patterns[f.name].MatchString(asked[0]):
			b.fail("subject_field", "%s %q does not match %s", f.name, clip(asked[0]), rule.Pattern)
		default:
			*f.to = []string{asked[0]}
			b.pass("subject_field", "%s %s", f.name, asked[0])
		}
	}
}
