// Shards: a CA's CRL may be split by serial number into several, each with an issuing distribution point (RFC 5280 section 5.2.5). How many is
// fixed when the CA is created, because every certificate names the CRL that it will be on.

package ca

import (
	"fmt"
	"net/url"
	"strconv"
)

// MaxShards is the most that a CA's CRL may be split into: the last octet of the serial number decides.
const MaxShards = 256

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
