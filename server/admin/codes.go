// Enrollment codes: shown once, when they are made.

package admin

import (
	"context"
	"errors"
	"net/http"

	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/registration"
)

func (a *API) registerCodes() {
	handle(a, readers, http.MethodGet, "/codes", "List enrollment codes", func(ctx context.Context, _ Caller, in *struct {
		Device string `query:"device"`
		After  string `query:"after" doc:"id of the last one of the page before"`
	}) (List[Code], error) {
		codes, err := a.cfg.Book.Codes(ctx, registration.Filter{Device: in.Device, After: in.After, Limit: Page})
		return list(codes, showCode), err
	})
	handle(a, operators, http.MethodPost, "/codes", "Create an enrollment code", func(ctx context.Context, c Caller, in *struct{ Body NewCode }) (Code, error) {
		label, err := a.labelFor(ctx, in.Body.Device, in.Body.Label)
		if err != nil {
			return Code{}, err
		}
		if err := a.mayRegister(ctx, c, in.Body.Device, label, in.Body.SANs); err != nil {
			return Code{}, err
		}
		expires := a.cfg.CodeExpires
		if in.Body.Expires != "" {
			d, err := config.ParseDuration(in.Body.Expires)
			if err != nil {
				return Code{}, invalid("invalid", "expires: %v", err)
			}
			expires = d
		}
		code, err := a.cfg.Book.CreateCode(ctx, c.Actor, in.Body.Device, label, expires, in.Body.SANs)
		return showCode(code), err
	})
	handleEmpty(a, operators, http.MethodDelete, "/codes/{device}", "Revoke a device's open codes", func(ctx context.Context, c Caller, in *struct {
		Device string `path:"device"`
	}) error {
		if err := a.mayUseDevice(ctx, c, in.Device); err != nil {
			return err
		}
		return a.cfg.Book.RevokeCode(ctx, c.Actor, in.Device)
	})
}

// labelFor is the label given, else that of the device, else the default one.
func (a *API) labelFor(ctx context.Context, device, label string) (string, error) {
	if label != "" {
		return label, nil
	}
	known, err := a.cfg.Book.Device(ctx, device)
	var e *registration.Error
	switch {
	case err == nil && known.State != registration.StateHistorical:
		return known.Label, nil
	case err == nil, errors.As(err, &e) && e.Kind == registration.NotFound:
		return registration.Default, nil
	}
	return "", err
}

func showCode(c registration.Code) Code {
	return Code{ID: c.ID, Device: c.Device, Code: c.Code, Label: c.Label, State: c.State, Expires: c.Expires, CreatedAt: c.CreatedAt, UsedAt: c.UsedAt}
}
