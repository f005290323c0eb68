// est-server label: which CA, profile and authentication an EST path stands for.

package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/natal-pki/natal/server/admin"
)

type labelCommand struct {
	Add    labelAdd    `cmd:"" help:"Add a label."`
	Set    labelSet    `cmd:"" help:"Change a label; what is not given stays."`
	List   labelList   `cmd:"" help:"List labels."`
	Show   labelShow   `cmd:"" help:"Show a label."`
	Remove labelRemove `cmd:"" help:"Remove a label that no device uses."`
}

type labelAdd struct {
	jsonFlag
	Name    string   `arg:"" help:"Path segment: /.well-known/est/NAME/simpleenroll."`
	CA      string   `help:"Issuing CA. Default: that of the default label." name:"ca" placeholder:"CA"`
	Profile string   `help:"Certificate profile. Default: that of the default label." placeholder:"PROFILE"`
	Auth    []string `help:"Who may enroll: code, birth, bridge. Default: as at the default label." placeholder:"KIND,..."`
}

func (c *labelAdd) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Label
		err := api.call(http.MethodPost, "/labels", admin.NewLabel{Name: c.Name, CA: c.CA, Profile: c.Profile, Auth: c.Auth}, &out)
		if err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { printLabel(w, out) })
	})
}

type labelSet struct {
	jsonFlag
	Name    string   `arg:""`
	CA      string   `help:"Issuing CA." name:"ca" placeholder:"CA"`
	Profile string   `help:"Certificate profile." placeholder:"PROFILE"`
	Auth    []string `help:"Who may enroll: code, birth, bridge." placeholder:"KIND,..."`
}

func (c *labelSet) Run(a *app) error {
	if c.CA == "" && c.Profile == "" && c.Auth == nil {
		return wrongUsage("%s: nothing to change; give --ca, --profile or --auth", c.Name)
	}
	return a.with(func(api *api) error {
		var out admin.Label
		if err := api.call(http.MethodPatch, path("labels", c.Name), admin.LabelChange{CA: c.CA, Profile: c.Profile, Auth: c.Auth}, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { printLabel(w, out) })
	})
}

type labelList struct{ jsonFlag }

func (c *labelList) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.List[admin.Label]
		if err := api.call(http.MethodGet, "/labels", nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, l := range out.Items {
				rows = append(rows, []string{l.Name, l.CA, l.Profile, strings.Join(l.Auth, ","), fmt.Sprint(l.Version)})
			}
			table(w, "NAME CA PROFILE AUTH VERSION", rows)
		})
	})
}

type labelShow struct {
	jsonFlag
	Name string `arg:""`
}

func (c *labelShow) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Label
		if err := api.call(http.MethodGet, path("labels", c.Name), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { printLabel(w, out) })
	})
}

func printLabel(w io.Writer, l admin.Label) {
	url := "/.well-known/est/" + l.Name
	if l.Name == "default" {
		url = "/.well-known/est"
	}
	fields(w, "label", l.Name, "path", url, "ca", l.CA, "profile", l.Profile, "auth", strings.Join(l.Auth, ","), "version", fmt.Sprint(l.Version))
}

type labelRemove struct {
	Name string `arg:""`
}

func (c *labelRemove) Run(a *app) error {
	return a.with(func(api *api) error {
		return api.call(http.MethodDelete, path("labels", c.Name), nil, nil)
	})
}
