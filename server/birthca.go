// est-server birth-ca: whose birth certificates a label accepts.

package main

import (
	"fmt"
	"io"
	"net/http"

	"github.com/natal-pki/natal/server/admin"
)

type birthCACommand struct {
	Add    birthCAAdd    `cmd:"" help:"Accept the birth certificates of the CAs in a file."`
	List   birthCAList   `cmd:"" help:"List birth CAs."`
	Remove birthCARemove `cmd:"" help:"Accept a CA's birth certificates no longer."`
}

type birthCAAdd struct {
	jsonFlag
	Label string `arg:""`
	File  string `arg:"" help:"CA certificates, PEM."`
}

func (c *birthCAAdd) Run(a *app) error {
	content, err := a.readInput(c.File)
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		var out admin.List[admin.BirthCA]
		if err := api.call(http.MethodPost, "/birth-cas", admin.NewBirthCA{Label: c.Label, PEM: string(content)}, &out); err != nil {
			return fmt.Errorf("%s: %w", c.File, err)
		}
		return c.show(a, out, func(w io.Writer) { printBirthCAs(w, out.Items) })
	})
}

func printBirthCAs(w io.Writer, cas []admin.BirthCA) {
	var rows [][]string
	for _, b := range cas {
		rows = append(rows, []string{b.Label, b.Fingerprint, stamp(b.NotAfter), b.Subject})
	}
	table(w, "LABEL FINGERPRINT NOT-AFTER SUBJECT", rows)
}

type birthCAList struct {
	jsonFlag
	Label string `help:"Only of this label." placeholder:"LABEL"`
}

func (c *birthCAList) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.List[admin.BirthCA]
		if err := api.call(http.MethodGet, "/birth-cas"+query("label", c.Label), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { printBirthCAs(w, out.Items) })
	})
}

type birthCARemove struct {
	Label       string `arg:""`
	Fingerprint string `arg:"" help:"SHA-256, as birth-ca list shows it."`
}

func (c *birthCARemove) Run(a *app) error {
	return a.with(func(api *api) error {
		return api.call(http.MethodDelete, path("birth-cas", c.Label, c.Fingerprint), nil, nil)
	})
}
