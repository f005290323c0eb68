// Certificates: every one that was ever issued here.

package admin

import (
	"context"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/config"
)

// Serial is the input of an operation on one certificate.
type Serial struct {
	Serial string `path:"serial"`
}

func (a *API) registerCertificates() {
	handle(a, readers, http.MethodGet, "/certificates", "List certificates", func(ctx context.Context, _ Caller, in *struct {
		Device   string `query:"device"`
		State    string `query:"state"`
		Profile  string `query:"profile"`
		Expiring string `query:"expiring" doc:"issued and expiring within this time, as 30d"`

		DevicePrefix string `query:"device_prefix" doc:"beginning of the device's id"`
		SerialPrefix string `query:"serial" doc:"beginning of the serial number, hex"`
		Label        string `query:"label"`
		Issuer       string `query:"issuer" doc:"name of the CA"`
		Expired      bool   `query:"expired" doc:"only issued ones that have expired"`
		Paged
	}) (List[Certificate], error) {
		filter := ca.Filter{Device: in.Device, State: in.State, Profile: in.Profile, After: in.After, Limit: in.Limit}
		filter.DevicePrefix, filter.Serial, filter.Label, filter.Issuer, filter.Expired = in.DevicePrefix, in.SerialPrefix, in.Label, in.Issuer, in.Expired
		if in.Expiring != "" {
			d, err := config.ParseDuration(in.Expiring)
			if err != nil {
				return List[Certificate]{}, invalid("invalid", "expiring: %v", err)
			}
			filter.ExpireBefore = a.cfg.Clock.Now().Add(d)
		}
		certs, err := a.cfg.CA.Certificates(ctx, filter)
		return page(in.Paged, certs, showCertificate, func(c ca.Certificate) string { return c.Serial }), err
	})
	handle(a, readers, http.MethodGet, "/certificates/{serial}", "Show a certificate", func(ctx context.Context, _ Caller, in *Serial) (Certificate, error) {
		cert, err := a.cfg.CA.Certificate(ctx, in.Serial)
		if err != nil {
			return Certificate{}, err
		}
		out := showCertificate(cert)
		out.Certificate = encodeDER(cert.DER)
		info, err := a.cfg.CA.Get(ctx, cert.Issuer)
		if err != nil {
			return Certificate{}, err
		}
		out.Chain = encodeChain(append([]*x509.Certificate{info.Certificate}, info.Chain...))
		return out, nil
	})
	handle(a, operators, http.MethodPost, "/certificates/{serial}/revoke", "Revoke a certificate", func(ctx context.Context, c Caller, in *struct {
		Serial
		Body Reason
	}) (Certificate, error) {
		if err := a.mayUseCertificate(ctx, c, in.Serial.Serial); err != nil {
			return Certificate{}, err
		}
		cert, err := a.cfg.CA.Revoke(ctx, c.Actor, in.Serial.Serial, in.Body.Reason)
		return showCertificate(cert), err
	})
	handle(a, operators, http.MethodPost, "/certificates/{serial}/unhold", "Lift a certificateHold", func(ctx context.Context, c Caller, in *Serial) (Certificate, error) {
		if err := a.mayUseCertificate(ctx, c, in.Serial); err != nil {
			return Certificate{}, err
		}
		cert, err := a.cfg.CA.Unhold(ctx, c.Actor, in.Serial)
		return showCertificate(cert), err
	})
}

func showCertificate(c ca.Certificate) Certificate {
	return Certificate{
		Serial: c.Serial, Issuer: c.Issuer, Device: c.Device, Label: c.Label, Profile: c.Profile, ProfileHash: c.ProfileHash, State: c.State,
		RequesterKind: c.RequesterKind, Requester: c.Requester, NotBefore: c.NotBefore, NotAfter: c.NotAfter, CreatedAt: c.CreatedAt,
		IssuedAt: c.IssuedAt, SupersededAt: c.SupersededAt, RevokedAt: c.RevokedAt, Reason: reasonOf(c.RevokedAt, c.Reason),
	}
}

func reasonOf(revoked time.Time, reason string) string {
	if revoked.IsZero() {
		return ""
	}
	return reason
}
