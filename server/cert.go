// est-server cert: certificates.

package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/admin"
)

type certCommand struct {
	List   certList   `cmd:"" help:"List certificates."`
	Show   certShow   `cmd:"" help:"Show a certificate."`
	Get    certGet    `cmd:"" help:"Write a certificate."`
	Revoke certRevoke `cmd:"" help:"Revoke a certificate."`
	Unhold certUnhold `cmd:"" help:"Lift a certificateHold."`
}

type certList struct {
	jsonFlag
	Device   string `help:"Only of this device." placeholder:"ID"`
	State    string `help:"Only in this state: intended, issued, held, revoked, abandoned." placeholder:"STATE"`
	Profile  string `help:"Only of this profile." placeholder:"NAME"`
	Expiring string `help:"Only issued ones that expire within this time, as 30d." placeholder:"TIME"`
	Expired  bool   `help:"Only issued ones that have expired."`

	DevicePrefix string `help:"Only of devices whose id begins so." placeholder:"TEXT"`
	SerialPrefix string `help:"Only serial numbers that begin so, hex." name:"serial" placeholder:"HEX"`
	Label        string `help:"Only of this label." placeholder:"LABEL"`
	Issuer       string `help:"Only of this CA." placeholder:"CA"`
}

func (c *certList) Run(a *app) error {
	return a.with(func(api *api) error {
		all, err := pages(api, "/certificates", []string{"device", c.Device, "state", c.State, "profile", c.Profile, "expiring", c.Expiring,
			"expired", flag(c.Expired), "device_prefix", c.DevicePrefix, "serial", c.SerialPrefix, "label", c.Label, "issuer", c.Issuer}, func(v admin.Certificate) string { return v.Serial })
		if err != nil {
			return err
		}
		return c.show(a, all, func(w io.Writer) { printCertificates(w, all.Items) })
	})
}

func printCertificates(w io.Writer, certs []admin.Certificate) {
	var rows [][]string
	for _, c := range certs {
		state := c.State
		if c.Reason != "" {
			state += " (" + c.Reason + ")"
		}
		rows = append(rows, []string{c.Serial, dash(c.Device), c.Profile, c.Issuer, stamp(c.NotAfter), state})
	}
	table(w, "SERIAL DEVICE PROFILE ISSUER NOT-AFTER STATE", rows)
}

type certShow struct {
	jsonFlag
	Serial string `arg:"" help:"Serial number, hex."`
}

func (c *certShow) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Certificate
		if err := api.call(http.MethodGet, path("certificates", c.Serial), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			fields(w, "serial", out.Serial, "device", out.Device, "state", out.State, "issuer", out.Issuer, "label", out.Label, "profile", out.Profile, "profile hash", out.ProfileHash,
				"requester", out.RequesterKind+" "+out.Requester, "not before", stamp(out.NotBefore), "not after", stamp(out.NotAfter),
				"issued", stamp(out.IssuedAt), "superseded", stamp(out.SupersededAt), "revoked", stamp(out.RevokedAt), "reason", out.Reason)
			fmt.Fprint(w, out.Certificate)
		})
	})
}

type certGet struct {
	Serial string `arg:"" help:"Serial number, hex."`
	Format string `help:"pem, der, p7 (PKCS#7 with the chain, DER), or pubkey (the public key, PEM)." enum:"pem,der,p7,pubkey" default:"pem"`
	Out    string `help:"File to write. Default: standard output." placeholder:"FILE"`
}

func (c *certGet) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Certificate
		if err := api.call(http.MethodGet, path("certificates", c.Serial), nil, &out); err != nil {
			return err
		}
		if out.Certificate == "" {
			return fmt.Errorf("%s is %s: there is no certificate", out.Serial, out.State)
		}
		content, err := encodeAs(c.Format, out)
		if err != nil {
			return err
		}
		return a.write(c.Out, content, 0o644)
	})
}

func encodeAs(format string, c admin.Certificate) ([]byte, error) {
	if format == "pem" {
		return []byte(c.Certificate), nil
	}
	certs, err := parseCertificates(c.Certificate + c.Chain)
	if err != nil {
		return nil, err
	}
	if format == "pubkey" {
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: certs[0].RawSubjectPublicKeyInfo}), nil
	}
	if format == "der" {
		return certs[0].Raw, nil
	}
	return wire.CertsOnly(certs...)
}

// parseCertificates reads PEM that the server sent.
func parseCertificates(text string) (certs []*x509.Certificate, err error) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("the server sent no certificate")
	}
	return certs, nil
}

type certRevoke struct {
	jsonFlag
	Serial string `arg:"" help:"Serial number, hex."`
	Reason string `help:"RFC 5280 reason: keyCompromise, superseded, certificateHold, ..." required:"" placeholder:"REASON"`
}

func (c *certRevoke) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Certificate
		if err := api.call(http.MethodPost, path("certificates", c.Serial, "revoke"), admin.Reason{Reason: c.Reason}, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "certificate %s of %s is %s\n", out.Serial, out.Device, out.State) })
	})
}

type certUnhold struct {
	jsonFlag
	Serial string `arg:"" help:"Serial number, hex."`
}

func (c *certUnhold) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.Certificate
		if err := api.call(http.MethodPost, path("certificates", c.Serial, "unhold"), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "certificate %s of %s is %s\n", out.Serial, out.Device, out.State) })
	})
}
