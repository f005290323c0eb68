// Enrollment codes: shown once, when they are made.

package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/registration"
)

func (a *API) registerCodes() {
	handle(a, readers, http.MethodGet, "/codes", "List enrollment codes", func(ctx context.Context, _ Caller, in *struct {
		Device string `query:"device"`
		Paged
	}) (List[Code], error) {
		codes, err := a.cfg.Book.Codes(ctx, registration.Filter{Device: in.Device, After: in.After, Limit: in.Limit})
		return page(in.Paged, codes, showCode, func(c registration.Code) string { return c.ID }), err
	})
	handle(a, operators, http.MethodPost, "/codes", "Create an enrollment code", func(ctx context.Context, c Caller, in *struct{ Body NewCode }) (Code, error) {
		label, err := a.labelFor(ctx, in.Body.Device, in.Body.Label)
		if err != nil {
			return Code{}, err
		}
		if err := a.mayRegister(ctx, c, in.Body.Device, label, in.Body.SANs); err != nil {
			return Code{}, err
		}
		life, err := a.codeLife(in.Body.Expires)
		if err != nil {
			return Code{}, err
		}
		code, err := a.cfg.Book.CreateCodeAs(ctx, c.Actor, in.Body.Device, label, registration.NewCode{Secret: in.Body.Code, Life: life}, in.Body.SANs)
		if in.Body.Code != "" {
			code.Code = "" // whoever chose it has it
		}
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

// codeLife reads the life of a code; "" is what the server's settings say.
func (a *API) codeLife(text string) (time.Duration, error) {
	if text == "" {
		return a.cfg.CodeExpires, nil
	}
	d, err := config.ParseDuration(text)
	if err != nil {
		return 0, invalid("invalid", "expires: %v", err)
	}
	return d, nil
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
