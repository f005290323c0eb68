// Package profile decides what a certificate looks like. A profile is a small YAML file; parsed and
// validated once, it turns an authenticated identity and a certificate signing request into an x509
// template, or into the name of the rule that the request breaks.
//
// Everything here is a pure function: no clock, no database, no key. What cannot be unsafe is not
// configurable: leaves only (CA:FALSE), validity below a ceiling, never past the issuer, and nothing of
// a request reaches a certificate except its public key and what the profile lists.
//
// Files: profile.go (file -> Profile), build.go (Profile + request -> template, findings), key.go (key specs).
package profile

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
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
)

// The longest validity of each use, whatever a file says.
var ceilings = map[string]time.Duration{
	UseBroker:     5 * 366 * 24 * time.Hour,
	UseBirth:      30 * 366 * 24 * time.Hour,
	UseManagement: 825 * 24 * time.Hour,
	UseOCSP:       90 * 24 * time.Hour,
}

// file is the YAML form; its field comments are the manual.
type file struct {
	Name         string   `yaml:"name"`                // lower case letters, digits and hyphens
	Use          string   `yaml:"use"`                 // broker, birth, management or ocsp
	Keys         []string `yaml:"keys"`                // exact set: ec:P-256, ec:P-384, ec:P-521, rsa:2048, rsa:3072, rsa:4096, ed25519
	Validity     string   `yaml:"validity"`            // 365d, 90d, 24h; the last second counts (RFC 5280 4.1.2.5)
	Backdate     string   `yaml:"backdate"`            // how far notBefore lies before the moment of issuance; default 0s
	Subject      subject  `yaml:"subject"`             // what the subject is made of
	SAN          san      `yaml:"san"`                 // what the subject alternative name is made of; default none
	EKU          []string `yaml:"extended_key_usage"`  // clientAuth, serverAuth; OCSPSigning for use ocsp
	NoCheck      bool     `yaml:"ocsp_no_check"`       // for use ocsp: nobody asks for the status of the one that tells it (RFC 6960 4.2.2.2.1)
	CSR          csr      `yaml:"csr"`                 // what a request may contribute
	Addresses    []string `yaml:"addresses"`           // what to put into the certificate: crl (CDP), issuer and ocsp (AIA)
	Distribution bool     `yaml:"distribution_points"` // true: addresses crl and issuer
}

type subject struct {
	CommonName   string `yaml:"common_name"`   // device: the id of the end entity; first_dns: the first DNS name of the SAN
	SerialNumber string `yaml:"serial_number"` // device, or nothing
}

type san struct {
	DeviceDNS  bool `yaml:"device_dns"` // the id of the end entity as dNSName (or iPAddress if it is one)
	Registered bool `yaml:"registered"` // names registered with the end entity
	Required   bool `yaml:"required"`   // refuse to issue without a SAN
}

type csr struct {
	Allow    []string `yaml:"allow"`    // san.dns, san.ip: may be asked for, if registered
	Unlisted string   `yaml:"unlisted"` // what becomes of anything else that is asked for: refuse (default) or drop
}

// Profile is a valid certificate profile. It never changes; share it freely.
type Profile struct {
	file     file
	source   []byte
	hash     string
	validity time.Duration
	backdate time.Duration
	ekus     []x509.ExtKeyUsage
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

var ekuNames = map[string]x509.ExtKeyUsage{
	"clientAuth":  x509.ExtKeyUsageClientAuth,
	"serverAuth":  x509.ExtKeyUsageServerAuth,
	"OCSPSigning": x509.ExtKeyUsageOCSPSigning,
}

// Parse reads and validates a profile. The error names every problem with its key.
func Parse(source []byte) (*Profile, error) {
	p := &Profile{source: bytes.Clone(source)}
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	decoder.KnownFields(true)
	if err := decoder.Decode(&p.file); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("profile: the file is empty")
		}
		return nil, fmt.Errorf("profile: %w", err)
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

func (p *Profile) validate() error {
	var problems []error
	problem := func(key, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	f := &p.file
	if !nameForm.MatchString(f.Name) {
		problem("name", "want %s", nameForm)
	}
	ceiling, known := ceilings[f.Use]
	if !known {
		problem("use", "want broker, birth, management or ocsp, not %q", f.Use)
	}
	if len(f.Keys) == 0 {
		problem("keys", "at least one")
	}
	for _, k := range f.Keys {
		if !knownKey(k) {
			problem("keys", "%q is not one of %s", k, strings.Join(keySpecs, ", "))
		}
	}
	var err error
	if p.validity, err = parseDuration(f.Validity); err != nil || p.validity < time.Minute {
		problem("validity", "%q is not a duration such as 365d, 24h or 90m of at least a minute", f.Validity)
	} else if known && p.validity > ceiling {
		problem("validity", "%s is above the ceiling of %dd for use %s", f.Validity, ceiling/(24*time.Hour), f.Use)
	}
	if f.Backdate != "" {
		if p.backdate, err = parseDuration(f.Backdate); err != nil || p.backdate < 0 || p.backdate > time.Hour {
			problem("backdate", "%q is not a duration between 0s and 1h", f.Backdate)
		}
	}
	if !slices.Contains([]string{"device", "first_dns"}, f.Subject.CommonName) {
		problem("subject.common_name", "want device or first_dns, not %q", f.Subject.CommonName)
	}
	if !slices.Contains([]string{"", "device"}, f.Subject.SerialNumber) {
		problem("subject.serial_number", "want device or nothing, not %q", f.Subject.SerialNumber)
	}
	p.validateUsage(problem)
	return errors.Join(problems...)
}

func (p *Profile) validateUsage(problem func(key, format string, args ...any)) {
	f := &p.file
	for _, name := range f.EKU {
		eku, known := ekuNames[name]
		if !known {
			problem("extended_key_usage", "%q is not clientAuth, serverAuth or OCSPSigning", name)
		}
		p.ekus = append(p.ekus, eku)
	}
	if len(f.EKU) == 0 {
		problem("extended_key_usage", "at least one")
	}
	if f.Use != UseManagement && slices.Contains(f.EKU, "serverAuth") {
		problem("extended_key_usage", "serverAuth is for use management: a device certificate must not pass for a server")
	}
	p.validateOCSP(problem)
	if slices.Contains(f.EKU, "serverAuth") && !f.SAN.Required {
		problem("san.required", "a server certificate is named by its SAN (RFC 9525): want true")
	}
	if f.Subject.CommonName == "first_dns" && !f.SAN.Registered {
		problem("subject.common_name", "first_dns needs san.registered")
	}
	for _, a := range f.CSR.Allow {
		if a != "san.dns" && a != "san.ip" {
			problem("csr.allow", "%q is not san.dns or san.ip", a)
		}
	}
	switch f.CSR.Unlisted {
	case "":
		f.CSR.Unlisted = "refuse"
	case "refuse", "drop":
	default:
		problem("csr.unlisted", "want refuse or drop, not %q", f.CSR.Unlisted)
	}
}

// addressKinds are the addresses that a certificate may carry.
var addressKinds = []string{"crl", "issuer", "ocsp"}

// validateOCSP keeps OCSP signers apart: whoever holds such a key speaks for the CA.
func (p *Profile) validateOCSP(problem func(key, format string, args ...any)) {
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
	if f.Use != UseOCSP {
		if f.NoCheck || slices.Contains(f.EKU, "OCSPSigning") {
			problem("use", "OCSPSigning and ocsp_no_check are for use ocsp")
		}
		return
	}
	if !slices.Equal(f.EKU, []string{"OCSPSigning"}) {
		problem("extended_key_usage", "use ocsp has OCSPSigning alone")
	}
	if len(f.Addresses) > 0 {
		problem("addresses", "nobody asks for the status of an OCSP signer: use ocsp has none")
	}
}

// Name is the profile's name.
func (p *Profile) Name() string { return p.file.Name }

// Hash is the SHA-256 of the file, hex; every certificate's record keeps it.
func (p *Profile) Hash() string { return p.hash }

// YAML is the file as it was read.
func (p *Profile) YAML() string { return string(p.source) }

// Use is UseBroker, UseBirth, UseManagement or UseOCSP.
func (p *Profile) Use() string { return p.file.Use }

// KeySpecs lists the accepted keys, in the file's order of preference.
func (p *Profile) KeySpecs() []string { return slices.Clone(p.file.Keys) }

// Validity is how long a certificate lives, its last second included.
func (p *Profile) Validity() time.Duration { return p.validity }

// ClientAuth tells whether the certificates authenticate clients.
func (p *Profile) ClientAuth() bool { return slices.Contains(p.ekus, x509.ExtKeyUsageClientAuth) }

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
