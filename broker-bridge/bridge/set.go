// A trust set that passed validation, and the single file that a broker reads it from.

package bridge

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"time"
)

// Set is a validated trust set. It is not changed once it is wanted.
type Set struct {
	Seq     int64
	Anchors []*x509.Certificate
	Issuers []Issuer
	Crosses []*x509.Certificate // of an offer: they vouch for anchors that are new
	Partial bool                // something that the server offered is not in it
	LeftOut []string            // names of offered issuing CAs that are not in it
}

// Issuer is an issuing CA with its CRL, or with all the CRLs that its certificates are spread over.
type Issuer struct {
	Name        string
	KeyID       string // subject key identifier, lower-case hex
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // between Certificate and an anchor, leaf-most first
	CRLs        []CRL               // by shard, all of them; one if the CA has one
	Seq         int64               // of the newest set that offered these CRLs as good; below Set.Seq if one is kept in place of one that is refused
}

// CRL is a validated CRL.
type CRL struct {
	*x509.RevocationList
	SHA256 string // of the DER, lower-case hex
}

func (i *Issuer) keepCRLs(good *Issuer) {
	i.CRLs, i.Seq = good.CRLs, good.Seq
}

// number is the highest of the CRLs' numbers.
func (i *Issuer) number() int64 {
	var n int64
	for _, c := range i.CRLs {
		n = max(n, c.Number.Int64())
	}
	return n
}

// nextUpdate is when the first of the CRLs runs out.
func (i *Issuer) nextUpdate() time.Time {
	return slices.MinFunc(i.CRLs, func(a, b CRL) int { return a.NextUpdate.Compare(b.NextUpdate) }).NextUpdate
}

// entries is how many certificates the CRLs list.
func (i *Issuer) entries() int {
	n := 0
	for _, c := range i.CRLs {
		n += len(c.RevokedCertificateEntries)
	}
	return n
}

// Bundle is the file that stands as both cafile and crlfile: anchors, issuing CAs, intermediates, CRLs, as
// PEM made anew from the DER, so that nothing of the source's text gets through. One rename swaps a CA and its CRL.
func (s *Set) Bundle() []byte {
	var b bytes.Buffer
	seen := map[string]bool{}
	write := func(kind string, der []byte) {
		if !seen[string(der)] {
			seen[string(der)] = true
			pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
		}
	}
	for _, c := range s.Anchors {
		write("CERTIFICATE", c.Raw)
	}
	for _, i := range s.Issuers {
		write("CERTIFICATE", i.Certificate.Raw)
		for _, c := range i.Chain {
			write("CERTIFICATE", c.Raw)
		}
	}
	for _, i := range s.Issuers {
		for _, c := range i.CRLs {
			write("X509 CRL", c.Raw)
		}
	}
	return b.Bytes()
}

// Issuer returns the issuing CA of that name, or nil.
func (s *Set) Issuer(name string) *Issuer {
	for i := range s.Issuers {
		if s.Issuers[i].Name == name {
			return &s.Issuers[i]
		}
	}
	return nil
}

func (s *Set) byKey(keyID string) *Issuer {
	for i := range s.Issuers {
		if s.Issuers[i].KeyID == keyID {
			return &s.Issuers[i]
		}
	}
	return nil
}

// lists reports whether a CRL of an issuing CA of that name lists the serial number.
func (s *Set) lists(issuer string, serial *big.Int) bool {
	return slices.ContainsFunc(s.Issuers, func(i Issuer) bool { return i.Name == issuer && i.Revoked(serial) })
}

// upTo is the change up to which the set knows what the issuing CA of that name revoked. Of a CA that was left out
// it knows nothing; of one that is no longer there, everything.
func (s *Set) upTo(issuer string) int64 {
	seq := s.Seq
	if slices.Contains(s.LeftOut, issuer) {
		seq = 0
	}
	for _, i := range s.Issuers {
		if i.Name == issuer {
			seq = min(seq, i.Seq)
		}
	}
	return seq
}

// Entries is the number of revoked certificates in all CRLs.
func (s *Set) Entries() int {
	n := 0
	for _, i := range s.Issuers {
		n += i.entries()
	}
	return n
}

// Revoked reports whether a CRL lists the serial number.
func (i *Issuer) Revoked(serial *big.Int) bool {
	for _, c := range i.CRLs {
		for k := range c.RevokedCertificateEntries {
			if c.RevokedCertificateEntries[k].SerialNumber.Cmp(serial) == 0 {
				return true
			}
		}
	}
	return false
}

// Mark is what the next set is compared with. It is kept in the state file.
type Mark struct {
	Seq     int64              `json:"seq"`
	Anchors []string           `json:"anchors"` // SHA-256 of the DER, hex
	Issuers map[string]string  `json:"issuers"` // key id -> name
	CRLs    map[string]CRLMark `json:"crls"`    // markKey -> CRL
	LeftOut []string           `json:"left_out,omitempty"`
}

// CRLMark identifies a CRL.
type CRLMark struct {
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	SHA256     string    `json:"sha256"`
	Seq        int64     `json:"seq,omitempty"` // Issuer.Seq
}

// Mark describes s for later comparison.
func (s *Set) Mark() *Mark {
	m := &Mark{Seq: s.Seq, LeftOut: s.LeftOut, Issuers: map[string]string{}, CRLs: map[string]CRLMark{}}
	for _, a := range s.Anchors {
		m.Anchors = append(m.Anchors, fingerprint(a.Raw))
	}
	for _, i := range s.Issuers {
		m.Issuers[i.KeyID] = i.Name
		for shard, c := range i.CRLs {
			m.CRLs[markKey(i.KeyID, shard, len(i.CRLs))] = CRLMark{
				Number:     c.Number.Int64(),
				ThisUpdate: c.ThisUpdate,
				NextUpdate: c.NextUpdate,
				SHA256:     c.SHA256,
				Seq:        i.Seq,
			}
		}
	}
	return m
}

// markKey names a CRL in a Mark: by the issuing CA's key, and its shard if there are several.
func markKey(keyID string, shard, shards int) string {
	if shards < 2 {
		return keyID
	}
	return keyID + "/" + strconv.Itoa(shard)
}

// holds is what an acknowledgement says of m.
func (m *Mark) holds() []string {
	if m == nil {
		return []string{}
	}
	return slices.Concat(m.Anchors, slices.Sorted(maps.Keys(m.Issuers)))
}

// after keeps what old knows of CRLs whose issuing CA has gone, so that a replay is noticed should it come back.
func (m *Mark) after(old *Mark) *Mark {
	if old != nil {
		for id, crl := range old.CRLs {
			if _, ok := m.CRLs[id]; !ok {
				m.CRLs[id] = crl
			}
		}
	}
	return m
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
