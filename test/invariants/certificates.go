// INV-1 to INV-4: every certificate was recorded with its bytes, stored before anybody got it, has a number of its own, and none is left over.

package invariants

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"
)

type certificateRow struct {
	Serial        string `db:"serial"`
	Issuer        string `db:"issuer"`
	State         string `db:"state"`
	Device        string `db:"device"`
	Profile       string `db:"profile"`
	ProfileHash   string `db:"profile_hash"`
	SPKISHA256    string `db:"spki_sha256"`
	RequesterKind string `db:"requester_kind"`
	Requester     string `db:"requester"`
	Claim         string `db:"claim"`
	Generation    int64  `db:"generation"`
	TBSSHA256     string `db:"tbs_sha256"`
	TBS           []byte `db:"tbs"`
	DER           []byte `db:"der"`
	NotBefore     int64  `db:"not_before"`
	NotAfter      int64  `db:"not_after"`
	CreatedAt     int64  `db:"created_at"`
	IssuedAt      int64  `db:"issued_at"`
	RevokedAt     int64  `db:"revoked_at"`
	Reason        string `db:"reason"`
}

type authorityRow struct {
	Name        string `db:"name"`
	State       string `db:"state"`
	Replaces    string `db:"replaces"`
	Certificate []byte `db:"certificate"`
	Crosses     []byte `db:"crosses"`
	CRLNumber   int64  `db:"crl_number"`
	Shards      int64  `db:"shards"`
}

type authority struct {
	authorityRow
	certificate *x509.Certificate
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (c *checker) checkCertificates() {
	c.cas = map[string]*authority{}
	for _, row := range c.authorities {
		a := &authority{authorityRow: row}
		if row.Certificate != nil {
			var err error
			if a.certificate, err = x509.ParseCertificate(row.Certificate); err != nil {
				c.fail("INV-1", "CA %s: %v", row.Name, err)
				continue
			}
		}
		c.cas[row.Name] = a
	}
	numbers, bodies := map[string]bool{}, map[string]bool{}
	for i := range c.certificates {
		r := &c.certificates[i]
		if id := r.Issuer + " " + r.Serial; numbers[id] {
			c.fail("INV-3", "%s is there twice", id)
		} else {
			numbers[id] = true
		}
		if bodies[r.TBSSHA256] && r.TBSSHA256 != "" {
			c.fail("INV-3", "certificate %s: its bytes are another's as well", r.Serial)
		}
		bodies[r.TBSSHA256] = true
		if err := serialForm(r.Serial); err != nil {
			c.fail("INV-3", "%v", err)
		}
		if r.RequesterKind == "restore" { // known by a published CRL only
			if r.State != "revoked" || r.DER != nil || r.TBS != nil {
				c.fail("INV-10", "certificate %s came back with a CRL and is %s", r.Serial, r.State)
			}
			continue
		}
		c.checkRecord(r)
		c.checkState(r)
	}
	c.checkReceived()
	c.checkAuthorities()
}

// checkAuthorities: a CA is in a state that there is, two of one line do not issue at once, and what links two roots is on record like any other certificate.
func (c *checker) checkAuthorities() {
	onRecord := map[string]bool{}
	for i := range c.certificates {
		onRecord[hash(c.certificates[i].DER)] = true
	}
	for _, row := range c.authorities {
		switch row.State {
		case "waiting":
			if row.Certificate != nil {
				c.fail("INV-1", "CA %s waits and has a certificate", row.Name)
			}
		case "standby", "active", "retiring", "retired", "revoked":
			if row.Certificate == nil {
				c.fail("INV-1", "CA %s is %s without a certificate", row.Name, row.State)
			}
		default:
			c.fail("INV-1", "CA %s is %q", row.Name, row.State)
		}
		if old := c.cas[row.Replaces]; old != nil && row.State == "active" && old.State == "active" {
			c.fail("INV-1", "CA %s and its successor %s both issue", old.Name, row.Name)
		}
		crosses, err := x509.ParseCertificates(row.Crosses)
		if err != nil {
			c.fail("INV-1", "CA %s: its cross certificates: %v", row.Name, err)
		}
		for _, cross := range crosses {
			if !onRecord[hash(cross.Raw)] {
				c.fail("INV-1", "CA %s has a cross certificate that is not on record", row.Name)
			}
		}
	}
}

// serialForm: 17 octets, the first of them 01.
func serialForm(serial string) error {
	raw, err := hex.DecodeString(serial)
	if err != nil || len(raw) != 17 || raw[0] != 1 || serial != strings.ToLower(serial) {
		return fmt.Errorf("serial number %q", serial)
	}
	return nil
}

// checkRecord: INV-1. The bytes that were or will be signed are the recorded ones, and the record tells what they say.
func (c *checker) checkRecord(r *certificateRow) {
	fail := func(format string, args ...any) {
		c.fail("INV-1", "certificate %s (%s): %s", r.Serial, r.State, fmt.Sprintf(format, args...))
	}
	body := r.TBS
	if r.DER != nil {
		certificate, err := x509.ParseCertificate(r.DER)
		if err != nil {
			fail("%v", err)
			return
		}
		body = certificate.RawTBSCertificate
		if r.TBS != nil && !bytes.Equal(r.TBS, body) {
			fail("the recorded bytes are not those that were signed")
		}
		if ca := c.cas[r.Issuer]; ca == nil || ca.certificate == nil {
			fail("issued by CA %s, which has no certificate", r.Issuer)
		} else if err := checkSignature(certificate, ca.certificate); err != nil {
			fail("the signature: %v", err)
		}
	}
	if body == nil || hash(body) != r.TBSSHA256 {
		fail("its bytes (%d) do not have the recorded hash", len(body))
		return
	}
	says, err := decode(body)
	if err != nil {
		fail("%v", err)
		return
	}
	if ca := c.cas[r.Issuer]; ca != nil && ca.certificate != nil && !bytes.Equal(says.RawIssuer, ca.certificate.RawSubject) {
		fail("its issuer is %s", says.Issuer)
	}
	if fmt.Sprintf("%034x", says.SerialNumber) != r.Serial || hash(says.RawSubjectPublicKeyInfo) != r.SPKISHA256 ||
		says.NotBefore.UnixMilli() != r.NotBefore || says.NotAfter.UnixMilli() != r.NotAfter {
		fail("it says %034x, %v to %v", says.SerialNumber, says.NotBefore, says.NotAfter)
	}
	isCA := r.RequesterKind == "authority"
	if says.IsCA != isCA || (!isCA && (r.Device == "" || r.ProfileHash == "")) || r.Profile == "" || r.RequesterKind == "" || r.Requester == "" || r.CreatedAt == 0 || r.Claim == "" {
		fail("the record is not complete")
	}
	if !isCA && r.RequesterKind != "server" && says.Subject.CommonName != r.Device {
		fail("it names %q, the device is %q", says.Subject.CommonName, r.Device)
	}
	intent, ok := c.one("certificate_intended", r.Serial)
	if ok && (intent.detail("tbs_sha256") != r.TBSSHA256 || intent.detail("issuer") != r.Issuer || intent.detail("device") != r.Device || intent.detail("spki_sha256") != r.SPKISHA256) {
		fail("the audit entry of the intent tells of other bytes: %s", intent.Detail)
	}
}

// verified remembers good signatures: a test with hundreds of certificates has them all checked after each of its rounds.
var verified sync.Map

func checkSignature(certificate, issuer *x509.Certificate) error {
	key := hash(certificate.Raw) + hash(issuer.Raw)
	if _, known := verified.Load(key); known {
		return nil
	}
	err := certificate.CheckSignatureFrom(issuer)
	if err == nil {
		verified.Store(key, true)
	}
	return err
}

// decode reads a TBSCertificate by putting a signature behind it that nobody checks.
func decode(tbs []byte) (*x509.Certificate, error) {
	var inner struct {
		Version   int `asn1:"explicit,tag:0"`
		Serial    *big.Int
		Algorithm asn1.RawValue
	}
	var whole asn1.RawValue
	if _, err := asn1.Unmarshal(tbs, &whole); err != nil {
		return nil, err
	}
	rest := whole.Bytes
	for _, part := range []any{&asn1.RawValue{}, &inner.Serial, &inner.Algorithm} {
		var err error
		if rest, err = asn1.Unmarshal(rest, part); err != nil {
			return nil, err
		}
	}
	der, err := asn1.Marshal(struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, inner.Algorithm, asn1.BitString{Bytes: []byte{0}, BitLength: 8}})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// checkState: INV-4. What is issued is whole and was announced in the audit log after its intent; what is not has no bytes to show.
func (c *checker) checkState(r *certificateRow) {
	fail := func(format string, args ...any) {
		c.fail("INV-4", "certificate %s (%s): %s", r.Serial, r.State, fmt.Sprintf(format, args...))
	}
	switch r.State {
	case "intended":
		if r.DER != nil || r.IssuedAt != 0 || r.TBS == nil {
			fail("it has what an issued one has")
		}
		if c.state.Settled {
			fail("left over since %v", time.UnixMilli(r.CreatedAt).UTC())
		}
	case "abandoned":
		if r.DER != nil || r.IssuedAt != 0 {
			fail("it has what an issued one has")
		}
		c.one("certificate_abandoned", r.Serial)
	case "issued", "held":
		if r.DER == nil || r.IssuedAt < r.CreatedAt {
			fail("it is not complete")
		}
	case "revoked":
	default:
		fail("no such state")
	}
	revoked := r.State == "revoked" || r.State == "held"
	if revoked != (r.RevokedAt > 0) || revoked != (r.Reason != "") {
		fail("revoked at %d for %q", r.RevokedAt, r.Reason)
	}
	if revoked && len(c.entries["certificate_revoked "+r.Serial]) == 0 {
		c.fail("INV-11", "certificate %s was revoked without an audit entry", r.Serial)
	}
	if r.DER == nil {
		if n := len(c.entries["certificate_issued "+r.Serial]); n > 0 {
			c.fail("INV-4", "certificate %s was issued, says the audit log, and is not there", r.Serial)
		}
		return
	}
	issued, ok := c.one("certificate_issued", r.Serial)
	if intents := c.entries["certificate_intended "+r.Serial]; ok && (issued.detail("sha256") != hash(r.DER) || len(intents) == 0 || issued.Seq <= intents[0].Seq) {
		fail("the audit entry does not follow its intent or tells of another one")
	}
}

// checkReceived: INV-2. What a client holds is on record, to the byte.
func (c *checker) checkReceived() {
	onRecord := map[string]*certificateRow{}
	for i := range c.certificates {
		if r := &c.certificates[i]; r.DER != nil {
			onRecord[hash(r.DER)] = r
		}
	}
	for _, got := range c.received {
		r := onRecord[hash(got.Certificate)]
		if r == nil {
			c.fail("INV-2", "device %s holds a certificate that is not on record", got.Device)
		} else if r.Device != got.Device {
			c.fail("INV-2", "device %s holds certificate %s of %s", got.Device, r.Serial, r.Device)
		}
	}
}
