// Subject alternative names: never more than the identity, what is registered with it, and what the profile lets a requester choose.

package profile

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

func (b *builder) san() {
	registered := b.allowedNames()
	asked := b.askedNames()
	if asked == nil {
		b.addNames(registered)
	} else {
		granted := b.grant(asked, registered)
		if b.file.SAN.DeviceDNS && len(registered) > 0 && !slices.Contains(granted, registered[0]) {
			granted = append([]string{registered[0]}, granted...) // the CN of a server must be in its SAN
		}
		b.addNames(granted)
	}
	t, s := b.template, b.file.SAN
	count := len(t.DNSNames) + len(t.IPAddresses) + len(t.URIs) + len(t.EmailAddresses)
	if count > s.Max {
		b.fail("san_limit", "%d names, the profile allows %d", count, s.Max)
	}
	switch {
	case s.Required && count == 0:
		b.fail("san_required", "the profile needs a subject alternative name")
	case len(t.DNSNames) < s.MinDNS:
		b.fail("san_required", "%d DNS names, the profile needs %d", len(t.DNSNames), s.MinDNS)
	case s.Required:
		b.pass("san_required", "%d names", count)
	}
}

// grant judges each name that the request asks for.
func (b *builder) grant(asked, registered []string) []string {
	granted, chosen := []string{}, map[string]int{}
	for _, name := range asked {
		kind, value, _ := strings.Cut(name, ":")
		allowed, limit := b.mayChoose(kind, value)
		listed := slices.Contains(b.file.CSR.Allow, "san."+kind)
		switch {
		case slices.Contains(granted, name):
		case listed && slices.Contains(registered, name):
			granted = append(granted, name)
		case limit == 0 && !listed:
			b.unlisted(b.file.CSR.UnlistedSAN, "san_unlisted", "subject alternative name %s", clip(name))
		case limit == 0:
			b.fail("san_not_registered", "%s is not registered for %s", clip(name), b.in.Device)
		case !allowed:
			b.fail("san_not_allowed", "%s is outside of what a request may choose", clip(name))
		case b.in.Reserved != nil && b.in.Reserved(name):
			b.fail("san_reserved", "%s is the name of somebody else", clip(name))
		case chosen[kind] == limit:
			b.fail("san_limit", "more than %d names of kind %s", limit, kind)
		default:
			chosen[kind]++
			granted = append(granted, name)
			b.pass("san_not_allowed", "%s may be chosen", clip(name))
		}
	}
	return granted
}

// mayChoose tells whether a requester may choose a name, and how many of its kind; 0: none of this kind.
func (b *builder) mayChoose(kind, value string) (allowed bool, limit int) {
	r := &b.file.SAN.Requested
	switch {
	case kind == "dns" && r.DNS != nil:
		return r.DNS.allows(value), r.DNS.Max
	case kind == "ip" && r.IP != nil:
		address, err := netip.ParseAddr(value)
		return err == nil && slices.ContainsFunc(b.networks, func(n netip.Prefix) bool { return n.Contains(address) }), r.IP.Max
	case kind == "uri" && r.URI != nil:
		return uriForm(value) && slices.ContainsFunc(r.URI.Prefixes, func(prefix string) bool { return strings.HasPrefix(value, prefix) }), r.URI.Max
	case kind == "email" && r.Email != nil:
		local, domain, _ := strings.Cut(value, "@")
		return mailboxForm.MatchString(local) && slices.Contains(r.Email.Domains, strings.ToLower(domain)), r.Email.Max
	}
	return false, 0
}

func (r *dnsRule) allows(name string) bool {
	if rest, wildcard := strings.CutPrefix(name, "*."); wildcard && r.Wildcard {
		name = rest
	}
	return dnsForm(name) && slices.ContainsFunc(r.Suffixes, func(suffix string) bool {
		below := "." + strings.TrimPrefix(suffix, ".")
		return suffix == "any" || name == suffix || strings.HasSuffix(name, below)
	})
}

var (
	dnsPattern  = regexp.MustCompile(`\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*\z`)
	mailboxForm = regexp.MustCompile(`\A[A-Za-z0-9!#$%&'*+/=?^_{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_{|}~-]+)*\z`)
	uriPattern  = regexp.MustCompile(`\A[A-Za-z0-9:/?#\[\]!$&'()*+,;=._~%-]{1,255}\z`)
)

// dnsForm tells whether name is a host name in lower case; an address written as a name is none.
func dnsForm(name string) bool {
	_, err := netip.ParseAddr(name)
	return err != nil && len(name) <= 253 && dnsPattern.MatchString(name)
}

// uriForm wants plain characters and no way out of a prefix.
func uriForm(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.User == nil && uriPattern.MatchString(text) && !strings.Contains(u.Path, "/..") && !strings.Contains(u.Path, "/./")
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
	t := b.template
	for _, name := range names {
		switch kind, value, _ := strings.Cut(name, ":"); kind {
		case "ip":
			t.IPAddresses = append(t.IPAddresses, net.ParseIP(value))
		case "email":
			t.EmailAddresses = append(t.EmailAddresses, value)
		case "uri":
			if u, err := url.Parse(value); err == nil {
				t.URIs = append(t.URIs, u)
			}
		default:
			t.DNSNames = append(t.DNSNames, value)
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
