// Bundles: a key made here, with its certificate, for a device that cannot make one.

package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"

	"github.com/natal-pki/natal/server/registration"
)

func (a *API) registerBundles() {
	handle(a, operators, http.MethodPost, "/devices/{id}/bundle", "Make a key and its certificate for a device that cannot: delivered once, stored nowhere", func(ctx context.Context, c Caller, in *struct {
		DeviceID
		Body *NewBundle `required:"false"`
	}) (Bundle, error) {
		asked := NewBundle{}
		if in.Body != nil {
			asked = *in.Body
		}
		label, err := a.labelFor(ctx, in.ID, asked.Label)
		if err != nil {
			return Bundle{}, err
		}
		if err := a.mayRegister(ctx, c, in.ID, label, nil); err != nil {
			return Bundle{}, err
		}
		if err := a.mayUseDevice(ctx, c, in.ID); err != nil && !isUnknownDevice(err) {
			return Bundle{}, err
		}
		bundle, err := a.cfg.Book.IssueBundle(ctx, c.Actor, in.ID, label, asked.Key, cmp.Or(asked.Format, "pem"))
		if err != nil {
			return Bundle{}, err
		}
		return a.showBundle(ctx, bundle)
	})
}

func isUnknownDevice(err error) bool {
	var e *registration.Error
	return errors.As(err, &e) && e.Kind == registration.NotFound
}

func (a *API) showBundle(ctx context.Context, b registration.Bundle) (Bundle, error) {
	key, err := x509.MarshalPKCS8PrivateKey(b.Key)
	if err != nil {
		return Bundle{}, err
	}
	defer clear(key)
	issuer, err := a.cfg.CA.Get(ctx, b.Certificate.Issuer)
	if err != nil {
		return Bundle{}, err
	}
	out := Bundle{
		Device: b.Certificate.Device, Serial: b.Certificate.Serial, NotAfter: b.Certificate.NotAfter,
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), Certificate: encodeDER(b.Certificate.DER),
	}
	for _, above := range append([]*x509.Certificate{issuer.Certificate}, issuer.Chain...) {
		if bytes.Equal(above.RawIssuer, above.RawSubject) {
			out.Root = encodeChain([]*x509.Certificate{above})
		} else {
			out.Chain += encodeChain([]*x509.Certificate{above})
		}
	}
	return out, nil
}
