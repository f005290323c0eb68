// est-server profile: certificate profiles, and what one says to a request.

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/server/admin"
)

type profileCommand struct {
	List    profileList    `cmd:"" help:"List profiles."`
	Show    profileShow    `cmd:"" help:"Print a profile."`
	Check   profileCheck   `cmd:"" help:"Check a profile file; needs no server."`
	Add     profileAdd     `cmd:"" help:"Add a profile, or a new version of one."`
	Explain profileExplain `cmd:"" help:"Say what a profile passes and refuses of a request; nothing is issued."`
}

type profileList struct{ jsonFlag }

func (c *profileList) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.List[admin.Profile]
		if err := api.call(http.MethodGet, "/profiles", nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, p := range out.Items {
				rows = append(rows, []string{p.Name, p.Use, strings.Join(p.Keys, ","), p.Hash[:16]})
			}
			table(w, "NAME USE KEYS HASH", rows)
		})
	})
}

type profileShow struct {
	jsonFlag
	Name string `arg:""`
}

func (c *profileShow) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Profile
		if err := api.call(http.MethodGet, path("profiles", c.Name), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprint(w, out.YAML) })
	})
}

type profileCheck struct {
	File string `arg:""`
}

func (c *profileCheck) Run(a *app) error {
	content, err := a.readInput(c.File)
	if err != nil {
		return err
	}
	p, err := profile.Parse(content)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	fmt.Fprintf(a.stdout, "profile %s is valid\n", p.Name())
	return nil
}

type profileAdd struct {
	jsonFlag
	File string `arg:""`
}

func (c *profileAdd) Run(a *app) error {
	content, err := a.readInput(c.File)
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		var out admin.Profile
		if err := api.call(http.MethodPost, "/profiles", map[string]string{"yaml": string(content)}, &out); err != nil {
			return fmt.Errorf("%s: %w", c.File, err)
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "profile %s added\n", out.Name) })
	})
}

type profileExplain struct {
	jsonFlag
	Profile string   `help:"Profile to apply." required:"" placeholder:"NAME"`
	CSR     string   `help:"Request, PEM." name:"csr" required:"" placeholder:"FILE"`
	CA      string   `help:"Issuing CA. Default: the first active one of the profile's use." name:"ca" placeholder:"CA"`
	Device  string   `help:"Authenticated identity. Default: the request's common name." placeholder:"ID"`
	SAN     []string `help:"Name registered with the device: dns:NAME or ip:ADDRESS." name:"san" placeholder:"NAME"`
}

var errWouldRefuse = errors.New("the request would be refused")

func (c *profileExplain) Run(a *app) error {
	csr, err := a.readInput(c.CSR)
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		var out admin.Explanation
		err := api.call(http.MethodPost, path("profiles", c.Profile, "explain"), admin.ExplainProfile{CSR: string(csr), CA: c.CA, Device: c.Device, SANs: c.SAN}, &out)
		if err != nil {
			return fmt.Errorf("%s: %w", c.CSR, err)
		}
		err = c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, f := range out.Findings {
				verdict := "pass"
				if !f.OK {
					verdict = "REFUSE"
				}
				rows = append(rows, []string{verdict, f.Rule, f.Detail})
			}
			table(w, "VERDICT RULE DETAIL", rows)
		})
		if err == nil && !out.OK {
			return fmt.Errorf("%s: %w by profile %s", c.CSR, errWouldRefuse, c.Profile)
		}
		return err
	})
}
