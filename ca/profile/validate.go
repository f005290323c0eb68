// What a profile file may say. Everything that is wrong is named at once, each with its key.

package profile

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

type problems func(key, format string, args ...any)

func (p *Profile) validate() error {
	var list []error
	problem := problems(func(key, format string, args ...any) {
		list = append(list, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	})
	f := &p.file
	if !nameForm.MatchString(f.Name) || f.Name == "ca" {
		problem("name", "want %s, and not ca", nameForm)
	}
	if _, known := ceilings[f.Use]; !known {
		problem("use", "want broker, birth, management, ocsp or ca, not %q", f.Use)
	}
	p.validateKeys(problem)
	p.validateTimes(problem)
	p.validateAddresses(problem)
	p.validatePolicies(problem)
	if f.Use == UseCA {
		p.validateCA(problem)
		return errors.Join(list...)
	}
	if f.PathLength != nil || !f.Constraints.empty() {
		problem("use", "path_length and name_constraints are for use ca")
	}
	p.validateSubject(problem)
	p.validateUsage(problem)
	p.validateSAN(problem)
	p.validateRequest(problem)
	return errors.Join(list...)
}

// choice sets an absent value to the first of the choices and refuses what is none of them.
func choice(problem problems, key string, value *string, choices ...string) {
	if *value == "" {
		*value = choices[0]
	}
	if !slices.Contains(choices, *value) {
		problem(key, "want %s, not %q", strings.Join(choices, " or "), *value)
	}
}

var signatureNames = map[string]x509.SignatureAlgorithm{"ecdsa-sha256": x509.ECDSAWithSHA256, "ecdsa-sha384": x509.ECDSAWithSHA384, "rsa-sha256": x509.SHA256WithRSA}

func (p *Profile) validateKeys(problem problems) {
	f := &p.file
	if len(f.Keys) == 0 {
		problem("keys", "at least one")
	}
	for _, k := range f.Keys {
		if !knownKey(k) {
			problem("keys", "%q is not one of %s", k, strings.Join(keySpecs, ", "))
		}
	}
	for _, b := range f.Bundles {
		if b != "pem" && b != "p12" && (b != "none" || len(f.Bundles) > 1) {
			problem("bundles", "%q is not pem or p12; [none] stands alone", b)
		}
	}
	choice(problem, "key_reuse", &f.KeyReuse, "refuse", "allow")
	choice(problem, "revoked_keys", &f.RevokedKeys, "refuse", "compromised")
	for _, s := range f.Signature {
		algorithm, known := signatureNames[s]
		if !known {
			problem("signature", "%q is not ecdsa-sha256, ecdsa-sha384 or rsa-sha256", s)
		}
		p.signature = append(p.signature, algorithm)
	}
}

func (p *Profile) validateTimes(problem problems) {
	f := &p.file
	var err error
	ceiling := ceilings[f.Use]
	switch {
	case f.NotAfter != "" && f.Validity != "":
		problem("not_after", "give validity or not_after, not both")
	case f.NotAfter != "":
		if p.until, err = time.Parse(time.RFC3339, f.NotAfter); err != nil {
			problem("not_after", "%q is not a time such as 2035-01-01T00:00:00Z", f.NotAfter)
		}
		p.until, p.validity = p.until.UTC().Truncate(time.Second), ceiling
	default:
		if p.validity, err = parseDuration(f.Validity); err != nil || p.validity < time.Minute {
			problem("validity", "%q is not a duration such as 365d, 24h or 90m of at least a minute", f.Validity)
		} else if ceiling > 0 && p.validity > ceiling {
			problem("validity", "%s is above the ceiling of %dd for use %s", f.Validity, ceiling/(24*time.Hour), f.Use)
		}
	}
	choice(problem, "beyond_issuer", &f.BeyondIssuer, "cut", "refuse")
	if f.Backdate != "" {
		if p.backdate, err = parseDuration(f.Backdate); err != nil || p.backdate < 0 || p.backdate > time.Hour {
			problem("backdate", "%q is not a duration between 0s and 1h", f.Backdate)
		}
	}
	if f.RenewWithin != "" {
		if p.renewWithin, err = parseDuration(f.RenewWithin); err != nil || p.renewWithin < time.Minute {
			problem("renew_within", "%q is not a duration such as 120d", f.RenewWithin)
		}
	}
}

// addressKinds are the addresses that a certificate may carry.
var addressKinds = []string{"crl", "issuer", "ocsp"}

func (p *Profile) validateAddresses(problem problems) {
	f := &p.file
	if f.Distribution {
		if f.Addresses != nil {
			problem("distribution_points", "give addresses or distribution_points, not both")
		}
		f.Addresses = []string{"crl", "issuer"}
	}
	for _, a := range f.Addresses {
		if !slices.Contains(addressKinds, a) {
			problem("addresses", "%q is not one of %s", a, strings.Join(addressKinds, ", "))
		}
	}
	if f.Use == UseOCSP && len(f.Addresses) > 0 {
		problem("addresses", "nobody asks for the status of an OCSP signer: use ocsp has none")
	}
}

func (p *Profile) validatePolicies(problem problems) {
	for _, text := range p.file.Policies {
		oid, err := x509.ParseOID(text)
		if err != nil {
			problem("certificate_policies", "%q is not an OID", text)
		}
		if slices.ContainsFunc(p.policies, oid.Equal) {
			problem("certificate_policies", "%s is there twice", text)
		}
		p.policies = append(p.policies, oid)
	}
}

var usageBits = map[string]x509.KeyUsage{
	"digitalSignature": x509.KeyUsageDigitalSignature, "nonRepudiation": x509.KeyUsageContentCommitment, "keyEncipherment": x509.KeyUsageKeyEncipherment,
	"dataEncipherment": x509.KeyUsageDataEncipherment, "keyAgreement": x509.KeyUsageKeyAgreement,
}

var ekuNames = map[string]x509.ExtKeyUsage{
	"clientAuth":  x509.ExtKeyUsageClientAuth,
	"serverAuth":  x509.ExtKeyUsageServerAuth,
	"OCSPSigning": x509.ExtKeyUsageOCSPSigning,
}

var (
	oidCMCRA   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 28} // RFC 6402: registration authorities
	oidAnyEKU  = asn1.ObjectIdentifier{2, 5, 29, 37, 0}
	pkixEKUArc = "1.3.6.1.5.5.7.3."
)

func (p *Profile) validateUsage(problem problems) {
	f := &p.file
	choice(problem, "basic_constraints", &f.Basic, "critical", "noncritical", "omit")
	for _, name := range f.KeyUsage.Bits {
		bit, known := usageBits[name]
		if !known {
			problem("key_usage.bits", "%q is not digitalSignature, nonRepudiation, keyEncipherment, dataEncipherment or keyAgreement", name)
		}
		p.usage |= bit
	}
	encipher := x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	if p.usage&encipher != 0 && slices.ContainsFunc(f.Keys, func(k string) bool { return !strings.HasPrefix(k, "rsa:") }) {
		problem("key_usage.bits", "keyEncipherment and dataEncipherment are for RSA keys (RFC 8813)")
	}
	p.validateEKU(problem)
	has := func(name string) bool { return slices.Contains(f.EKU, name) }
	if f.Use != UseManagement && (has("serverAuth") || has("cmcRA")) {
		problem("extended_key_usage", "serverAuth and cmcRA are for use management: a device certificate must not pass for a server")
	}
	if f.Use != UseBroker && f.Use != UseBirth && has("none") {
		problem("extended_key_usage", "without the extension a certificate serves for anything: that is for devices only")
	}
	if has("serverAuth") && !f.SAN.Required {
		problem("san.required", "a server certificate is named by its SAN (RFC 9525): want true")
	}
	switch signer := has("OCSPSigning"); {
	case f.Use == UseOCSP && !slices.Equal(f.EKU, []string{"OCSPSigning"}):
		problem("extended_key_usage", "use ocsp has OCSPSigning alone: whoever holds such a key speaks for the CA")
	case f.Use != UseOCSP && (signer || f.NoCheck):
		problem("use", "OCSPSigning and ocsp_no_check are for use ocsp")
	case f.Use == UseOCSP && p.usage&^x509.KeyUsageDigitalSignature != 0:
		problem("key_usage.bits", "an OCSP signer only signs")
	}
}

func (p *Profile) validateEKU(problem problems) {
	f := &p.file
	if len(f.EKU) == 0 {
		problem("extended_key_usage", "at least one, or [none]")
	}
	for _, name := range f.EKU {
		eku, known := ekuNames[name]
		switch {
		case known:
			p.ekus = append(p.ekus, eku)
		case name == "cmcRA":
			p.unknownEKUs = append(p.unknownEKUs, oidCMCRA)
		case name == "none" && len(f.EKU) == 1:
		case name == "none":
			problem("extended_key_usage", "none stands alone")
		default:
			oid, err := parseOID(name)
			if err != nil || oid.Equal(oidAnyEKU) || strings.HasPrefix(name, pkixEKUArc) {
				problem("extended_key_usage", "%q is not clientAuth, serverAuth, cmcRA, OCSPSigning or an OID of your own", name)
				continue
			}
			p.unknownEKUs = append(p.unknownEKUs, oid)
		}
	}
}

func parseOID(text string) (asn1.ObjectIdentifier, error) {
	if _, err := x509.ParseOID(text); err != nil {
		return nil, err
	}
	var oid asn1.ObjectIdentifier
	for _, part := range strings.Split(text, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil, err
		}
		oid = append(oid, n)
	}
	return oid, nil
}

func (p *Profile) validateSubject(problem problems) {
	f := &p.file
	if !slices.Contains([]string{"device", "first_dns"}, f.Subject.CommonName) {
		problem("subject.common_name", "want device or first_dns, not %q", f.Subject.CommonName)
	}
	if !slices.Contains([]string{"", "device"}, f.Subject.SerialNumber) {
		problem("subject.serial_number", "want device or nothing, not %q", f.Subject.SerialNumber)
	}
	if f.Subject.CommonName == "first_dns" && !f.SAN.Registered {
		problem("subject.common_name", "first_dns needs san.registered")
	}
	if f.Subject.CommonName == "first_dns" && f.Use != UseManagement {
		problem("subject.common_name", "first_dns is for use management: a device is called by its id, or brokers would take it for another")
	}
	p.patterns = map[string]*regexp.Regexp{}
	for name, rule := range f.Subject.Fields {
		key := "subject.fields." + name
		_, known := subjectFields[name]
		identity := name == "CN" || name == "serialNumber"
		if !known && !identity {
			problem(key, "not one of C, ST, L, STREET, POSTALCODE, O, OU, CN, serialNumber")
		}
		if rule.Pattern != "" {
			pattern, err := anchored(rule.Pattern)
			if err != nil {
				problem(key+".pattern", "%v", err)
			}
			p.patterns[name] = pattern
		}
		switch {
		case identity && rule.Value != "":
			problem(key+".value", "the identity is the server's to say")
		case identity:
		case rule.Value == "" && rule.Pattern == "":
			problem(key, "give value, or pattern for what a request may choose")
		case rule.Value != "" && rule.Pattern != "":
			problem(key, "give value or pattern, not both")
		case rule.Value != "" && !fieldForm(name, rule.Value):
			problem(key+".value", "%q is not printable text of at most 64 characters (C: two letters)", rule.Value)
		}
	}
}

// anchored compiles a pattern that matches whole values only. The text must show it: "a|b" and "^a|b$" match parts.
func anchored(pattern string) (*regexp.Regexp, error) {
	if len(pattern) > 500 || !strings.HasPrefix(pattern, "^") || !strings.HasSuffix(pattern, "$") || strings.HasSuffix(pattern, `\$`) {
		return nil, errors.New("want a regular expression of at most 500 characters between ^ and $")
	}
	if _, err := regexp.Compile(pattern); err != nil {
		return nil, err
	}
	inner := pattern[1 : len(pattern)-1]
	if _, err := regexp.Compile(inner); err != nil { // an escape or a class that the cut broke
		return nil, fmt.Errorf("cannot be read between ^ and $: %w", err)
	}
	return regexp.Compile(`\A(?:` + inner + `)\z`)
}

func (p *Profile) validateRequest(problem problems) {
	f := &p.file
	for _, a := range f.CSR.Allow {
		if !slices.Contains([]string{"san.dns", "san.ip", "san.uri", "san.email"}, a) {
			problem("csr.allow", "%q is not san.dns, san.ip, san.uri or san.email", a)
		}
	}
	choice(problem, "csr.unlisted", &f.CSR.Unlisted, "refuse", "drop")
	for key, value := range map[string]*string{"subject": &f.CSR.UnlistedSubject, "san": &f.CSR.UnlistedSAN, "extensions": &f.CSR.UnlistedExtensions} {
		if *value == "" {
			*value = f.CSR.Unlisted
		}
		choice(problem, "csr.unlisted_"+key, value, "refuse", "drop")
	}
}

// nameCeiling is how many alternative names a certificate may have, whatever a file says.
const nameCeiling = 100

func (p *Profile) validateSAN(problem problems) {
	s := &p.file.SAN
	count := func(key string, n *int, otherwise int) {
		if *n == 0 {
			*n = otherwise
		}
		if *n < 1 || *n > nameCeiling {
			problem(key, "want 1 to %d, not %d", nameCeiling, *n)
		}
	}
	count("san.max", &s.Max, 32)
	if s.MinDNS < 0 || s.MinDNS > s.Max {
		problem("san.min_dns", "want 0 to %d", s.Max)
	}
	if r := s.Requested.DNS; r != nil {
		count("san.requested.dns.max", &r.Max, 8)
		if len(r.Suffixes) == 0 {
			problem("san.requested.dns.suffixes", "at least one, or [any]")
		}
		for i, suffix := range r.Suffixes {
			r.Suffixes[i] = strings.ToLower(suffix)
			if suffix != "any" && !dnsForm(strings.TrimPrefix(r.Suffixes[i], ".")) {
				problem("san.requested.dns.suffixes", "%q is not a domain", suffix)
			}
		}
		if r.Wildcard && (p.file.Use != UseManagement || slices.Contains(r.Suffixes, "any")) {
			problem("san.requested.dns.wildcard", "for use management and named suffixes only")
		}
	}
	if r := s.Requested.IP; r != nil {
		count("san.requested.ip.max", &r.Max, 8)
		for _, text := range r.Networks {
			network, err := netip.ParsePrefix(text)
			if err != nil || network != network.Masked() {
				problem("san.requested.ip.networks", "%q is not a network such as 10.0.0.0/8", text)
			}
			p.networks = append(p.networks, network)
		}
		if len(r.Networks) == 0 {
			problem("san.requested.ip.networks", "at least one")
		}
	}
	p.validateRequestedTexts(problem, count)
}

func (p *Profile) validateRequestedTexts(problem problems, count func(key string, n *int, otherwise int)) {
	if r := p.file.SAN.Requested.URI; r != nil {
		count("san.requested.uri.max", &r.Max, 8)
		if len(r.Prefixes) == 0 {
			problem("san.requested.uri.prefixes", "at least one")
		}
		for _, prefix := range r.Prefixes {
			u, err := url.Parse(prefix)
			if err != nil || u.Scheme == "" || u.User != nil || strings.Contains(prefix, "://") && (u.Host == "" || u.Path == "") {
				problem("san.requested.uri.prefixes", "%q is not a scheme and, where it has a host, the slash behind it", prefix)
			}
		}
	}
	if r := p.file.SAN.Requested.Email; r != nil {
		count("san.requested.email.max", &r.Max, 8)
		if len(r.Domains) == 0 {
			problem("san.requested.email.domains", "at least one")
		}
		for i, domain := range r.Domains {
			if r.Domains[i] = strings.ToLower(domain); !dnsForm(r.Domains[i]) {
				problem("san.requested.email.domains", "%q is not a domain", domain)
			}
		}
	}
}

func (c *nameConstraints) empty() bool { return c.Permitted.empty() && c.Excluded.empty() }

func (s *subtrees) empty() bool { return len(s.DNS)+len(s.IP)+len(s.Email)+len(s.URI) == 0 }

// validateCA: a CA's certificate takes its subject from whoever makes it, and nothing from a request but the key.
func (p *Profile) validateCA(problem problems) {
	f := &p.file
	if f.Subject.CommonName != "" || f.Subject.SerialNumber != "" || f.Subject.Fields != nil || f.SAN != (san{}) || f.KeyUsage.Bits != nil || f.KeyUsage.Critical != nil ||
		f.Basic != "" || f.NoCheck || f.SingleActive || f.RenewWithin != "" || f.CSR.Allow != nil || f.CSR.Unlisted != "" {
		problem("use", "use ca has keys, signature, times, addresses, certificate_policies, extended_key_usage, path_length and name_constraints only")
	}
	for _, k := range f.Keys {
		if strings.HasPrefix(k, "ed") || k == "ec:P-521" || k == "rsa:2048" {
			problem("keys", "a CA's key is ec:P-256, ec:P-384, rsa:3072 or stronger, not %s", k)
		}
	}
	if len(f.EKU) > 0 && !slices.Equal(f.EKU, []string{"none"}) {
		p.validateEKU(problem)
	}
	if f.PathLength != nil && (*f.PathLength < 0 || *f.PathLength > 5) {
		problem("path_length", "want 0 to 5, not %d", *f.PathLength)
	}
	p.permittedIPs = parseNetworks(problem, "name_constraints.permitted.ip", f.Constraints.Permitted.IP)
	p.excludedIPs = parseNetworks(problem, "name_constraints.excluded.ip", f.Constraints.Excluded.IP)
	for key, trees := range map[string]subtrees{"permitted": f.Constraints.Permitted, "excluded": f.Constraints.Excluded} {
		for kind, list := range map[string][]string{"dns": trees.DNS, "email": trees.Email, "uri": trees.URI} {
			for _, name := range list {
				_, domain, mailbox := strings.Cut(name, "@")
				if !mailbox || kind != "email" {
					domain = strings.TrimPrefix(name, ".")
				}
				if !dnsForm(strings.ToLower(domain)) {
					problem("name_constraints."+key+"."+kind, "%q is not a domain", name)
				}
			}
		}
	}
}

func parseNetworks(problem problems, key string, list []string) []*net.IPNet {
	var networks []*net.IPNet
	for _, text := range list {
		_, network, err := net.ParseCIDR(text)
		if err != nil {
			problem(key, "%q is not a network such as 10.0.0.0/8", text)
		}
		networks = append(networks, network)
	}
	return networks
}

// parseDuration is time.ParseDuration plus whole days ("365d").
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 0 || n > 100000 {
			return 0, fmt.Errorf("%q is not a number of days", s)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	return time.ParseDuration(s)
}
