// What a profile file may say and still should not: found before a fleet finds it.

package profile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Remark is one thing about a profile file.
type Remark struct {
	Error bool   `json:"error"` // certificates would be refused or useless; else it works and is unwise
	Key   string `json:"key"`
	Text  string `json:"text"`
}

// checker collects remarks.
type checker struct {
	*Profile
	list []Remark
}

func (c *checker) bad(key, format string, args ...any) {
	c.list = append(c.list, Remark{true, key, fmt.Sprintf(format, args...)})
}

func (c *checker) warn(key, format string, args ...any) {
	c.list = append(c.list, Remark{false, key, fmt.Sprintf(format, args...)})
}

// Check looks beyond what Parse refuses; issuers are the CAs that may issue by the profile, if any are known. Errors come first.
func (p *Profile) Check(issuers []*x509.Certificate, now time.Time) []Remark {
	c := &checker{Profile: p}
	f := &p.file
	device := f.Use == UseBroker || f.Use == UseBirth
	if device && !p.ClientAuth() {
		c.bad("extended_key_usage", "a device profile without clientAuth: no broker and no renewal would accept the certificate")
	}
	if device && !p.hasEKU() {
		c.warn("extended_key_usage", "without the extension a certificate serves for anything, for TLS servers too")
	}
	if f.Use != UseOCSP && f.Use != UseCA && !p.Distribution() {
		c.warn("addresses", "without crl, whoever gets such a certificate cannot find out that it is revoked")
	}
	if !slices.ContainsFunc(f.Keys, func(k string) bool { return !strings.HasPrefix(k, "rsa:") }) {
		c.warn("keys", "RSA only: devices with EC keys are refused")
	}
	if f.KeyReuse == "allow" {
		c.warn("key_reuse", "one stolen key may be several devices")
	}
	if f.CSR.UnlistedSubject == "drop" || f.CSR.UnlistedSAN == "drop" || f.CSR.UnlistedExtensions == "drop" {
		c.warn("csr.unlisted", "a device is not told that it does not get what it asked for")
	}
	c.checkNames()
	c.checkTimes(now)
	for _, issuer := range issuers {
		c.checkIssuer(issuer, now)
	}
	slices.SortStableFunc(c.list, func(a, b Remark) int {
		switch {
		case a.Error == b.Error:
			return 0
		case a.Error:
			return -1
		}
		return 1
	})
	return c.list
}

func (c *checker) checkNames() {
	for name, rule := range c.file.Subject.Fields {
		if inner := strings.Trim(rule.Pattern, "^$"); rule.Pattern != "" && (strings.Contains(inner, ".*") || strings.Contains(inner, ".+") || c.patterns[name].MatchString("anything at all, 123")) {
			c.warn("subject.fields."+name+".pattern", "%s lets a request choose nearly anything", rule.Pattern)
		}
	}
	r := &c.file.SAN.Requested
	if r.DNS != nil && slices.Contains(r.DNS.Suffixes, "any") {
		c.warn("san.requested.dns.suffixes", "any: a request may choose every name that is not known to be somebody else's")
	}
	for _, n := range c.networks {
		if n.Bits() == 0 {
			c.warn("san.requested.ip.networks", "%s is every address", n)
		}
	}
}

// renewalPoint is when clients renew: at two thirds of a certificate's life.
const renewalPoint = 3

func (c *checker) checkTimes(now time.Time) {
	switch {
	case c.until.IsZero():
	case !c.until.After(now):
		c.bad("not_after", "%s is over: nothing can be issued any more", c.until.Format(time.RFC3339))
	case c.until.Sub(now) > c.Profile.validity:
		c.warn("not_after", "%s is beyond the ceiling of %dd for use %s: certificates end before", c.until.Format(time.RFC3339), c.Profile.validity/(24*time.Hour), c.file.Use)
	}
	if c.renewWithin > 0 && c.renewWithin < c.Profile.validity/renewalPoint {
		c.warn("renew_within", "clients renew at two thirds of the life; they are refused until %s before the end", c.file.RenewWithin)
	}
	if c.renewWithin >= c.Profile.validity {
		c.warn("renew_within", "limits nothing: it is longer than the certificates live")
	}
	if c.backdate == 0 && c.file.Use != UseCA {
		c.warn("backdate", "0s: a device whose clock is a little late refuses its new certificate")
	}
}

func (c *checker) checkIssuer(issuer *x509.Certificate, now time.Time) {
	name := issuer.Subject.String()
	if c.until.IsZero() {
		ends := now.Add(c.Profile.validity)
		switch {
		case c.Profile.validity > issuer.NotAfter.Sub(issuer.NotBefore):
			c.bad("validity", "longer than the whole life of the CA %s", name)
		case ends.After(issuer.NotAfter) && c.file.BeyondIssuer == "refuse":
			c.bad("validity", "ends after the CA %s (%s) and is refused", name, issuer.NotAfter.Format(time.RFC3339))
		case ends.After(issuer.NotAfter):
			c.warn("validity", "ends after the CA %s: cut to %s", name, issuer.NotAfter.Format(time.RFC3339))
		}
	} else if c.until.After(issuer.NotAfter) {
		c.warn("not_after", "is after the end of the CA %s (%s)", name, issuer.NotAfter.Format(time.RFC3339))
	}
	if algorithm := signs(issuer); c.signature != nil && !slices.Contains(c.signature, algorithm) {
		c.bad("signature", "the CA %s signs with %s", name, algorithm)
	}
	if _, ec := issuer.PublicKey.(*ecdsa.PublicKey); ec && !slices.ContainsFunc(c.file.Keys, func(k string) bool { return !strings.HasPrefix(k, "rsa:") }) {
		c.warn("keys", "RSA only, under the EC key of the CA %s: clients need both", name)
	}
}

// signs is what a CA signs certificates with.
func signs(issuer *x509.Certificate) x509.SignatureAlgorithm {
	switch k := issuer.PublicKey.(type) {
	case *rsa.PublicKey:
		return x509.SHA256WithRSA
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P384() {
			return x509.ECDSAWithSHA384
		}
		return x509.ECDSAWithSHA256
	}
	return x509.UnknownSignatureAlgorithm
}
