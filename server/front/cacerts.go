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

// trustChain returns the label's CA, everything above it, and the chain of the EST server's own certificate: a device that
// replaces its trust anchors by this answer must still be able to reach the server. The order is the one that DER asks of a
// SET OF.
func (f *Front) trustChain(ctx context.Context, x *exchange) ([]*x509.Certificate, error) {
	issuer, err := f.ca.Get(ctx, x.label.CA)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	if issuer.Certificate != nil {
		certs = append(append(certs, issuer.Certificate), issuer.Chain...)
	}
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
