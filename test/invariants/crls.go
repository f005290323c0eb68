// INV-7: CRLs go forward and are complete.

package invariants

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

type crlRow struct {
	Authority  string `db:"authority"`
	Shard      int64  `db:"shard"`
	Parts      string `db:"parts"`
	Tail       []byte `db:"tail"`
	Number     int64  `db:"number"`
	ThisUpdate int64  `db:"this_update"`
	NextUpdate int64  `db:"next_update"`
	IssuedAt   int64  `db:"issued_at"`
	Entries    int64  `db:"entries"`
	SHA256     string `db:"sha256"`
	DER        []byte `db:"der"`
}

// joinCRLs puts large CRLs together from their parts.
func (c *checker) joinCRLs(ctx context.Context, tx *sqlx.Tx) error {
	for i := range c.crls {
		r := &c.crls[i]
		if r.Parts == "" {
			continue
		}
		for slot, number := range strings.Split(r.Parts, ",") {
			var der []byte
			if err := tx.GetContext(ctx, &der, fmt.Sprintf("SELECT der FROM crl_parts WHERE authority = '%s' AND shard = %d AND slot = %d AND number = %s", r.Authority, r.Shard, slot, number)); err != nil {
				return fmt.Errorf("part %d of CRL %d of %s: %w", slot, r.Number, r.Authority, err)
			}
			r.DER = append(r.DER, der...)
		}
		r.DER = append(r.DER, r.Tail...)
	}
	return nil
}

// publication is how long a revocation may wait for its CRL while the server is busy.
const publication = time.Minute

func (c *checker) checkCRLs() {
	known := map[string]*certificateRow{}
	for i := range c.certificates {
		r := &c.certificates[i]
		known[r.Issuer+" "+r.Serial] = r
	}
	newest := map[scope]*crlRow{}
	entries := map[scope]map[string]bool{}
	for i := range c.crls {
		r := &c.crls[i]
		listed, ok := c.checkCRL(r, known)
		if !ok {
			continue
		}
		at := scope{r.Authority, r.Shard}
		if last := newest[at]; last != nil {
			if r.ThisUpdate < last.ThisUpdate {
				c.fail("INV-7", "CRL %d of %s begins before CRL %d", r.Number, r.Authority, last.Number)
			}
			for serial := range entries[at] {
				cert := known[r.Authority+" "+serial]
				if !listed[serial] && cert != nil && cert.RevokedAt > 0 && cert.NotAfter >= last.ThisUpdate {
					c.fail("INV-7", "certificate %s is on CRL %d of %s and not on %d", serial, last.Number, r.Authority, r.Number)
				}
			}
		}
		newest[at], entries[at] = r, listed
	}
	for _, a := range c.cas {
		for shard := range max(1, a.Shards) {
			c.checkNewest(a, shard, newest[scope{a.Name, shard}], entries[scope{a.Name, shard}])
		}
	}
	published := map[string]int64{}
	for _, e := range c.audit {
		if e.Action != "crl_issued" {
			continue
		}
		number, err := strconv.ParseInt(e.detail("number"), 10, 64)
		of := e.Object + " " + e.detail("shard")
		if err != nil || number <= published[of] {
			c.fail("INV-7", "CRL %q of %s was published after %d", e.detail("number"), of, published[of])
		}
		published[of] = number
	}
}

// scope is what a CRL speaks for.
type scope struct {
	authority string
	shard     int64
}

// shardOf is where a certificate has to be: by the last octet of its serial number.
func shardOf(serial string, shards int64) int64 {
	octet, err := strconv.ParseInt(serial[max(0, len(serial)-2):], 16, 64)
	if err != nil || shards < 2 {
		return 0
	}
	return octet % shards
}

// checkCRL checks one CRL against its record and returns the serial numbers on it.
func (c *checker) checkCRL(r *crlRow, known map[string]*certificateRow) (listed map[string]bool, ok bool) {
	fail := func(format string, args ...any) {
		c.fail("INV-7", "CRL %d of %s: %s", r.Number, r.Authority, fmt.Sprintf(format, args...))
	}
	list, err := x509.ParseRevocationList(r.DER)
	if err != nil {
		fail("%v", err)
		return nil, false
	}
	ca := c.cas[r.Authority]
	if ca == nil || ca.certificate == nil {
		fail("its CA has no certificate")
		return nil, false
	}
	if err := list.CheckSignatureFrom(ca.certificate); err != nil || !bytes.Equal(list.RawIssuer, ca.certificate.RawSubject) {
		fail("the signature: %v", err)
	}
	if list.Number == nil || list.Number.Int64() != r.Number || list.ThisUpdate.UnixMilli() != r.ThisUpdate || list.NextUpdate.UnixMilli() != r.NextUpdate ||
		int64(len(list.RevokedCertificateEntries)) != r.Entries || hash(r.DER) != r.SHA256 {
		fail("it does not say what its record says")
	}
	if r.ThisUpdate > r.IssuedAt || r.NextUpdate <= r.IssuedAt || r.IssuedAt > c.state.Now.Add(time.Second).UnixMilli() {
		fail("made at %d, from %d to %d", r.IssuedAt, r.ThisUpdate, r.NextUpdate)
	}
	if r.Number > ca.CRLNumber {
		fail("the highest number reserved is %d", ca.CRLNumber)
	}
	entry := false
	for _, e := range c.entries["crl_issued "+r.Authority] {
		entry = entry || (e.detail("number") == fmt.Sprint(r.Number) && e.detail("sha256") == r.SHA256)
	}
	if !entry {
		c.fail("INV-11", "CRL %d of %s has no audit entry", r.Number, r.Authority)
	}
	listed = map[string]bool{}
	for _, e := range list.RevokedCertificateEntries {
		serial := fmt.Sprintf("%034x", e.SerialNumber)
		listed[serial] = true
		switch cert := known[r.Authority+" "+serial]; {
		case cert == nil:
			fail("it lists %s, of which there is no record", serial)
		case cert.RevokedAt == 0 && len(c.entries["certificate_unheld "+serial]) == 0:
			fail("it lists %s, which is %s", serial, cert.State)
		}
	}
	return listed, true
}

// checkNewest: there is one, it is not over, and it lists whatever is revoked.
func (c *checker) checkNewest(a *authority, shard int64, newest *crlRow, listed map[string]bool) {
	if a.certificate == nil {
		if newest != nil {
			c.fail("INV-7", "CA %s has a CRL and no certificate", a.Name)
		}
		return
	}
	if newest == nil {
		if c.state.Settled {
			c.fail("INV-7", "CA %s has no CRL of shard %d", a.Name, shard)
		}
		return
	}
	if newest.NextUpdate <= c.state.Now.UnixMilli() {
		c.fail("INV-7", "the newest CRL of %s is over since %v", a.Name, time.UnixMilli(newest.NextUpdate).UTC())
	}
	for i := range c.certificates {
		r := &c.certificates[i]
		if r.Issuer != a.Name || shardOf(r.Serial, a.Shards) != shard || r.RevokedAt == 0 || r.NotAfter < newest.ThisUpdate || listed[r.Serial] {
			continue
		}
		if c.state.Settled || time.UnixMilli(r.RevokedAt).Before(c.state.Now.Add(-publication)) {
			c.fail("INV-7", "certificate %s is revoked and not on the newest CRL of %s", r.Serial, a.Name)
		}
	}
}
