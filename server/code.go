// est-server code: one-time enrollment codes.

package main

import (
	"fmt"
	"io"
	"net/http"

	"github.com/natal-pki/natal/server/admin"
)

type codeCommand struct {
	Create codeCreate `cmd:"" help:"Create a code; the device is made when it does not exist."`
	Import codeImport `cmd:"" help:"Register many devices with a code each, all or none, from a CSV file."`
	List   codeList   `cmd:"" help:"List codes; the codes themselves are never shown again."`
	Revoke codeRevoke `cmd:"" help:"Revoke a device's unused codes."`
}

type codeCreate struct {
	jsonFlag
	ID      string   `arg:"" help:"Device id."`
	Label   string   `help:"Label the device enrolls at. Default: the device's, or default." placeholder:"LABEL"`
	Expires string   `help:"Life of the code, as 30d or 12h. Default: codes.expires of the configuration." placeholder:"TIME"`
	SAN     []string `help:"Further name the device may have in a certificate: dns:NAME or ip:ADDRESS." name:"san" placeholder:"NAME"`
	Out     string   `help:"File for the code, mode 0600. Default: it is printed." xor:"code" placeholder:"FILE"`

	CodeFile string `help:"File with a code that was chosen elsewhere, at least 128 bits; - is standard input. Default: one is made." xor:"code" placeholder:"FILE"`
}

func (c *codeCreate) Run(a *app) error {
	in := admin.NewCode{Device: c.ID, Label: c.Label, Expires: c.Expires, SANs: c.SAN}
	if c.CodeFile != "" {
		var err error
		if in.Code, err = a.readSecret(c.CodeFile); err != nil {
			return err
		}
	}
	return a.with(func(api *api) error {
		var out admin.Code
		if err := api.call(http.MethodPost, "/codes", in, &out); err != nil {
			return err
		}
		if c.CodeFile != "" {
			return c.show(a, out, func(w io.Writer) {
				fmt.Fprintf(w, "the code for %s is stored and expires %s\n", out.Device, stamp(out.Expires))
			})
		}
		return c.deliver(a, out, c.Out)
	})
}

// deliver writes a code to the file out, or prints it.
func (f jsonFlag) deliver(a *app, code admin.Code, out string) error {
	if out != "" {
		if err := a.write(out, []byte(code.Code+"\n"), 0o600); err != nil {
			return err
		}
		code.Code = ""
	}
	return f.show(a, code, func(w io.Writer) {
		if out != "" {
			fmt.Fprintf(w, "the code for %s is in %s and expires %s\n", code.Device, out, stamp(code.Expires))
			return
		}
		fmt.Fprintln(w, code.Code)
	})
}

type codeList struct {
	jsonFlag
	Device string `help:"Only of this device." placeholder:"ID"`
}

func (c *codeList) Run(a *app) error {
	return a.with(func(api *api) error {
		out, err := pages(api, "/codes", []string{"device", c.Device}, func(k admin.Code) string { return k.ID })
		if err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, k := range out.Items {
				rows = append(rows, []string{k.Device, k.Label, k.State, stamp(k.Expires), dash(stamp(k.UsedAt))})
			}
			table(w, "DEVICE LABEL STATE EXPIRES USED", rows)
		})
	})
}

type codeRevoke struct {
	ID string `arg:"" help:"Device id."`
}

func (c *codeRevoke) Run(a *app) error {
	return a.with(func(api *api) error {
		return api.call(http.MethodDelete, path("codes", c.ID), nil, nil)
	})
}
