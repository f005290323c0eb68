// Shards: a CA's CRL may be split by serial number into several, each with an issuing distribution point (RFC 5280 section 5.2.5). How many is
// fixed when the CA is created, because every certificate names the CRL that it will be on.

package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/url"
	"strconv"

	"github.com/natal-pki/natal/ca/profile"
)

// MaxShards is the most that a CA's CRL may be split into: the last octet of the serial number decides.
const MaxShards = 256

func (req *CreateRequest) checkShards(root bool) error {
	if req.Shards == 0 {
		req.Shards = 1
	}
	switch {
	case req.Shards < 1 || req.Shards > MaxShards:
		return refuse(Invalid, "crl_shards", "a CA has 1 to %d CRLs, not %d", MaxShards, req.Shards)
	case req.Shards > 1 && root:
		return refuse(Invalid, "crl_shards", "a root has one CRL: it signs few certificates")
	case req.Shards > 1 && req.PublicURL == "":
		return refuse(Invalid, "crl_shards", "several CRLs need a public URL: a certificate names the one that it is on")
	}
	return nil
}

// mustName refuses a certificate that would be on none of several CRLs: whoever checks it looks for the one whose address it names.
func (au *authority) mustName(template *x509.Certificate, use string) error {
	if au.shards() == 1 || len(template.CRLDistributionPoints) > 0 || use == profile.UseOCSP {
		return nil
	}
	return refuse(ProfileViolation, "crl_address", "CA %q has %d CRLs, and the profile puts no CRL address into the certificate: no broker would find the one to check", au.row.Name, au.shards())
}

// CRLAddress is what the certificates of a shard and its CRL name.
func (i *Info) CRLAddress(shard int) string {
	au := authority{row: authorityRow{Name: i.Name, PublicURL: i.PublicURL, Shards: int64(i.Shards)}}
	return au.crlAddress(shard)
}

// Shards is how many CRLs a CA has.
func (a *Authorities) Shards(ctx context.Context, name string) (int, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return 0, err
	}
	return au.shards(), nil
}

// shardOf is the shard of a certificate: the last octet of its serial number, which is random, modulo the number of shards.
func shardOf(serial string, shards int) int {
	if shards <= 1 || len(serial) < 2 {
		return 0
	}
	last, err := strconv.ParseUint(serial[len(serial)-2:], 16, 8)
	if err != nil {
		return 0
	}
	return int(last) % shards
}

func (au *authority) shards() int { return max(1, int(au.row.Shards)) }

func (au *authority) shardOf(serial string) int { return shardOf(serial, au.shards()) }

// crlPath is where the CRL of a certificate is, below /crl/.
func (au *authority) crlPath(serial string) string { return au.shardPath(au.shardOf(serial)) }

func (au *authority) shardPath(shard int) string {
	if au.shards() == 1 {
		return url.PathEscape(au.row.Name) + ".crl"
	}
	return fmt.Sprintf("%s/%d.crl", url.PathEscape(au.row.Name), shard)
}

// crlAddress is what stands in the certificates of a shard and in its CRL, to the letter.
func (au *authority) crlAddress(shard int) string {
	return au.row.PublicURL + "/crl/" + au.shardPath(shard)
}
