// One CA after another: the successor made, let to take over once every bridge knows it, and the end of the old one.

package admin

import (
	"context"
	"net/http"
	"strings"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/feed"
)

func (a *API) registerRollover() {
	handle(a, administrators, http.MethodPost, "/cas/{name}/rollover", "Make the successor of a CA", func(ctx context.Context, c Caller, in *struct {
		Named
		Body RolloverCA
	}) (CA, error) {
		info, err := a.cfg.CA.Rollover(ctx, c.Actor, ca.RolloverRequest{
			CA: in.Name, Name: in.Body.Name, Subject: in.Body.Subject, Key: in.Body.Key, Parent: in.Body.Parent, External: in.Body.External, Years: in.Body.Years,
		})
		return showCA(info), err
	})
	handle(a, administrators, http.MethodPost, "/cas/{name}/activate", "Let a CA that stands by take over", func(ctx context.Context, c Caller, in *struct {
		Named
		Body Override
	}) (CA, error) {
		return a.activateCA(ctx, c, in.Name, in.Body)
	})
	handle(a, administrators, http.MethodPost, "/cas/{name}/retire", "End a retiring CA", func(ctx context.Context, c Caller, in *struct {
		Named
		Body Override
	}) (CA, error) {
		if err := in.Body.check(); err != nil {
			return CA{}, err
		}
		info, err := a.cfg.CA.Retire(ctx, c.Actor, in.Name, in.Body.Reason)
		return showCA(info), err
	})
	handle(a, administrators, http.MethodPost, "/cas/{name}/revoke", "Revoke a CA that was signed here", func(ctx context.Context, c Caller, in *struct {
		Named
		Body Reason
	}) (CA, error) {
		info, err := a.cfg.CA.RevokeCA(ctx, c.Actor, in.Name, in.Body.Reason)
		return showCA(info), err
	})
}

// check: a reason without an override would look as if it had been needed.
func (o *Override) check() error {
	o.Reason = strings.TrimSpace(o.Reason)
	switch {
	case o.Override && o.Reason == "":
		return invalid("reason", "an override needs a reason: it is kept in the audit log")
	case !o.Override && o.Reason != "":
		return invalid("reason", "a reason goes with override")
	case len(o.Reason) > 500:
		return invalid("reason", "a reason has at most 500 characters")
	}
	return nil
}

func (a *API) activateCA(ctx context.Context, c Caller, name string, in Override) (CA, error) {
	if err := in.check(); err != nil {
		return CA{}, err
	}
	info, err := a.cfg.CA.Get(ctx, name)
	if err != nil {
		return CA{}, err
	}
	behind, err := a.gate(ctx, info)
	if err != nil {
		return CA{}, err
	}
	if len(behind) > 0 && !in.Override {
		return CA{}, newProblem(http.StatusConflict, "bridges_behind", "CA "+name+" is not known yet to: "+strings.Join(behind, "; "))
	}
	how := ca.Activation{MoveLabels: a.cfg.Book.MoveLabels}
	if len(behind) > 0 {
		how.Override, how.Behind = in.Reason, strings.Join(behind, "; ")
	}
	info, err = a.cfg.CA.Activate(ctx, c.Actor, name, how)
	return showCA(info), err
}

// gate is what keeps a CA that stands by from taking over: the bridges that do not know it.
func (a *API) gate(ctx context.Context, info ca.Info) ([]string, error) {
	if info.State != ca.Standby {
		return nil, nil
	}
	var rows []adminRow
	if err := a.cfg.DB.Select(ctx, &rows, "SELECT name, role, created_at FROM administrators WHERE role = ?", RoleBridge); err != nil {
		return nil, err
	}
	var others []string
	for _, row := range rows {
		others = append(others, identityOf(row))
	}
	return feed.Behind(ctx, a.cfg.DB, a.cfg.CA, info, others)
}
