// Devices: the end entities of the registration authority's book.

package admin

import (
	"context"
	"net/http"

	"github.com/natal-pki/natal/server/registration"
)

// DeviceID is the input of an operation on one device.
type DeviceID struct {
	ID string `path:"id"`
}

func (a *API) registerDevices() {
	handle(a, readers, http.MethodGet, "/devices", "List devices", func(ctx context.Context, _ Caller, in *struct {
		Label string `query:"label"`
		State string `query:"state"`

		Prefix    string `query:"prefix" doc:"beginning of the id"`
		Contains  string `query:"contains" doc:"part of the id, whatever the case; slow among very many"`
		Suspended bool   `query:"suspended" doc:"only those that are suspended"`
		Paged
	}) (List[Device], error) {
		devices, err := a.cfg.Book.Devices(ctx, registration.Filter{Label: in.Label, State: in.State, Prefix: in.Prefix, Part: in.Contains, Suspended: in.Suspended, After: in.After, Limit: in.Limit})
		return page(in.Paged, devices, showDevice, func(d registration.EndEntity) string { return d.ID }), err
	})
	handle(a, readers, http.MethodGet, "/devices/{id}", "Show a device", func(ctx context.Context, _ Caller, in *DeviceID) (Device, error) {
		device, err := a.cfg.Book.Device(ctx, in.ID)
		return showDevice(device), err
	})
	handle(a, operators, http.MethodPost, "/devices", "Add a device", func(ctx context.Context, c Caller, in *struct{ Body NewDevice }) (AddedDevice, error) {
		return a.addDevice(ctx, c, in.Body)
	})
	handle(a, operators, http.MethodPost, "/devices/{id}/revoke", "Revoke a device and all its certificates", func(ctx context.Context, c Caller, in *struct {
		DeviceID
		Body Reason
	}) (Device, error) {
		if err := a.mayUseDevice(ctx, c, in.ID); err != nil {
			return Device{}, err
		}
		device, err := a.cfg.Book.RevokeDevice(ctx, c.Actor, in.ID, in.Body.Reason)
		return showDevice(device), err
	})
	handle(a, operators, http.MethodPost, "/devices/{id}/suspend", "Suspend a device: its certificates are held, nothing of it is accepted", func(ctx context.Context, c Caller, in *DeviceID) (Device, error) {
		if err := a.mayUseDevice(ctx, c, in.ID); err != nil {
			return Device{}, err
		}
		device, err := a.cfg.Book.SuspendDevice(ctx, c.Actor, in.ID)
		return showDevice(device), err
	})
	handle(a, operators, http.MethodPost, "/devices/{id}/resume", "Resume a suspended device: what the suspension held is valid again", func(ctx context.Context, c Caller, in *DeviceID) (Device, error) {
		if err := a.mayUseDevice(ctx, c, in.ID); err != nil {
			return Device{}, err
		}
		device, err := a.cfg.Book.ResumeDevice(ctx, c.Actor, in.ID)
		return showDevice(device), err
	})
	handle(a, operators, http.MethodPost, "/devices/{id}/reissue", "Re-admit a device with a new code", func(ctx context.Context, c Caller, in *struct {
		DeviceID
		Body *ReissueDevice `required:"false"`
	}) (Code, error) {
		if err := a.mayUseDevice(ctx, c, in.ID); err != nil {
			return Code{}, err
		}
		reason := ""
		if in.Body != nil {
			reason = in.Body.Reason
		}
		code, err := a.cfg.Book.Reissue(ctx, c.Actor, in.ID, reason)
		return showCode(code), err
	})
	handleEmpty(a, operators, http.MethodDelete, "/devices/{id}", "Remove a device; its certificates are revoked", func(ctx context.Context, c Caller, in *DeviceID) error {
		if err := a.mayUseDevice(ctx, c, in.ID); err != nil {
			return err
		}
		return a.cfg.Book.RemoveDevice(ctx, c.Actor, in.ID)
	})
}

func (a *API) addDevice(ctx context.Context, c Caller, in NewDevice) (AddedDevice, error) {
	if in.Label == "" {
		in.Label = registration.Default
	}
	if err := a.mayRegister(ctx, c, in.ID, in.Label, in.SANs); err != nil {
		return AddedDevice{}, err
	}
	d := registration.NewDevice{ID: in.ID, Label: in.Label, SANs: in.SANs, Service: in.Service}
	if !in.WithCode && in.Code == "" {
		if in.Expires != "" {
			return AddedDevice{}, invalid("invalid", "expires goes with a code")
		}
		device, err := a.cfg.Book.AddDevice(ctx, c.Actor, d)
		return AddedDevice{Device: showDevice(device)}, err
	}
	life, err := a.codeLife(in.Expires)
	if err != nil {
		return AddedDevice{}, err
	}
	device, code, err := a.cfg.Book.AddDeviceWithCode(ctx, c.Actor, d, registration.NewCode{Secret: in.Code, Life: life})
	if err != nil {
		return AddedDevice{}, err
	}
	shown := showCode(code)
	if in.Code != "" {
		shown.Code = "" // whoever chose it has it
	}
	return AddedDevice{Device: showDevice(device), Code: &shown}, nil
}

func showDevice(e registration.EndEntity) Device {
	return Device{
		ID: e.ID, Label: e.Label, State: e.State, BoundKind: e.BoundKind, BoundTo: e.BoundTo,
		SANs: e.SANs, Service: e.Service, Generation: e.Generation, CreatedAt: e.CreatedAt,
		SuspendedAt: e.SuspendedAt,
	}
}
