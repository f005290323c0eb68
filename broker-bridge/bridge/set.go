// A trust set that passed validation, and the single file that a broker reads it from.

package bridge

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"time"
)

// Set is a validated trust set. It is not changed after Validate made it.
type Set struct {
	Seq     int64
	Anchors []*x509.Certificate
	Issuers []Issuer
}

// Issuer is an issuing CA with its CRL.
type Issuer struct {
	Name        string
	KeyID       string // subject key identifier, lower-case hex
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // between Certificate and an anchor, leaf-most first
	CRL         *x509.RevocationList
	CRLSHA256   string // of the DER, lower-case hex
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
		write("X509 CRL", i.CRL.Raw)
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

// Entries is the number of revoked certificates in all CRLs.
func (s *Set) Entries() int {
	n := 0
	for _, i := range s.Issuers {
		n += len(i.CRL.RevokedCertificateEntries)
	}
	return n
}

// Revoked reports whether the CRL lists the serial number.
func (i *Issuer) Revoked(serial *big.Int) bool {
	for k := range i.CRL.RevokedCertificateEntries {
		if i.CRL.RevokedCertificateEntries[k].SerialNumber.Cmp(serial) == 0 {
			return true
		}
	}
	return false
}

// Mark is what the next set is compared with. It is kept in the state file.
type Mark struct {
	Seq     int64              `json:"seq"`
	Anchors []string           `json:"anchors"` // SHA-256 of the DER, hex
	Issuers map[string]string  `json:"issuers"` // key id -> name
	CRLs    map[string]CRLMark `json:"crls"`    // key id -> CRL
}

// CRLMark identifies a CRL.
type CRLMark struct {
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	SHA256     string    `json:"sha256"`
}

// Mark describes s for later comparison.
func (s *Set) Mark() *Mark {
	m := &Mark{Seq: s.Seq, Issuers: map[string]string{}, CRLs: map[string]CRLMark{}}
	for _, a := range s.Anchors {
		m.Anchors = append(m.Anchors, fingerprint(a.Raw))
	}
	for _, i := range s.Issuers {
		m.Issuers[i.KeyID] = i.Name
		m.CRLs[i.KeyID] = CRLMark{
			Number:     i.CRL.Number.Int64(),
			ThisUpdate: i.CRL.ThisUpdate,
			NextUpdate: i.CRL.NextUpdate,
			SHA256:     i.CRLSHA256,
		}
	}
	return m
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
