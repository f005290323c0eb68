// est-server device: end entities.

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/natal-pki/natal/server/admin"
)

type deviceCommand struct {
	Add     deviceAdd     `cmd:"" help:"Add a device that will enroll."`
	List    deviceList    `cmd:"" help:"List devices."`
	Show    deviceShow    `cmd:"" help:"Show a device and its certificates."`
	Revoke  deviceRevoke  `cmd:"" help:"Revoke a device: nothing of it is accepted until device reissue."`
	Reissue deviceReissue `cmd:"" help:"Re-admit a device, once, with a new code or birth certificate."`
	Suspend deviceSuspend `cmd:"" help:"Suspend a device: its certificates are held and nothing of it is accepted, until it is resumed."`
	Resume  deviceResume  `cmd:"" help:"Resume a suspended device: everything is as before the suspension."`
	Bundle  deviceBundle  `cmd:"" help:"Make a key and its certificate for a device that cannot make a key: once."`
	Remove  deviceRemove  `cmd:"" help:"Remove a device; its certificates are revoked."`
}

type deviceAdd struct {
	jsonFlag
	ID    string   `arg:"" help:"Device id: letters, digits, . _ -, at most 64."`
	Label string   `help:"Label it enrolls at." default:"default" placeholder:"LABEL"`
	SAN   []string `help:"Further name it may have in a certificate: dns:NAME or ip:ADDRESS." name:"san" placeholder:"NAME"`

	Service string `help:"Application it belongs to: bridges put it where {service} stands in a topic." placeholder:"NAME"`

	CodeFile string `help:"File with an enrollment code that was chosen elsewhere, at least 128 bits; - is standard input." xor:"code" placeholder:"FILE"`
	WithCode bool   `help:"Make an enrollment code as well." xor:"code"`
	Expires  string `help:"Life of the code, as 30d or 12h. Default: codes.expires of the configuration." placeholder:"TIME"`
	Out      string `help:"With --with-code: file for the code, mode 0600. Default: it is printed." placeholder:"FILE"`
}

func (c *deviceAdd) Run(a *app) error {
	in := admin.NewDevice{ID: c.ID, Label: c.Label, SANs: c.SAN, Service: c.Service, WithCode: c.WithCode, Expires: c.Expires}
	if c.Out != "" && !c.WithCode {
		return wrongUsage("--out goes with --with-code")
	}
	if c.CodeFile != "" {
		var err error
		if in.Code, err = a.readSecret(c.CodeFile); err != nil {
			return err
		}
	}
	return a.with(func(api *api) error {
		var out admin.AddedDevice
		if err := api.call(http.MethodPost, "/devices", in, &out); err != nil {
			return err
		}
		if c.WithCode {
			return c.deliver(a, *out.Code, c.Out)
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "device %s is %s at label %s\n", out.ID, out.State, out.Label) })
	})
}

type deviceList struct {
	jsonFlag
	Label string `help:"Only of this label." placeholder:"LABEL"`
	State string `help:"Only in this state: new, generated, revoked, historical." placeholder:"STATE"`

	Prefix    string `help:"Only ids that begin so." placeholder:"TEXT"`
	Contains  string `help:"Only ids that contain this, whatever the case; slow among very many." placeholder:"TEXT"`
	Suspended bool   `help:"Only suspended ones."`
}

func (c *deviceList) Run(a *app) error {
	return a.with(func(api *api) error {
		out, err := pages(api, "/devices", []string{"label", c.Label, "state", c.State, "prefix", c.Prefix, "contains", c.Contains, "suspended", flag(c.Suspended)}, func(d admin.Device) string { return d.ID })
		if err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, d := range out.Items {
				rows = append(rows, []string{d.ID, standing(d), d.Label, dash(d.BoundKind), stamp(d.CreatedAt)})
			}
			table(w, "ID STATE LABEL BOUND CREATED", rows)
		})
	})
}

// standing is the state as people read it.
func standing(d admin.Device) string {
	if d.SuspendedAt.IsZero() {
		return d.State
	}
	return d.State + " (suspended)"
}

// pages reads a collection to its end. next is what the page after an item is asked for by.
func pages[T any](c *api, collection string, filter []string, next func(T) string) (admin.List[T], error) {
	all := admin.List[T]{Items: []T{}}
	for after := ""; ; {
		var page admin.List[T]
		if err := c.call(http.MethodGet, collection+query(append(slices.Clone(filter), "after", after)...), nil, &page); err != nil {
			return all, err
		}
		all.Items = append(all.Items, page.Items...)
		if len(page.Items) < admin.Page {
			return all, nil
		}
		after = next(page.Items[len(page.Items)-1])
	}
}

// flag is the value of a query parameter that is there or not.
func flag(set bool) string {
	if set {
		return "true"
	}
	return ""
}

// query builds "?a=b&c=d", leaving empty values out.
func query(pairs ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

type deviceShow struct {
	jsonFlag
	ID string `arg:""`
}

func (c *deviceShow) Run(a *app) error {
	return a.with(func(api *api) error {
		var out struct {
			admin.Device
			Certificates []admin.Certificate `json:"certificates"`
		}
		if err := api.call(http.MethodGet, path("devices", c.ID), nil, &out.Device); err != nil {
			return err
		}
		certs, err := pages(api, "/certificates", []string{"device", c.ID}, func(v admin.Certificate) string { return v.Serial })
		if err != nil {
			return err
		}
		out.Certificates = certs.Items
		return c.show(a, out, func(w io.Writer) {
			fields(w, "id", out.ID, "state", standing(out.Device), "label", out.Label, "service", out.Service, "bound to", strings.TrimSpace(out.BoundKind+" "+out.BoundTo),
				"names", strings.Join(out.SANs, ", "), "created", stamp(out.CreatedAt))
			printCertificates(w, out.Certificates)
		})
	})
}

type deviceRevoke struct {
	jsonFlag
	ID     string `arg:""`
	Reason string `help:"RFC 5280 reason: keyCompromise, cessationOfOperation, privilegeWithdrawn, ..." required:"" placeholder:"REASON"`
}

func (c *deviceRevoke) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Device
		if err := api.call(http.MethodPost, path("devices", c.ID, "revoke"), admin.Reason{Reason: c.Reason}, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "device %s is %s\n", out.ID, out.State) })
	})
}

type deviceSuspend struct {
	jsonFlag
	ID string `arg:""`
}

func (c *deviceSuspend) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Device
		if err := api.call(http.MethodPost, path("devices", c.ID, "suspend"), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "device %s is suspended since %s\n", out.ID, stamp(out.SuspendedAt)) })
	})
}

type deviceResume struct {
	jsonFlag
	ID string `arg:""`
}

func (c *deviceResume) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Device
		if err := api.call(http.MethodPost, path("devices", c.ID, "resume"), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "device %s is %s\n", out.ID, out.State) })
	})
}

type deviceReissue struct {
	jsonFlag
	ID     string `arg:""`
	Reason string `help:"Why its certificates end, RFC 5280 reason." default:"superseded" placeholder:"REASON"`
	Out    string `help:"File for the new code, mode 0600. Default: it is printed." placeholder:"FILE"`
}

func (c *deviceReissue) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Code
		if err := api.call(http.MethodPost, path("devices", c.ID, "reissue"), admin.ReissueDevice{Reason: c.Reason}, &out); err != nil {
			return err
		}
		return c.deliver(a, out, c.Out)
	})
}

type deviceRemove struct {
	ID string `arg:""`
}

func (c *deviceRemove) Run(a *app) error {
	return a.with(func(api *api) error {
		return api.call(http.MethodDelete, path("devices", c.ID), nil, nil)
	})
}
