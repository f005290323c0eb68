// CRLs: what is published, and issuing one now.

package admin

import (
	"context"
	"io"
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
			crls, err := a.cfg.CA.CRLs(ctx, info.Name)
			if err != nil {
				return List[CRL]{}, err
			}
			for _, crl := range crls {
				out.Items = append(out.Items, showCRL(crl, info.Shards))
			}
		}
		return out, nil
	})
	handle(a, readers, http.MethodGet, "/crls/{name}", "Get a CA's current CRL, or one of several", func(ctx context.Context, _ Caller, in *struct {
		Named
		Shard int `query:"shard" minimum:"0" maximum:"255" doc:"which one, of a CA with several"`
	}) (CRL, error) {
		shards, err := a.cfg.CA.Shards(ctx, in.Name)
		if err != nil {
			return CRL{}, err
		}
		published, err := a.cfg.CA.Published(ctx, in.Name, in.Shard)
		if err != nil {
			return CRL{}, err
		}
		out := showCRL(published.CRL, shards)
		out.DER, err = io.ReadAll(published.Reader())
		return out, err
	})
	handle(a, operators, http.MethodPost, "/crls/{name}", "Issue a CA's CRL now, or all of them; the answer is the last one", func(ctx context.Context, c Caller, in *Named) (CRL, error) {
		if err := a.mayUseCA(ctx, c, in.Name); err != nil {
			return CRL{}, err
		}
		crl, err := a.cfg.CA.IssueCRL(ctx, c.Actor, in.Name)
		if err != nil {
			return CRL{}, err
		}
		shards, err := a.cfg.CA.Shards(ctx, in.Name)
		return showCRL(crl, shards), err
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

func showCRL(c ca.CRL, shards int) CRL {
	return CRL{
		CA: c.Authority, Shard: c.Shard, Shards: shards, Number: c.Number, ThisUpdate: c.ThisUpdate, NextUpdate: c.NextUpdate, Entries: c.Entries, Size: c.Size, SHA256: c.SHA256,
	}
}
