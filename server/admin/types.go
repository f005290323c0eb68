// The API's objects: JSON with snake_case keys, times in RFC 3339 UTC and absent while they have not come.

package admin

import (
	"strconv"
	"time"
)

// List is how every collection is answered.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty" doc:"after of the next page; absent on the last one, and of collections that come whole"`
}

// Paged is the input of a collection that comes in pages.
type Paged struct {
	After string `query:"after" doc:"next of the page before"`
	Limit int    `query:"limit" minimum:"1" maximum:"500" default:"500" doc:"items of a page"`
}

// page is list for such a collection; key is what the next page begins after.
func page[T, U any](p Paged, in []T, show func(T) U, key func(T) string) List[U] {
	out := list(in, show)
	if len(in) > 0 && len(in) == p.Limit {
		out.Next = key(in[len(in)-1])
	}
	return out
}

func (d Device) self() string  { return "/devices/" + d.ID }
func (c Code) self() string    { return "/devices/" + c.Device }
func (l Label) self() string   { return "/labels/" + l.Name }
func (p Profile) self() string { return "/profiles/" + p.Name }
func (c CA) self() string      { return "/cas/" + c.Name }
func (l Label) etag() string   { return strconv.Quote(strconv.FormatInt(l.Version, 10)) }
func (p Profile) etag() string { return strconv.Quote(p.Hash) }

// CA is an issuing or root CA.
type CA struct {
	Name          string    `json:"name"`
	Subject       string    `json:"subject"`
	Parent        string    `json:"parent" doc:"name of the CA above; empty for a root and for a CA signed elsewhere"`
	State         string    `json:"state" doc:"waiting, standby, active, retiring, retired, revoked"`
	Key           string    `json:"key" doc:"ec:P-256, ec:P-384, rsa:3072, rsa:4096"`
	KeyURI        string    `json:"key_uri" doc:"where the key is: file:..., pkcs11:..., tpmkms:..., without the address of the PIN"`
	KeyOnline     bool      `json:"key_online" doc:"false once the key was taken offline, and while its token is away"`
	Use           string    `json:"use" doc:"whom the certificates are for: broker, management, birth; root; empty until a label binds it"`
	Replaces      string    `json:"replaces,omitempty" doc:"the CA that it takes over from"`
	ReplacedBy    string    `json:"replaced_by,omitempty" doc:"the CA that takes over from it"`
	WaitsFor      []string  `json:"waits_for,omitempty" doc:"of a CA that stands by: the bridges that do not know it yet, and why"`
	PublicURL     string    `json:"public_url" doc:"beginning of the CDP and AIA addresses in the certificates it issues"`
	NotAfter      time.Time `json:"not_after,omitzero"`
	Fingerprint   string    `json:"fingerprint,omitempty" doc:"SHA-256 of the certificate's DER, hex"`
	Certificate   string    `json:"certificate,omitempty" doc:"PEM"`
	Chain         string    `json:"chain,omitempty" doc:"PEM: the CAs above, up to and including the root"`
	CRLNumber     int64     `json:"crl_number,omitempty"`
	CRLThisUpdate time.Time `json:"crl_this_update,omitzero"`
	CRLNextUpdate time.Time `json:"crl_next_update,omitzero"`
	CRLEntries    int       `json:"crl_entries"`
	CRLShards     int       `json:"crl_shards" doc:"how many CRLs its certificates are spread over"`
}

// NewCA is the request to create a CA.
type NewCA struct {
	Name      string `json:"name"`
	Subject   string `json:"subject,omitempty" doc:"distinguished name as CN=...,O=...,C=...; default CN=NAME"`
	Key       string `json:"key,omitempty" doc:"ec:P-256, ec:P-384, rsa:3072, rsa:4096"`
	KeyURI    string `json:"key_uri,omitempty" doc:"where the key is made: pkcs11:..., tpmkms:...; only for local callers; default: where the server's keys are"`
	KeyExists bool   `json:"key_exists,omitempty" doc:"the key is there already, from a key ceremony"`
	Parent    string `json:"parent,omitempty" doc:"CA of this server that signs it"`
	External  bool   `json:"external,omitempty" doc:"signed elsewhere: the CA waits until its certificate is imported"`
	PublicURL string `json:"public_url,omitempty" doc:"default: the server's"`
	Years     int    `json:"years,omitempty" minimum:"0" maximum:"40" doc:"default 10"`
	CRLShards int    `json:"crl_shards,omitempty" minimum:"0" maximum:"256" doc:"how many CRLs its certificates are spread over; fixed for ever. Default 1"`
	Use       string `json:"use,omitempty" doc:"broker, management or birth; default: what the first label that names it says"`

	Profile string `json:"profile,omitempty" doc:"of use ca: what the certificate looks like; it says the validity, too"`
}

// PEM carries one PEM document.
type PEM struct {
	PEM string `json:"pem"`
}

// ImportCA is the answer of another CA to a waiting CA's request.
type ImportCA struct {
	Certificate string `json:"certificate" doc:"PEM"`
	Chain       string `json:"chain,omitempty" doc:"PEM: the CAs above, up to a self-signed root"`
}

// SignCA asks a CA to sign the request of a CA that lives elsewhere.
type SignCA struct {
	CSR   string `json:"csr" doc:"PEM"`
	Years int    `json:"years,omitempty" minimum:"0" maximum:"40" doc:"default 10"`

	Profile string `json:"profile,omitempty" doc:"of use ca: what the certificate looks like; it says the validity, too"`
}

// RolloverCA describes the successor of a CA; what is absent is as in the old one.
type RolloverCA struct {
	Name     string `json:"name,omitempty" doc:"default: NAME-2, or the next free number"`
	Subject  string `json:"subject,omitempty" doc:"default: the old CN with that number"`
	Key      string `json:"key,omitempty" doc:"ec:P-256, ec:P-384, rsa:3072, rsa:4096"`
	Parent   string `json:"parent,omitempty" doc:"default: the old parent, or what has taken over from it"`
	External bool   `json:"external,omitempty" doc:"signed elsewhere: the CA waits until its certificate is imported"`
	Years    int    `json:"years,omitempty" minimum:"0" maximum:"40" doc:"default 10, 20 for a root"`
}

// Override does what would be refused for a reason that time would cure.
type Override struct {
	Override bool   `json:"override,omitempty"`
	Reason   string `json:"reason,omitempty" doc:"needed with override; it is kept in the audit log"`
}

// SignOCSP asks for the certificate of an OCSP signer.
type SignOCSP struct {
	CSR string `json:"csr" doc:"PKCS#10 request, PEM; only its key counts"`
}

// OfflineCA takes a CA's key off the server.
type OfflineCA struct {
	Out string `json:"out" doc:"file on the server's machine that receives the encrypted key"`
}

// Label is an additional path segment of RFC 7030 section 3.2.2; "default" is the path without one.
type Label struct {
	Name    string   `json:"name"`
	CA      string   `json:"ca"`
	Profile string   `json:"profile"`
	Auth    []string `json:"auth"`
	Version int64    `json:"version,omitempty"`
}

// NewLabel is the request for a label; what is absent is as in the default label.
type NewLabel struct {
	Name    string   `json:"name"`
	CA      string   `json:"ca,omitempty"`
	Profile string   `json:"profile,omitempty"`
	Auth    []string `json:"auth,omitempty" doc:"who may enroll: code, birth, bridge"`
}

// LabelChange holds the fields of a label to change; what is absent stays.
type LabelChange struct {
	CA      string   `json:"ca,omitempty"`
	Profile string   `json:"profile,omitempty"`
	Auth    []string `json:"auth,omitempty"`
}

// Profile is a certificate profile.
type Profile struct {
	Name    string    `json:"name"`
	Use     string    `json:"use"`
	Keys    []string  `json:"keys"`
	Version int64     `json:"version" doc:"counts the changes of the profile of this name"`
	Hash    string    `json:"hash" doc:"SHA-256 of the file, hex: the profile_hash of the certificates made by it"`
	AddedAt time.Time `json:"added_at"`
	YAML    string    `json:"yaml,omitempty"`
}

// Explanation is what a profile says to a CSR.
type Explanation struct {
	Profile  string    `json:"profile"`
	Version  string    `json:"profile_hash" doc:"the version that was asked"`
	CA       string    `json:"ca"`
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
}

// Finding is one rule of a profile, applied.
type Finding struct {
	Rule   string `json:"rule"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Device is an end entity.
type Device struct {
	ID         string    `json:"id"`
	Label      string    `json:"label"`
	State      string    `json:"state" doc:"new, generated, revoked, historical"`
	BoundKind  string    `json:"bound_kind,omitempty" doc:"what it first authenticated with: code, birth; bundle: its key was made here"`
	BoundTo    string    `json:"bound_to,omitempty"`
	SANs       []string  `json:"sans,omitempty" doc:"dns:NAME, ip:ADDRESS"`
	Service    string    `json:"service,omitempty" doc:"the application it belongs to; bridges put it where {service} stands in a topic"`
	Generation int64     `json:"generation" doc:"counts re-admissions"`
	CreatedAt  time.Time `json:"created_at"`

	SuspendedAt time.Time `json:"suspended_at,omitzero" doc:"since when nothing of it is accepted; absent if it is not suspended"`
}

// ReissueDevice says why the device's certificates end.
type ReissueDevice struct {
	Reason string `json:"reason,omitempty" doc:"RFC 5280 name; default superseded"`
}

// NewDevice is the request to create an end entity.
type NewDevice struct {
	ID    string   `json:"id"`
	Label string   `json:"label,omitempty" doc:"default: default"`
	SANs  []string `json:"sans,omitempty" doc:"dns:NAME, ip:ADDRESS"`

	Service string `json:"service,omitempty" doc:"the application it belongs to: letters, digits, . _ -, at most 64"`

	WithCode bool   `json:"with_code,omitempty" doc:"make an enrollment code as well; it is in the answer"`
	Code     string `json:"code,omitempty" doc:"an enrollment code that was chosen elsewhere: at least 128 bits"`
	Expires  string `json:"expires,omitempty" doc:"life of the code, as 30d or 12h; default: the server's"`
}

// AddedDevice is a new end entity, with its code where one was asked for.
type AddedDevice struct {
	Device
	Code *Code `json:"code,omitempty"`
}

// ImportRow is one device of an import.
type ImportRow struct {
	Line    int      `json:"line,omitempty" doc:"number of the line in the caller's file, for refusals; default: the row's place, from 1"`
	ID      string   `json:"id"`
	Label   string   `json:"label,omitempty" doc:"default: default"`
	SANs    []string `json:"sans,omitempty" doc:"dns:NAME, ip:ADDRESS"`
	Service string   `json:"service,omitempty"`
	Code    string   `json:"code,omitempty" doc:"default: one is made, and is in the answer; who loses the answer loses it"`
	Expires string   `json:"expires,omitempty" doc:"of the code: its life, as 30d, or a time, as 2027-03-01T12:00:00Z; default: the server's"`
}

// NewImport is a request to register many devices with a code each: all or none.
type NewImport struct {
	Rows  []ImportRow `json:"rows"`
	Check bool        `json:"check,omitempty" doc:"change nothing, tell only whether it would be done"`
}

// Import is what an import did, or would do.
type Import struct {
	Devices  int    `json:"devices"`
	Repeated bool   `json:"repeated" doc:"every row was there already with its code: nothing was changed"`
	Expires  string `json:"code_expires" doc:"life of codes whose row does not say, as 720h0m0s"`
	Trust    string `json:"trust_sha256,omitempty" doc:"SHA-256 of the root by which devices recognise the EST server, hex"`
	Codes    []Code `json:"codes" doc:"in the order of the rows; the code itself where it was made here"`
}

// NewBundle is the request for a key and its certificate.
type NewBundle struct {
	Label  string `json:"label,omitempty" doc:"default: the device's, or default"`
	Key    string `json:"key,omitempty" doc:"kind of key, as ec:P-256; default: the first one of the profile"`
	Format string `json:"format,omitempty" enum:"pem,p12" default:"pem" doc:"what the caller makes of the answer, which is the same: one PEM file, or PKCS#12; the profile says what it offers"`
}

// Bundle is a certificate with its key. It is delivered once; the key is stored nowhere.
type Bundle struct {
	Device      string    `json:"device"`
	Serial      string    `json:"serial"`
	NotAfter    time.Time `json:"not_after"`
	Key         string    `json:"key" doc:"PEM, PKCS#8"`
	Certificate string    `json:"certificate" doc:"PEM"`
	Chain       string    `json:"chain" doc:"PEM: the issuing CA and those above it, without the root"`
	Root        string    `json:"root" doc:"PEM"`
}

// Reason says why something is revoked.
type Reason struct {
	Reason string `json:"reason" doc:"RFC 5280 name: unspecified, keyCompromise, cACompromise, affiliationChanged, superseded, cessationOfOperation, certificateHold, privilegeWithdrawn, aACompromise"`
}

// Code is a one-time enrollment code. The code itself is shown once, when it is created.
type Code struct {
	ID        string    `json:"id"`
	Device    string    `json:"device"`
	Code      string    `json:"code,omitempty"`
	Label     string    `json:"label"`
	State     string    `json:"state" doc:"new, used, expired, revoked"`
	Expires   time.Time `json:"expires"`
	CreatedAt time.Time `json:"created_at"`
	UsedAt    time.Time `json:"used_at,omitzero"`
}

// NewCode is the request for an enrollment code; the end entity is made when it does not exist.
type NewCode struct {
	Device  string   `json:"device"`
	Label   string   `json:"label,omitempty" doc:"default: the device's, or default"`
	Expires string   `json:"expires,omitempty" doc:"life, as 30d or 12h; default: the server's"`
	SANs    []string `json:"sans,omitempty" doc:"dns:NAME, ip:ADDRESS"`
	Code    string   `json:"code,omitempty" doc:"a code that was chosen elsewhere: at least 128 bits; default: one is made"`
}

// Certificate is a certificate that was issued here, or is about to be.
type Certificate struct {
	Serial        string    `json:"serial"`
	Issuer        string    `json:"issuer"`
	Device        string    `json:"device"`
	Label         string    `json:"label"`
	Profile       string    `json:"profile"`
	ProfileHash   string    `json:"profile_hash,omitempty"`
	State         string    `json:"state" doc:"intended, issued, held, revoked, abandoned"`
	RequesterKind string    `json:"requester_kind"`
	Requester     string    `json:"requester"`
	NotBefore     time.Time `json:"not_before"`
	NotAfter      time.Time `json:"not_after"`
	CreatedAt     time.Time `json:"created_at"`
	IssuedAt      time.Time `json:"issued_at,omitzero"`
	SupersededAt  time.Time `json:"superseded_at,omitzero"`
	RevokedAt     time.Time `json:"revoked_at,omitzero"`
	Reason        string    `json:"reason,omitempty"`
	Certificate   string    `json:"certificate,omitempty" doc:"PEM; only of a single certificate"`
	Chain         string    `json:"chain,omitempty" doc:"PEM: the CAs above, up to and including the root; only of a single certificate"`
}

// BirthCA is a CA whose birth certificates a label accepts.
type BirthCA struct {
	Label       string    `json:"label"`
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint" doc:"SHA-256 of the DER, hex"`
	NotAfter    time.Time `json:"not_after"`
}

// NewBirthCA adds the CAs of a PEM file to a label.
type NewBirthCA struct {
	Label string `json:"label"`
	PEM   string `json:"pem"`
}

// CRL is a revocation list.
type CRL struct {
	CA         string    `json:"ca"`
	Shard      int       `json:"shard" doc:"which one, of a CA with several; from 0"`
	Shards     int       `json:"shards" doc:"how many CRLs the CA has"`
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	Entries    int       `json:"entries"`
	Size       int64     `json:"size" doc:"bytes, DER"`
	SHA256     string    `json:"sha256"`
	DER        []byte    `json:"der,omitempty" doc:"base64; only of a single CRL"`
}

// Administrator is somebody who may use this API from elsewhere.
type Administrator struct {
	Name      string    `json:"name"`
	Role      string    `json:"role"`
	CreatedAt time.Time `json:"created_at"`
	Serial    string    `json:"serial,omitempty" doc:"of the newest certificate"`
	NotAfter  time.Time `json:"not_after,omitzero"`
}

// NewAdministrator registers an administrator and certifies the key of the CSR; its subject is ignored.
type NewAdministrator struct {
	Name string `json:"name"`
	Role string `json:"role" enum:"administrator,operator,auditor,bridge"`
	CSR  string `json:"csr" doc:"PEM"`
}

// Identity is a certificate with its issuing CAs, without the root.
type Identity struct {
	Certificate string `json:"certificate" doc:"PEM"`
	Chain       string `json:"chain" doc:"PEM"`
	Trust       string `json:"trust" doc:"PEM: the roots to verify the server with"`
}

// Bridge is how far a broker bridge has come.
type Bridge struct {
	Bridge     string    `json:"bridge"`
	Broker     string    `json:"broker"`
	Seq        int64     `json:"seq" doc:"trust set that the broker was proven to hold"`
	Lag        float64   `json:"lag_seconds" doc:"for how long a newer trust set has been waiting; 0 when up to date"`
	VerifiedAt time.Time `json:"verified_at,omitzero"`
	At         time.Time `json:"at" doc:"of the last report"`
	Error      string    `json:"error,omitempty"`
}

// AuditHead is the newest entry of the audit log.
type AuditHead struct {
	Epoch int64     `json:"epoch" doc:"1, and one more after each restore"`
	Seq   int64     `json:"seq"`
	Hash  string    `json:"hash" doc:"SHA-256, hex"`
	At    time.Time `json:"at" doc:"the newest time of an entry"`
}

// CRLSchedule is how long a CA's CRLs are valid and how often they are issued.
type CRLSchedule struct {
	Valid    string `json:"valid" doc:"from issue to nextUpdate, as 7d or 24h"`
	Interval string `json:"interval" doc:"between two CRLs when nothing is revoked; at most half of valid"`
}
