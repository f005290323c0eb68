// est-server admin: who may use the administration API from elsewhere. Keys are made here and never sent.

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/natal-pki/natal/server/admin"
)

type adminCommand struct {
	Add    adminAdd    `cmd:"" help:"Add an administrator."`
	List   adminList   `cmd:"" help:"List administrators."`
	Remove adminRemove `cmd:"" help:"Remove an administrator."`
}

type adminAdd struct {
	Name string `arg:""`
	Role string `help:"administrator, operator, auditor or bridge. A bridge normally comes by 'code create HOST --label bridge': a certificate made here cannot renew over EST." enum:"administrator,operator,auditor,bridge" required:"" placeholder:"ROLE"`
	CSR  string `help:"Request for a key that exists, PEM. Without it a key is made." name:"csr" placeholder:"FILE"`
	Out  string `help:"With --csr: file for the certificate and its chain. Without: directory for key.pem, cert.pem and trust.pem." required:"" placeholder:"FILE|DIR"`
}

func (c *adminAdd) Run(a *app) error {
	return a.with(func(api *api) error {
		if c.CSR == "" {
			return addAdministrator(api, c.Name, c.Role, c.Out)
		}
		csr, err := a.readInput(c.CSR)
		if err != nil {
			return err
		}
		var out admin.Identity
		if err := api.call(http.MethodPost, "/admins", admin.NewAdministrator{Name: c.Name, Role: c.Role, CSR: string(csr)}, &out); err != nil {
			return err
		}
		return a.write(c.Out, []byte(out.Certificate+out.Chain), 0o644)
	})
}

// addAdministrator makes a key, has it certified and writes key.pem, cert.pem (with the chain) and trust.pem to dir.
func addAdministrator(api *api, name, role, dir string) error {
	keyFile := filepath.Join(dir, "key.pem")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, "cert.pem")); err == nil {
		return fmt.Errorf("%s holds a certificate already; nothing was changed", dir)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return err
	}
	csrPEM := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	var out admin.Identity
	if err := api.call(http.MethodPost, "/admins", admin.NewAdministrator{Name: name, Role: role, CSR: csrPEM}, &out); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "trust.pem"), []byte(out.Trust), 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "cert.pem"), []byte(out.Certificate+out.Chain), 0o600)
}

type adminList struct{ jsonFlag }

func (c *adminList) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.List[admin.Administrator]
		if err := api.call(http.MethodGet, "/admins", nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, i := range out.Items {
				rows = append(rows, []string{i.Name, i.Role, dash(i.Serial), dash(stamp(i.NotAfter))})
			}
			table(w, "NAME ROLE SERIAL NOT-AFTER", rows)
		})
	})
}

type adminRemove struct {
	Name string `arg:""`
}

func (c *adminRemove) Run(a *app) error {
	return a.with(func(api *api) error {
		return api.call(http.MethodDelete, path("admins", c.Name), nil, nil)
	})
}
