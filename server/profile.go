// est-server profile: certificate profiles, and what one says to a request.

package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
				rows = append(rows, []string{p.Name, p.Use, fmt.Sprint(p.Version), strings.Join(p.Keys, ","), p.Hash[:16]})
			}
			table(w, "NAME USE VERSION KEYS HASH", rows)
		})
	})
}

type profileShow struct {
	jsonFlag
	Name     string `arg:""`
	Hash     string `help:"A version by its hash, or the beginning of it, as certificates name it. Default: the newest." placeholder:"HASH"`
	Versions bool   `help:"List the versions instead."`
}

func (c *profileShow) Run(a *app) error {
	if c.Versions {
		return c.versions(a)
	}
	return a.with(func(api *api) error {
		var out admin.Profile
		if err := api.call(http.MethodGet, path("profiles", c.Name)+"?hash="+url.QueryEscape(c.Hash), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprint(w, out.YAML) })
	})
}

func (c *profileShow) versions(a *app) error {
	return a.with(func(api *api) error {
		var out admin.List[admin.Profile]
		if err := api.call(http.MethodGet, path("profiles", c.Name, "versions"), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, p := range out.Items {
				rows = append(rows, []string{fmt.Sprint(p.Version), stamp(p.AddedAt), p.Hash})
			}
			table(w, "VERSION ADDED HASH", rows)
		})
	})
}

type profileCheck struct {
	jsonFlag
	File string `arg:""`
	CA   string `help:"Certificate of the CA that would issue, PEM. Default: the CAs of a server that runs on --data." name:"ca" placeholder:"CERT.pem"`
}

var errFaulty = errors.New("the profile has errors")

func (c *profileCheck) Run(a *app) error {
	content, err := a.readInput(c.File)
	if err != nil {
		return err
	}
	p, err := profile.Parse(content)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	issuers, err := c.issuers(a, p)
	if err != nil {
		return err
	}
	remarks := p.Check(issuers, a.clock.Now())
	out := struct {
		Profile string           `json:"profile"`
		Items   []profile.Remark `json:"items"`
	}{p.Name(), append([]profile.Remark{}, remarks...)}
	err = c.show(a, out, func(w io.Writer) {
		for _, r := range remarks {
			kind := "warning"
			if r.Error {
				kind = "error"
			}
			fmt.Fprintf(w, "%s: %s: %s\n", kind, r.Key, r.Text)
		}
		if len(remarks) == 0 || !remarks[0].Error {
			fmt.Fprintf(w, "profile %s is valid\n", p.Name())
		}
	})
	if err == nil && len(remarks) > 0 && remarks[0].Error { // errors come first
		return fmt.Errorf("%s: %w: %s: %s", c.File, errFaulty, remarks[0].Key, remarks[0].Text)
	}
	return err
}

// issuers are the CAs that the profile is held against: of --ca, or of a running server those of the profile's use. Without either there are none.
func (c *profileCheck) issuers(a *app, p *profile.Profile) ([]*x509.Certificate, error) {
	if c.CA != "" {
		content, err := a.readInput(c.CA)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(content)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("--ca %s: not a certificate in PEM", c.CA)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("--ca %s: %w", c.CA, err)
		}
		return []*x509.Certificate{certificate}, nil
	}
	if a.Server == "" {
		conn, err := a.dir().DialSocket(a.ctx)
		if err != nil {
			return nil, nil
		}
		conn.Close()
	}
	var list []*x509.Certificate
	err := a.with(func(api *api) error {
		var out admin.List[admin.CA]
		if err := api.call(http.MethodGet, "/cas", nil, &out); err != nil {
			return err
		}
		for _, item := range out.Items {
			block, _ := pem.Decode([]byte(item.Certificate))
			if block == nil || item.State != "active" || item.Use != p.Use() || !p.IssuedBy(item.Name) {
				continue
			}
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return err
			}
			list = append(list, certificate)
		}
		return nil
	})
	return list, err
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
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "profile %s is at version %d\n", out.Name, out.Version) })
	})
}

type profileExplain struct {
	jsonFlag
	Profile string   `help:"Profile to apply." required:"" placeholder:"NAME"`
	CSR     string   `help:"Request, PEM." name:"csr" required:"" placeholder:"FILE"`
	CA      string   `help:"Issuing CA. Default: the first active one of the profile's use." name:"ca" placeholder:"CA"`
	Device  string   `help:"Authenticated identity. Default: the request's common name." placeholder:"ID"`
	SAN     []string `help:"Name registered with the device: dns:NAME or ip:ADDRESS. Default: those on record." name:"san" placeholder:"NAME"`
	Renews  string   `help:"Certificate that would be renewed." placeholder:"SERIAL"`
}

var errWouldRefuse = errors.New("the request would be refused")

func (c *profileExplain) Run(a *app) error {
	csr, err := a.readInput(c.CSR)
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		var out admin.Explanation
		err := api.call(http.MethodPost, path("profiles", c.Profile, "explain"), admin.ExplainProfile{CSR: string(csr), CA: c.CA, Device: c.Device, SANs: c.SAN, Renews: c.Renews}, &out)
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
