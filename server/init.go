// est-server init: a new instance.

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/instance"
)

// hostFlags say how the server is reached.
type hostFlags struct {
	Host      []string `help:"Name or IP address of the EST server, besides those of this machine. May be repeated." placeholder:"NAME"`
	PublicURL string   `help:"Beginning of the CRL and CA addresses in certificates. Default: http://, the name of this machine, and the port of the public address." name:"public-url" placeholder:"URL"`
}

// plan checks the flags. public is the public address to listen on.
func (f hostFlags) plan(ctx context.Context, public string) (instance.Plan, error) {
	plan := instance.Plan{Hosts: f.Host, PublicURL: f.PublicURL}
	for _, h := range f.Host {
		if err := config.CheckHost(h); err != nil {
			return plan, wrongUsage("--host: %v", err)
		}
	}
	if plan.PublicURL == "" {
		plan.PublicURL = publicURL(ctx, f.Host, public)
	}
	var err error
	if plan.PublicURL, err = config.CheckPublicURL(plan.PublicURL); err != nil {
		return plan, wrongUsage("--public-url: %v", err)
	}
	return plan, nil
}

// publicURL is where others reach the address public on this machine.
func publicURL(ctx context.Context, hosts []string, public string) string {
	host, port, err := net.SplitHostPort(public)
	if err != nil || port == "0" {
		port = "8080"
	}
	return "http://" + net.JoinHostPort(reachable(ctx, hosts, host), port)
}

// reachable is the name by which others reach an address of this machine: the address itself if it is a definite one.
func reachable(ctx context.Context, hosts []string, host string) string {
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return host
	}
	if len(hosts) > 0 {
		return hosts[0]
	}
	return instance.HostName(ctx)
}

type initCommand struct {
	hostFlags
	Root            string `help:"'external': the root CA is elsewhere, and devices and management wait for certificates signed there." enum:"own,external" default:"own"`
	CRLShards       int    `help:"How many CRLs the certificates of the CA devices are spread over, 1 to 256; fixed for ever." name:"crl-shards" default:"1" placeholder:"N"`
	KeyStore        string `help:"PKCS#11 token (pkcs11:module-path=FILE;token=LABEL?pin-source=FILE) or TPM (tpmkms:device=/dev/tpmrm0) that makes the keys of the CAs and keeps them. Default: encrypted files in the data directory." name:"key-store" placeholder:"URI"`
	CAKey           string `help:"Kind of the CAs' keys: ec:P-256, ec:P-384, rsa:3072, rsa:4096." name:"ca-key" default:"ec:P-256" placeholder:"SPEC"`
	DatabaseURLFile string `help:"File with the URL of a PostgreSQL database, mode 0600. Default: SQLite in the data directory." name:"database-url-file" placeholder:"FILE"`
}

func (c *initCommand) Run(a *app) error {
	plan, err := c.plan(a.ctx, config.Default().PublicListen)
	if err != nil {
		return err
	}
	plan.ExternalRoot = c.Root == "external"
	if plan.CRLShards = c.CRLShards; c.CRLShards < 1 || c.CRLShards > ca.MaxShards {
		return wrongUsage("--crl-shards: a CA has 1 to %d CRLs, not %d", ca.MaxShards, c.CRLShards)
	}
	plan.KeyStore, plan.CAKey = c.KeyStore, c.CAKey
	if !slices.Contains(keystore.Specs, c.CAKey) {
		return wrongUsage("--ca-key: %q is not one of %s", c.CAKey, strings.Join(keystore.Specs, ", "))
	}
	if err := keystore.CheckStore(c.KeyStore); err != nil {
		return wrongUsage("--key-store: %v", err)
	}
	if plan.DatabaseURLFile, err = absolute(c.DatabaseURLFile); err != nil {
		return err
	}
	i, err := a.makeInstance(plan)
	if err != nil {
		return err
	}
	return errors.Join(a.describe(i, plan), i.Close())
}

// makeInstance makes the instance under the directory's lock, which ends with it.
func (a *app) makeInstance(plan instance.Plan) (*instance.Instance, error) {
	var err error
	if plan.PassphraseFile, err = absolute(a.PassphraseFile); err != nil {
		return nil, err
	}
	state, err := a.dir().State()
	if err != nil {
		return nil, err
	}
	if state == instance.Empty || state == instance.HalfDone {
		if err := os.MkdirAll(a.Data, 0o700); err != nil {
			return nil, err
		}
		lock, err := a.dir().Lock()
		if err != nil {
			return nil, err
		}
		defer lock.Release()
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	i, err := instance.Init(a.ctx, instance.Options{Dir: a.dir(), PassphraseFile: a.PassphraseFile, Clock: a.clock, Log: log}, plan)
	if err != nil || plan.ExternalRoot {
		return i, err
	}
	if err := firstAdministrator(a.ctx, i); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

func absolute(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	return filepath.Abs(file)
}

const firstAdmin = "admin"

// firstAdministrator makes DIR/admin unless it is complete, or the administrators were made on another server of this database. One whose certificate
// never got here, because of a crash, is made again: its key is here, which tells it from that.
func firstAdministrator(ctx context.Context, i *instance.Instance) error {
	dir := i.Dir.Admin()
	complete, err := exists(filepath.Join(dir, "cert.pem"))
	if complete || err != nil {
		return err
	}
	begun, err := exists(filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	api := inProcess(ctx, newAdminAPI(i, nil))
	var admins admin.List[admin.Administrator]
	if err := api.call(http.MethodGet, "/admins", nil, &admins); err != nil {
		return err
	}
	if len(admins.Items) > 0 && !begun {
		return nil
	}
	if slices.ContainsFunc(admins.Items, func(v admin.Administrator) bool { return v.Name == firstAdmin }) {
		if err := api.call(http.MethodDelete, path("admins", firstAdmin), nil, nil); err != nil {
			return err
		}
	}
	return addAdministrator(api, firstAdmin, admin.RoleAdministrator, dir)
}

func exists(file string) (bool, error) {
	_, err := os.Lstat(file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// describe prints what was made and what to do next.
func (a *app) describe(i *instance.Instance, plan instance.Plan) error {
	infos, err := i.CA.List(a.ctx)
	if err != nil {
		return err
	}
	w := a.stdout
	fmt.Fprintf(w, "instance in %s\n", a.Data)
	var rows [][]string
	for _, info := range infos {
		print := "-"
		if info.Certificate != nil {
			print = sha256Hex(info.Certificate.Raw)
		}
		rows = append(rows, []string{info.Name, info.State, info.Key, print})
	}
	table(w, "CA STATE KEY SHA-256", rows)
	warnLocal(w, plan.PublicURL)
	if plan.ExternalRoot {
		fmt.Fprint(w, "next, for devices and management: est-server ca csr NAME; have it signed by the root; est-server ca import NAME CERT.pem --chain ROOT.pem\n"+
			"then: est-server serve, which makes the server certificate and the first administrator\n")
		return nil
	}
	fmt.Fprintf(w, "trust anchor: %s\nfirst administrator: %s\n", i.Dir.Trust(), i.Dir.Admin())
	if plan.KeyStore == "" {
		fmt.Fprint(w, "the key of the CA root is on this machine: take it away with `est-server ca offline root --out FILE`\n")
	}
	fmt.Fprintf(w, "next: est-server serve --data %s\n", a.Data)
	return nil
}

func sha256Hex(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// warnLocal says when the addresses in certificates lead nowhere but here.
func warnLocal(w io.Writer, public string) {
	u, err := url.Parse(public)
	if err != nil {
		return
	}
	ip := net.ParseIP(u.Hostname())
	if strings.EqualFold(u.Hostname(), "localhost") || (ip != nil && ip.IsLoopback()) {
		fmt.Fprintf(w, "warning: certificates will carry %s, which leads nowhere from another machine; --public-url chooses another address\n", public)
	}
}
