// The YAML form of a profile. The comments of its fields are the short manual; docs/profiles.md is the long one.

package profile

type file struct {
	Name         string          `yaml:"name"`               // lower case letters, digits and hyphens
	Use          string          `yaml:"use"`                // broker, birth, management, ocsp or ca
	Issuers      []string        `yaml:"issuers"`            // names of the CAs that may issue; default every one of the use; their successors too
	Keys         []string        `yaml:"keys"`               // exact set: ec:P-256, ec:P-384, ec:P-521, rsa:2048, 3072, 4096, 6144, 8192, ed25519
	KeyReuse     string          `yaml:"key_reuse"`          // a public key of another end entity: refuse (default) or allow
	Bundles      []string        `yaml:"bundles"`            // how a key made by the server may be handed out: pem, p12 (default both), or [none]
	RevokedKeys  string          `yaml:"revoked_keys"`       // a public key of a revoked certificate: refuse (default), or compromised: only those revoked as compromised
	Signature    []string        `yaml:"signature"`          // what the issuer may sign with: ecdsa-sha256, ecdsa-sha384, rsa-sha256; default all
	Validity     string          `yaml:"validity"`           // 365d, 90d, 24h; the last second counts (RFC 5280 4.1.2.5)
	NotAfter     string          `yaml:"not_after"`          // instead of validity: a fixed end, 2035-01-01T00:00:00Z
	BeyondIssuer string          `yaml:"beyond_issuer"`      // what would outlive its issuer: cut (default) or refuse
	Backdate     string          `yaml:"backdate"`           // how far notBefore lies before the moment of issuance; default 0s
	RenewWithin  string          `yaml:"renew_within"`       // renewal is allowed this long before the end; default always
	SingleActive bool            `yaml:"single_active"`      // a new certificate revokes the end entity's older ones of this profile (superseded)
	Subject      subject         `yaml:"subject"`            // what the subject is made of
	SAN          san             `yaml:"san"`                // what the subject alternative name is made of; default none
	KeyUsage     keyUsage        `yaml:"key_usage"`          // default: digitalSignature, keyEncipherment too for RSA, critical
	EKU          []string        `yaml:"extended_key_usage"` // clientAuth, serverAuth, cmcRA, OCSPSigning, OIDs of your own; [none]: no extension
	EKUCritical  bool            `yaml:"extended_key_usage_critical"`
	Basic        string          `yaml:"basic_constraints"`    // of a leaf: critical (default), noncritical or omit
	Policies     []string        `yaml:"certificate_policies"` // OIDs
	NoCheck      bool            `yaml:"ocsp_no_check"`        // for use ocsp: nobody asks for the status of the one that tells it (RFC 6960 4.2.2.2.1)
	CSR          csr             `yaml:"csr"`                  // what a request may contribute
	Addresses    []string        `yaml:"addresses"`            // what to put into the certificate: crl (CDP), issuer and ocsp (AIA)
	Distribution bool            `yaml:"distribution_points"`  // true: addresses crl and issuer
	PathLength   *int            `yaml:"path_length"`          // for use ca: CAs that may stand below it; default 0
	Constraints  nameConstraints `yaml:"name_constraints"`     // for use ca
}

type subject struct {
	CommonName   string           `yaml:"common_name"`   // device: the id of the end entity; first_dns: the first registered DNS name of the SAN (use management)
	SerialNumber string           `yaml:"serial_number"` // device, or nothing
	Fields       map[string]field `yaml:"fields"`        // C, ST, L, STREET, POSTALCODE, O, OU; CN and serialNumber for rules about the request
}

// field is a rule for one attribute of the subject.
type field struct {
	Value    string `yaml:"value"`    // constant: in every certificate; a request may repeat it
	Pattern  string `yaml:"pattern"`  // regular expression (RE2), anchored with ^ and $, for what a request gives; for CN and serialNumber: for the identity
	Required bool   `yaml:"required"` // the request must have it
}

type san struct {
	DeviceDNS  bool      `yaml:"device_dns"` // the id of the end entity as dNSName (or iPAddress if it is one)
	Registered bool      `yaml:"registered"` // names registered with the end entity
	Required   bool      `yaml:"required"`   // refuse to issue without a SAN
	MinDNS     int       `yaml:"min_dns"`    // DNS names that there must be
	Max        int       `yaml:"max"`        // names that there may be; default 32, most 100
	CNInSAN    bool      `yaml:"cn_in_san"`  // the common name must be one of the names
	Requested  requested `yaml:"requested"`  // names that the requester may choose, within rules
}

// requested has one rule for each kind of name; what has none cannot be chosen.
type requested struct {
	DNS   *dnsRule   `yaml:"dns"`
	IP    *ipRule    `yaml:"ip"`
	URI   *uriRule   `yaml:"uri"`
	Email *emailRule `yaml:"email"`
}

type dnsRule struct {
	Suffixes []string `yaml:"suffixes"` // example.com: itself and what is below; .example.com: only below; any
	Wildcard bool     `yaml:"wildcard"` // a leftmost label "*"; for use management only
	Max      int      `yaml:"max"`      // default 8
}

type ipRule struct {
	Networks []string `yaml:"networks"` // CIDR
	Max      int      `yaml:"max"`      // default 8
}

type uriRule struct {
	Prefixes []string `yaml:"prefixes"` // with the scheme; of one with an authority up to the slash behind it: https://example.com/
	Max      int      `yaml:"max"`      // default 8
}

type emailRule struct {
	Domains []string `yaml:"domains"` // exactly these
	Max     int      `yaml:"max"`     // default 8
}

type keyUsage struct {
	Bits     []string `yaml:"bits"`     // digitalSignature, nonRepudiation, keyEncipherment, dataEncipherment, keyAgreement
	Critical *bool    `yaml:"critical"` // default true
}

type csr struct {
	Allow              []string `yaml:"allow"`               // san.dns, san.ip, san.uri, san.email: may be asked for, if registered
	Unlisted           string   `yaml:"unlisted"`            // what becomes of anything else that is asked for: refuse (default) or drop
	UnlistedSubject    string   `yaml:"unlisted_subject"`    // the same for attributes of the subject; default as unlisted
	UnlistedSAN        string   `yaml:"unlisted_san"`        // for alternative names
	UnlistedExtensions string   `yaml:"unlisted_extensions"` // for other extensions
}

type nameConstraints struct {
	Permitted subtrees `yaml:"permitted"`
	Excluded  subtrees `yaml:"excluded"`
}

type subtrees struct {
	DNS   []string `yaml:"dns"`
	IP    []string `yaml:"ip"` // CIDR
	Email []string `yaml:"email"`
	URI   []string `yaml:"uri"` // hosts
}
