// GET /cacerts (RFC 7030 section 4.1): what a device needs to trust the certificates of its label, and this server.

package front

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/natal-pki/natal/internal/wire"
)

func (f *Front) caCerts(ctx context.Context, x *exchange) (answer, error) {
	return f.encode(ctx, x, wire.OpCACerts, wire.TypeCertsOnly, nil)
}

// trustChain returns the label's CA, those that will take over from it or that it took over from, everything above them, and the same for the EST
// server's own certificate: a device that replaces its trust anchors by this answer must still be able to reach the server. After a root was rolled
// over that is "the certificates OldWithOld, OldWithNew, NewWithOld, and NewWithNew" (RFC 7030 section 4.1.3). The order is the one that DER asks of a
// SET OF.
func (f *Front) trustChain(ctx context.Context, x *exchange) ([]*x509.Certificate, error) {
	trust, err := f.ca.Trust(ctx, x.label.CA)
	if err != nil {
		return nil, err
	}
	certs := trust.All()
	anchors, err := f.anchors(ctx)
	if err != nil {
		return nil, fmt.Errorf("chain of the EST server: %w", err)
	}
	certs = append(certs, anchors...)
	slices.SortFunc(certs, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	certs = slices.CompactFunc(certs, func(a, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) })
	if len(certs) == 0 {
		return nil, &Error{Kind: NoCA, Detail: "there is no CA certificate yet"}
	}
	return certs, nil
}
