// CRLs: what is published, and issuing one now.

package admin

import (
	"context"
	"net/http"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/config"
)

func (a *API) registerCRLs() {
	handle(a, readers, http.MethodGet, "/crls", "List the current CRLs", func(ctx context.Context, _ Caller, _ *struct{}) (List[CRL], error) {
		infos, err := a.cfg.CA.List(ctx)
		if err != nil {
			return List[CRL]{}, err
		}
		out := List[CRL]{Items: []CRL{}}
		for _, info := range infos {
			if info.CRLNumber == 0 {
				continue
			}
			crl, err := a.cfg.CA.CurrentCRL(ctx, info.Name)
			if err != nil {
				return List[CRL]{}, err
			}
			item := showCRL(crl)
			item.DER = nil
			out.Items = append(out.Items, item)
		}
		return out, nil
	})
	handle(a, readers, http.MethodGet, "/crls/{name}", "Get a CA's current CRL", func(ctx context.Context, _ Caller, in *Named) (CRL, error) {
		if _, err := a.cfg.CA.Get(ctx, in.Name); err != nil {
			return CRL{}, err
		}
		crl, err := a.cfg.CA.CurrentCRL(ctx, in.Name)
		return showCRL(crl), err
	})
	handle(a, operators, http.MethodPost, "/crls/{name}", "Issue a CRL now", func(ctx context.Context, c Caller, in *Named) (CRL, error) {
		if err := a.mayUseCA(ctx, c, in.Name); err != nil {
			return CRL{}, err
		}
		crl, err := a.cfg.CA.IssueCRL(ctx, c.Actor, in.Name)
		return showCRL(crl), err
	})
	handleEmpty(a, administrators, http.MethodPut, "/crls/{name}/schedule", "Change how long a CA's CRLs are valid and how often they are issued", func(ctx context.Context, c Caller, in *struct {
		Named
		Body CRLSchedule
	}) error {
		valid, err := config.ParseDuration(in.Body.Valid)
		if err != nil {
			return invalid("invalid", "valid: %v", err)
		}
		interval, err := config.ParseDuration(in.Body.Interval)
		if err != nil {
			return invalid("invalid", "interval: %v", err)
		}
		_, err = a.cfg.CA.SetCRL(ctx, c.Actor, in.Name, valid, interval)
		return err
	})
}

func showCRL(c ca.CRL) CRL {
	return CRL{CA: c.Authority, Number: c.Number, ThisUpdate: c.ThisUpdate, NextUpdate: c.NextUpdate, Entries: c.Entries, SHA256: c.SHA256, DER: c.DER}
}
