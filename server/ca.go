// est-server ca: certification authorities.

package main

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/natal-pki/natal/server/admin"
)

type caCommand struct {
	Create   caCreate   `cmd:"" help:"Create a CA, with a key of its own."`
	List     caList     `cmd:"" help:"List CAs."`
	Show     caShow     `cmd:"" help:"Show a CA."`
	CSR      caCSR      `cmd:"" name:"csr" help:"Print the request of a CA that another PKI signs."`
	Import   caImport   `cmd:"" help:"Import the certificate of a waiting CA."`
	Sign     caSign     `cmd:"" help:"Sign the request of a CA that lives elsewhere."`
	SignOCSP caSignOCSP `cmd:"" name:"sign-ocsp" help:"Sign the request of a validation authority's OCSP signer."`
	Offline  caOffline  `cmd:"" help:"Take a CA's key off this machine."`

	Rollover caRollover `cmd:"" help:"Make the successor of a CA. It stands by until ca activate."`
	Activate caActivate `cmd:"" help:"Let a CA that stands by take over."`
	Retire   caRetire   `cmd:"" help:"End a CA that another one has taken over from."`
	Revoke   caRevoke   `cmd:"" help:"Revoke a CA that was signed here, at once and for ever."`
}

type caCreate struct {
	jsonFlag
	Name      string `arg:"" help:"Name of the CA, as it stands in addresses."`
	Subject   string `help:"Distinguished name, as CN=...,O=...,C=... Default: CN=NAME." placeholder:"DN"`
	KeyURI    string `help:"Where the key is made: a PKCS#11 token (pkcs11:...) or TPM (tpmkms:...). Default: key_store of the configuration." name:"key-uri" placeholder:"URI"`
	Existing  bool   `help:"The key is there already, from a key ceremony."`
	Parent    string `help:"CA of this server that signs it." xor:"parent" placeholder:"CA"`
	External  bool   `help:"Another PKI signs it: see ca csr and ca import." xor:"parent"`
	PublicURL string `help:"Beginning of the CRL and CA addresses in its certificates. Default: public_url of the configuration." name:"public-url" placeholder:"URL"`
	Years     int    `help:"Validity. Default: 10, or 20 for a root."`
	CRLShards int    `help:"How many CRLs its certificates are spread over, 1 to 256; fixed for ever. Default: 1, one CRL of all." name:"crl-shards" placeholder:"N"`
	Profile   string `help:"Profile of use ca: how the certificate looks, and how long it is valid." placeholder:"NAME"`
	Use       string `help:"Whom it issues to: broker (devices), management, birth. Default: what its first label says." placeholder:"USE"`
}

// Help adds to the flags what --key means here.
func (c *caCreate) Help() string {
	return "--key SPEC is the CA's key here: ec:P-256 (default), ec:P-384, rsa:3072 or rsa:4096. With --server, the administrator's key is key.pem beside --cert."
}

func (c *caCreate) Run(a *app) error {
	spec := a.Key
	a.Key = ""
	if c.Parent == "" && !c.External {
		return wrongUsage("give --parent CA or --external")
	}
	return a.with(func(api *api) error {
		var out admin.CA
		err := api.call(http.MethodPost, "/cas", admin.NewCA{
			Name: c.Name, Subject: c.Subject, Key: spec, KeyURI: c.KeyURI, KeyExists: c.Existing, Parent: c.Parent, External: c.External, PublicURL: c.PublicURL, Years: c.Years, Use: c.Use, CRLShards: c.CRLShards, Profile: c.Profile,
		}, &out)
		if err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			fmt.Fprintf(w, "CA %s is %s\n", out.Name, out.State)
			if out.State == "waiting" {
				fmt.Fprintf(w, "have the request of `est-server ca csr %s` signed, then: est-server ca import %s CERT.pem --chain ROOT.pem\n", out.Name, out.Name)
			}
		})
	})
}

type caList struct{ jsonFlag }

func (c *caList) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.List[admin.CA]
		if err := api.call(http.MethodGet, "/cas", nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, i := range out.Items {
				key := i.Key
				if !i.KeyOnline {
					key += " (offline)"
				}
				rows = append(rows, []string{i.Name, i.State, dash(i.Use), dash(i.Parent), key, dash(stamp(i.NotAfter)), i.Subject})
			}
			table(w, "NAME STATE USE PARENT KEY NOT-AFTER SUBJECT", rows)
			for _, i := range out.Items {
				gate(w, i)
			}
		})
	})
}

type caShow struct {
	jsonFlag
	Name string `arg:""`
}

func (c *caShow) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.CA
		if err := api.call(http.MethodGet, path("cas", c.Name), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			online := "on this machine"
			if !out.KeyOnline {
				online = "offline"
			}
			crl := ""
			if out.CRLNumber > 0 {
				crl = fmt.Sprintf("number %d, %d entries, %s to %s", out.CRLNumber, out.CRLEntries, stamp(out.CRLThisUpdate), stamp(out.CRLNextUpdate))
			}
			fields(w, "name", out.Name, "state", out.State, "subject", out.Subject, "use", out.Use, "parent", out.Parent,
				"replaces", out.Replaces, "replaced by", out.ReplacedBy, "waits for", strings.Join(out.WaitsFor, "; "), "key", out.Key+", "+online, "key uri", out.KeyURI,
				"public url", out.PublicURL, "not after", stamp(out.NotAfter), "sha-256", out.Fingerprint, "crl", crl)
			fmt.Fprint(w, out.Certificate)
		})
	})
}

type caCSR struct {
	Name string `arg:""`
	Out  string `help:"File to write. Default: standard output." placeholder:"FILE"`
}

func (c *caCSR) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.PEM
		if err := api.call(http.MethodGet, path("cas", c.Name, "csr"), nil, &out); err != nil {
			return err
		}
		return a.write(c.Out, []byte(out.PEM), 0o644)
	})
}

type caImport struct {
	jsonFlag
	Name  string `arg:""`
	File  string `arg:"" help:"Certificate, PEM; may hold the chain too."`
	Chain string `help:"CAs above, up to the self-signed root, PEM." placeholder:"FILE"`
}

func (c *caImport) Run(a *app) error {
	cert, err := a.readInput(c.File)
	if err != nil {
		return err
	}
	var chain []byte
	if c.Chain != "" {
		if chain, err = a.readInput(c.Chain); err != nil {
			return err
		}
	}
	return a.with(func(api *api) error {
		var out admin.CA
		if err := api.call(http.MethodPost, path("cas", c.Name, "import"), admin.ImportCA{Certificate: string(cert), Chain: string(chain)}, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			fmt.Fprintf(w, "CA %s is %s until %s\n", out.Name, out.State, stamp(out.NotAfter))
		})
	})
}

type caSign struct {
	Name  string `arg:"" help:"CA that signs."`
	CSR   string `help:"Request, PEM." name:"csr" required:"" placeholder:"FILE"`
	Years int    `help:"Validity in years. Default: 10."`
	Out   string `help:"File to write. Default: standard output." placeholder:"FILE"`

	Profile string `help:"Profile of use ca: how the certificate looks, and how long it is valid." placeholder:"NAME"`
}

func (c *caSign) Run(a *app) error {
	csr, err := a.readInput(c.CSR)
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		var out admin.PEM
		if err := api.call(http.MethodPost, path("cas", c.Name, "sign"), admin.SignCA{CSR: string(csr), Years: c.Years, Profile: c.Profile}, &out); err != nil {
			return fmt.Errorf("%s: %w", c.CSR, err)
		}
		return a.write(c.Out, []byte(out.PEM), 0o644)
	})
}

type caSignOCSP struct {
	Name string `arg:"" help:"CA that signs."`
	CSR  string `help:"Request of est-server va csr, PEM." name:"csr" required:"" placeholder:"FILE"`
	Out  string `help:"File to write: the certificate and the CA's. Default: standard output." placeholder:"FILE"`
}

func (c *caSignOCSP) Run(a *app) error {
	csr, err := a.readInput(c.CSR)
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		var out admin.PEM
		if err := api.call(http.MethodPost, path("cas", c.Name, "sign-ocsp"), admin.SignOCSP{CSR: string(csr)}, &out); err != nil {
			return fmt.Errorf("%s: %w", c.CSR, err)
		}
		return a.write(c.Out, []byte(out.PEM), 0o644)
	})
}

type caOffline struct {
	Name string `arg:""`
	Out  string `help:"File for the encrypted key. Default: NAME.key.pem in the working directory." placeholder:"FILE"`
}

func (c *caOffline) Run(a *app) error {
	out := c.Out
	if out == "" {
		out = c.Name + ".key.pem"
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		if err := api.call(http.MethodPost, path("cas", c.Name, "offline"), admin.OfflineCA{Out: out}, nil); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "the key of %s is in %s, encrypted with this instance's passphrase, and no longer in the data directory\n"+
			"to use it again, put it back as %s\n", c.Name, out, strconv.Quote(a.dir().Path("keys", c.Name+".pem")))
		return nil
	})
}
