// Package profile decides what a certificate looks like. A profile is a small YAML file; parsed and
// validated once, it turns an authenticated identity and a certificate signing request into an x509
// template, or into the name of the rule that the request breaks.
//
// Everything here is a pure function: no clock, no database, no key. What cannot be unsafe is not
// configurable: leaves only (CA:FALSE) except for use ca, validity below a ceiling, never past the issuer, and nothing of
// a request reaches a certificate except its public key and what the profile lists.
//
// Files: profile.go (Profile), file.go (YAML form), validate.go (what a file may say), build.go (Profile + request -> template,
// findings), subject.go, names.go and usage.go (its parts), ca.go (profiles of CAs), check.go (what is legal and unwise), key.go (key specs).
package profile

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// What the certificates of a profile are for. A CA issues for one use only, which keeps birth and management
// certificates out of every broker's trust set.
const (
	UseBroker     = "broker"     // devices: the issuing CA is in the brokers' trust set
	UseBirth      = "birth"      // birth certificates: never in a broker's trust set
	UseManagement = "management" // EST servers, administrators, bridges, brokers' own certificates
	UseOCSP       = "ocsp"       // OCSP signers: the one use that a CA of any use issues for, and no label has
	UseCA         = "ca"         // certificates of CAs: for ca create and ca sign, no label has one
)

// The longest validity of each use, whatever a file says.
var ceilings = map[string]time.Duration{
	UseBroker:     5 * 366 * 24 * time.Hour,
	UseBirth:      30 * 366 * 24 * time.Hour,
	UseManagement: 825 * 24 * time.Hour,
	UseOCSP:       90 * 24 * time.Hour,
	UseCA:         40 * 366 * 24 * time.Hour,
}

// Profile is a valid certificate profile. It never changes; share it freely.
type Profile struct {
	file         file
	source       []byte
	hash         string
	validity     time.Duration // the ceiling of the use where the end is fixed
	until        time.Time     // zero: no fixed end
	backdate     time.Duration
	renewWithin  time.Duration // 0: always
	ekus         []x509.ExtKeyUsage
	unknownEKUs  []asn1.ObjectIdentifier
	usage        x509.KeyUsage // 0: by the kind of key
	policies     []x509.OID
	signature    []x509.SignatureAlgorithm
	patterns     map[string]*regexp.Regexp // by subject field
	networks     []netip.Prefix            // of san.requested.ip
	permittedIPs []*net.IPNet              // of name_constraints
	excludedIPs  []*net.IPNet
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// Parse reads and validates a profile. The error names every problem with its key.
func Parse(source []byte) (*Profile, error) {
	p := &Profile{source: bytes.Clone(source)}
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	decoder.KnownFields(true)
	if err := decoder.Decode(&p.file); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("profile: the file is empty")
		}
		return nil, fmt.Errorf("profile: %s", plainly(err))
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("profile: one document only")
	}
	sum := sha256.Sum256(source)
	p.hash = hex.EncodeToString(sum[:])
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("profile %q: %w", p.file.Name, err)
	}
	return p, nil
}

// plainly is what the YAML decoder says, without the Go types behind it: whoever writes a profile knows keys and lines.
func plainly(err error) string {
	var problems *yaml.TypeError
	if !errors.As(err, &problems) {
		return "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")
	}
	plain := make([]string, len(problems.Errors))
	for i, problem := range problems.Errors {
		if line, _, ok := strings.Cut(problem, ": cannot unmarshal"); ok {
			problem = line + ": a value of another kind than the key takes; see docs/profiles.md"
		}
		problem, _, _ = strings.Cut(problem, " in type ")
		plain[i] = strings.Replace(problem, " not found", " is not one of a profile's keys", 1)
	}
	return strings.Join(plain, "; ")
}

// Name is the profile's name.
func (p *Profile) Name() string { return p.file.Name }

// Hash is the SHA-256 of the file, hex; every certificate's record keeps it.
func (p *Profile) Hash() string { return p.hash }

// YAML is the file as it was read.
func (p *Profile) YAML() string { return string(p.source) }

// Use is UseBroker, UseBirth, UseManagement, UseOCSP or UseCA.
func (p *Profile) Use() string { return p.file.Use }

// KeySpecs lists the accepted keys, in the file's order of preference.
func (p *Profile) KeySpecs() []string { return slices.Clone(p.file.Keys) }

// Bundles lists the formats in which a key made by the server may be handed out, with its certificate: pem, p12.
func (p *Profile) Bundles() []string {
	switch {
	case len(p.file.Bundles) == 0:
		return []string{"pem", "p12"}
	case p.file.Bundles[0] == "none":
		return nil
	}
	return slices.Clone(p.file.Bundles)
}

// Validity is how long a certificate lives, its last second included; with a fixed end, how long it may at most.
func (p *Profile) Validity() time.Duration { return p.validity }

// ClientAuth tells whether the certificates authenticate clients. No extended key usage at all means any use (RFC 5280 section
// 4.2.1.12), so such certificates do as well.
func (p *Profile) ClientAuth() bool {
	return !p.hasEKU() && p.file.Use != UseCA || slices.Contains(p.ekus, x509.ExtKeyUsageClientAuth)
}

func (p *Profile) hasEKU() bool { return len(p.ekus)+len(p.unknownEKUs) > 0 }

// AllowsKeyReuse tells whether a public key of another end entity is accepted.
func (p *Profile) AllowsKeyReuse() bool { return p.file.KeyReuse == "allow" }

// AllowsRevokedKeys tells whether a public key of a revoked certificate is accepted, unless it was revoked as compromised.
func (p *Profile) AllowsRevokedKeys() bool { return p.file.RevokedKeys == "compromised" }

// SingleActive tells whether a new certificate revokes the older ones of the end entity.
func (p *Profile) SingleActive() bool { return p.file.SingleActive }

// LimitsRenewal tells whether Input.Renewed matters.
func (p *Profile) LimitsRenewal() bool { return p.renewWithin > 0 }

// Distribution tells whether the certificates carry the address of a CRL.
func (p *Profile) Distribution() bool { return slices.Contains(p.file.Addresses, "crl") }

// IssuedBy tells whether a CA of this name may issue by the profile.
func (p *Profile) IssuedBy(authority string) bool {
	return len(p.file.Issuers) == 0 || slices.Contains(p.file.Issuers, authority)
}
