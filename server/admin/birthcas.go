// Birth CAs: whose birth certificates a label accepts.

package admin

import (
	"context"
	"net/http"

	"github.com/natal-pki/natal/server/registration"
)

func (a *API) registerBirthCAs() {
	handle(a, readers, http.MethodGet, "/birth-cas", "List birth CAs", func(ctx context.Context, _ Caller, in *struct {
		Label string `query:"label"`
	}) (List[BirthCA], error) {
		if in.Label != "" {
			cas, err := a.cfg.Book.BirthCAs(ctx, in.Label)
			return list(cas, showBirthCA), err
		}
		labels, err := a.cfg.Book.Labels(ctx)
		if err != nil {
			return List[BirthCA]{}, err
		}
		var all []registration.BirthCA
		for _, label := range labels {
			cas, err := a.cfg.Book.BirthCAs(ctx, label.Name)
			if err != nil {
				return List[BirthCA]{}, err
			}
			all = append(all, cas...)
		}
		return list(all, showBirthCA), nil
	})
	handle(a, administrators, http.MethodPost, "/birth-cas", "Add birth CAs to a label", func(ctx context.Context, c Caller, in *struct{ Body NewBirthCA }) (List[BirthCA], error) {
		cas, err := a.cfg.Book.AddBirthCA(ctx, c.Actor, in.Body.Label, []byte(in.Body.PEM))
		return list(cas, showBirthCA), err
	})
	handleEmpty(a, administrators, http.MethodDelete, "/birth-cas/{label}/{fingerprint}", "Remove a birth CA from a label", func(ctx context.Context, c Caller, in *struct {
		Label       string `path:"label"`
		Fingerprint string `path:"fingerprint"`
	}) error {
		return a.cfg.Book.RemoveBirthCA(ctx, c.Actor, in.Label, in.Fingerprint)
	})
}

func showBirthCA(b registration.BirthCA) BirthCA {
	out := BirthCA{Label: b.Label, Subject: b.Subject, Fingerprint: b.Fingerprint}
	if b.Certificate != nil {
		out.NotAfter = b.Certificate.NotAfter
	}
	return out
}
