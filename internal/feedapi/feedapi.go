// Package feedapi holds the messages between the EST server's feed and a broker bridge.
//
// All paths are on the EST address, over TLS, and answer only to a client certificate of role "bridge"
// (issued by the management CA under the profile "bridge"):
//
//	GET  /bridge/v1/trust-set[?wait=25s]             TrustSet; ETag is the quoted seq. With wait and If-None-Match it answers when
//	                                                the set changes or the wait is over (304)
//	GET  /bridge/v1/crls/{sha256}                    one CRL, DER, application/pkix-crl; the content of an address never changes
//	GET  /bridge/v1/devices                          Devices: all end entities that may use the broker, at one seq
//	GET  /bridge/v1/changes?since=N&wait=25s         Changes after N; answered when there are any or the wait is over (empty list)
//	POST /bridge/v1/ack                              Ack; 204
//	POST /bridge/v1/canary                           CanaryRequest -> Canary; a certificate to prove the broker with
//
// Times are RFC 3339, UTC. Errors are {"error": "...", "reason": "word"} with a 4xx or 5xx status.
package feedapi

import "time"

// TrustSet is what a broker should trust: a unit, so that a new CA and its CRL arrive together.
type TrustSet struct {
	Seq     int64    `json:"seq"`               // of the change feed when the set was read; rises with every change of the set
	Anchors []string `json:"anchors"`           // PEM, self-signed roots
	Issuers []Issuer `json:"issuers"`           // the issuing CAs of devices; each chains to one of Anchors
	CRLs    []CRL    `json:"crls"`              // for each issuer all of its shards, each once; those of anchors are not listed
	Crosses []string `json:"crosses,omitempty"` // PEM: one anchor's name and key, certified by another. They vouch for a new anchor and are not for the broker
}

// Issuer is an issuing CA whose certificates the broker accepts.
type Issuer struct {
	Name        string   `json:"name"`
	KeyID       string   `json:"key_id"`      // subject key identifier, lower-case hex
	Certificate string   `json:"certificate"` // PEM
	Chain       []string `json:"chain"`       // PEM, certificates between it and the anchor (leaf-most first), often empty
}

// CRL describes a published CRL; its bytes are at /bridge/v1/crls/{SHA256}.
type CRL struct {
	Issuer     string    `json:"issuer"` // Issuer.Name
	KeyID      string    `json:"key_id"`
	Shard      int       `json:"shard"`             // 0 to Shards-1
	Shards     int       `json:"shards"`            // how many CRLs the issuer has; 0 or 1: one, of all its certificates
	Address    string    `json:"address,omitempty"` // of several: what the CRL's issuing distribution point and the certificates on it name
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	Entries    int       `json:"entries"`
	SHA256     string    `json:"sha256"` // of the DER, lower-case hex
}

// Devices is the full list that an ACL is made from. Follow with Changes since Seq.
type Devices struct {
	Seq     int64    `json:"seq"`
	Devices []Device `json:"devices"` // ascending by id
}

// Device is an end entity that may use the broker (state new or generated).
type Device struct {
	ID      string `json:"id"`
	Label   string `json:"label"`             // "default" for the path without a label
	Profile string `json:"profile"`           // of the label
	Service string `json:"service,omitempty"` // the application it belongs to: {service} in the topics of its ACL block; "" if none
}

// Changes are in ascending order of Seq, without gaps that matter.
type Changes struct {
	Seq     int64    `json:"seq"`   // ask again with since=Seq
	Reset   bool     `json:"reset"` // since is unknown here (restored server): fetch everything anew
	Changes []Change `json:"changes"`
}

// Kinds of Change.
const (
	DeviceAdded        = "device_added"        // Device
	DeviceRemoved      = "device_removed"      // Device (only ID is sure); its certificates are revoked by changes of their own
	CertificateRevoked = "certificate_revoked" // Revoked
	TrustSetChanged    = "trust_set"           // fetch /bridge/v1/trust-set: a CRL was issued, a CA became active or went away
)

// Change is one entry of the feed.
type Change struct {
	Seq     int64     `json:"seq"`
	At      time.Time `json:"at"`
	Kind    string    `json:"kind"`
	Device  *Device   `json:"device,omitempty"`
	Revoked *Revoked  `json:"revoked,omitempty"`
}

// Revoked names a certificate that must leave the broker. A CRL has serial numbers only; to end a session takes the name.
type Revoked struct {
	Serial     string    `json:"serial"` // lower-case hex
	Issuer     string    `json:"issuer"` // name of the CA
	Device     string    `json:"device"` // CN = broker user name
	Reason     string    `json:"reason"` // RFC 5280 name: keyCompromise, superseded, ...
	RevokedAt  time.Time `json:"revoked_at"`
	Superseded bool      `json:"superseded"` // the device has a newer valid certificate: no need to end its session
}

// Ack says how far a bridge has brought a broker.
type Ack struct {
	Seq        int64     `json:"seq"`    // trust set seq that the broker was proven to hold
	Broker     string    `json:"broker"` // name of the broker in the bridge's configuration
	VerifiedAt time.Time `json:"verified_at"`
	Error      string    `json:"error,omitempty"` // why a newer set is not in place; empty when all is well
	Holds      []string  `json:"holds"`           // what the broker was proven to hold: key identifiers of issuing CAs, SHA-256 of anchors' DER, all hex
}

// CanaryRequest asks for a certificate under a reserved name, to prove what a broker accepts. A bridge gets a few of each kind from an issuer
// in an hour, then 429 with Retry-After and the reason canary_limit. They end with the bridge.
type CanaryRequest struct {
	Issuer string `json:"issuer"` // Issuer.Name
	CSR    string `json:"csr"`    // PEM; its subject is ignored
	Revoke bool   `json:"revoke"` // revoke it at once: the canary that must be refused (it is in the next CRL)
}

// Canary is the answer: a certificate of a reserved name ("natal-canary-...").
type Canary struct {
	Certificate string    `json:"certificate"` // PEM
	Chain       string    `json:"chain"`       // PEM: issuing CA and intermediates, no root
	NotAfter    time.Time `json:"not_after"`
	Revoked     bool      `json:"revoked"`
}
