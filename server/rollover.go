// est-server ca rollover, activate, retire, revoke: one CA after another.

package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/natal-pki/natal/server/admin"
)

type caRollover struct {
	jsonFlag
	Name     string `arg:"" help:"The old CA."`
	NewName  string `help:"Name of the new CA. Default: NAME-2, or the next free number." name:"name" placeholder:"NEW"`
	Subject  string `help:"Distinguished name of the new CA; another one than the old. Default: the old CN with that number." placeholder:"DN"`
	Parent   string `help:"CA of this server that signs it. Default: the old CA's parent, or what has taken over from it." xor:"parent" placeholder:"CA"`
	External bool   `help:"Another PKI signs it: see ca csr and ca import." xor:"parent"`
	Years    int    `help:"Validity. Default: 10, or 20 for a root."`
}

// Help adds to the flags what --key means here, and what follows.
func (c *caRollover) Help() string {
	return "--key SPEC is the new CA's key here: ec:P-256, ec:P-384, rsa:3072 or rsa:4096; default: as the old one's. With --server, the administrator's key is key.pem beside --cert." +
		"\n\nThe new CA is trusted from now on and issues nothing until ca activate. To roll a root over takes the keys of both."
}

func (c *caRollover) Run(a *app) error {
	spec := a.Key
	a.Key = ""
	return a.with(func(api *api) error {
		var out admin.CA
		err := api.call(http.MethodPost, path("cas", c.Name, "rollover"), admin.RolloverCA{
			Name: c.NewName, Subject: c.Subject, Key: spec, Parent: c.Parent, External: c.External, Years: c.Years,
		}, &out)
		if err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			fmt.Fprintf(w, "CA %s is %s, to take over from %s\n", out.Name, out.State, out.Replaces)
			if out.State == "waiting" {
				fmt.Fprintf(w, "have the request of `est-server ca csr %s` signed, then: est-server ca import %s CERT.pem --chain ROOT.pem\n", out.Name, out.Name)
			}
			fmt.Fprintf(w, "when `est-server ca show %s` waits for nobody: est-server ca activate %s\n", out.Name, out.Name)
		})
	})
}

// overrideFlags are for what would be refused for a reason that time would cure.
type overrideFlags struct {
	Override bool   `help:"Do it all the same. Needs --reason."`
	Reason   string `help:"Why, for the audit log." placeholder:"TEXT"`
}

func (f overrideFlags) request() (admin.Override, error) {
	if f.Override != (strings.TrimSpace(f.Reason) != "") {
		return admin.Override{}, wrongUsage("--override and --reason TEXT go together")
	}
	return admin.Override{Override: f.Override, Reason: f.Reason}, nil
}

type caActivate struct {
	jsonFlag
	overrideFlags
	Name string `arg:"" help:"The CA that stands by."`
}

func (c *caActivate) Run(a *app) error {
	return endCA(a, c.jsonFlag, c.Name, "activate", c.overrideFlags)
}

type caRetire struct {
	jsonFlag
	overrideFlags
	Name string `arg:"" help:"The retiring CA."`
}

func (c *caRetire) Run(a *app) error {
	return endCA(a, c.jsonFlag, c.Name, "retire", c.overrideFlags)
}

func endCA(a *app, out jsonFlag, name, what string, flags overrideFlags) error {
	body, err := flags.request()
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		var ca admin.CA
		if err := api.call(http.MethodPost, path("cas", name, what), body, &ca); err != nil {
			return err
		}
		return out.show(a, ca, func(w io.Writer) {
			fmt.Fprintf(w, "CA %s is %s\n", ca.Name, ca.State)
			if ca.Replaces != "" && what == "activate" {
				fmt.Fprintf(w, "CA %s signs CRLs until its last certificate ends, then: est-server ca retire %s\n", ca.Replaces, ca.Replaces)
			}
		})
	})
}

type caRevoke struct {
	jsonFlag
	Name   string `arg:""`
	Reason string `help:"RFC 5280 name: cACompromise, keyCompromise, superseded, cessationOfOperation, ..." required:"" placeholder:"REASON"`
}

func (c *caRevoke) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.CA
		if err := api.call(http.MethodPost, path("cas", c.Name, "revoke"), admin.Reason{Reason: c.Reason}, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "CA %s is %s; what it issued counts no more\n", out.Name, out.State) })
	})
}

// gate says below a table which bridges a CA that stands by waits for.
func gate(w io.Writer, ca admin.CA) {
	for _, bridge := range ca.WaitsFor {
		fmt.Fprintf(w, "%s waits for %s\n", ca.Name, bridge)
	}
}
