// Who is on the other end of a management connection: the admin address and the bridges' feed.

package auth

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
)

// Management returns the record of the management certificate that the peer has proven to hold: one that this server issued, byte for byte,
// that is neither revoked nor outside its validity at now, from a CA for management use. What the
// holder may do is for the caller to decide, by the record's Profile and Device.
func Management(ctx context.Context, authorities *ca.Authorities, state *tls.ConnectionState, now time.Time) (ca.Certificate, error) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return ca.Certificate{}, errNoCredential
	}
	record, err := authorities.ByDER(ctx, state.PeerCertificates[0])
	if err != nil {
		return ca.Certificate{}, err
	}
	switch {
	case record.State != ca.Issued:
		return ca.Certificate{}, fmt.Errorf("certificate %s is %s", record.Serial, record.State)
	case now.Before(record.NotBefore) || now.After(record.NotAfter):
		return ca.Certificate{}, fmt.Errorf("certificate %s is valid from %s to %s", record.Serial, record.NotBefore.Format(time.RFC3339), record.NotAfter.Format(time.RFC3339))
	}
	issuer, err := authorities.Get(ctx, record.Issuer)
	if err != nil {
		return ca.Certificate{}, err
	}
	if issuer.State == ca.Revoked {
		return ca.Certificate{}, fmt.Errorf("certificate %s: its CA %s is revoked", record.Serial, issuer.Name)
	}
	if issuer.Use != profile.UseManagement {
		return ca.Certificate{}, fmt.Errorf("certificate %s is not from a CA for management", record.Serial)
	}
	return record, nil
}
