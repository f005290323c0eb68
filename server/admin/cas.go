// CAs: made here or signed elsewhere, and the signing of other servers' CAs.

package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"path/filepath"

	"github.com/natal-pki/natal/ca"
)

// Named is the input of an operation on one object.
type Named struct {
	Name string `path:"name"`
}

func (a *API) registerCAs() {
	handle(a, readers, http.MethodGet, "/cas", "List CAs", func(ctx context.Context, _ Caller, _ *struct{}) (List[CA], error) {
		infos, err := a.cfg.CA.List(ctx)
		if err != nil {
			return List[CA]{}, err
		}
		out := list(infos, showCA)
		for n, info := range infos {
			if out.Items[n].WaitsFor, err = a.gate(ctx, info); err != nil {
				return out, err
			}
		}
		return out, nil
	})
	handle(a, readers, http.MethodGet, "/cas/{name}", "Show a CA", func(ctx context.Context, _ Caller, in *Named) (CA, error) {
		info, err := a.cfg.CA.Get(ctx, in.Name)
		if err != nil {
			return CA{}, err
		}
		out := showCA(info)
		out.WaitsFor, err = a.gate(ctx, info)
		return out, err
	})
	a.registerRollover()
	handle(a, administrators, http.MethodPost, "/cas", "Create a CA", func(ctx context.Context, c Caller, in *struct{ Body NewCA }) (CA, error) {
		return a.createCA(ctx, c, in.Body)
	})
	handle(a, readers, http.MethodGet, "/cas/{name}/csr", "The request of a waiting CA", func(ctx context.Context, _ Caller, in *Named) (PEM, error) {
		csr, err := a.cfg.CA.CSR(ctx, in.Name)
		return PEM{PEM: string(csr)}, err
	})
	handle(a, administrators, http.MethodPost, "/cas/{name}/import", "Import the certificate of a waiting CA", func(ctx context.Context, c Caller, in *struct {
		Named
		Body ImportCA
	}) (CA, error) {
		info, err := a.cfg.CA.Import(ctx, c.Actor, in.Name, []byte(in.Body.Certificate), []byte(in.Body.Chain))
		return showCA(info), err
	})
	handle(a, administrators, http.MethodPost, "/cas/{name}/sign", "Sign the request of a CA that lives elsewhere", func(ctx context.Context, c Caller, in *struct {
		Named
		Body SignCA
	}) (PEM, error) {
		cert, err := a.cfg.CA.SignBy(ctx, c.Actor, in.Name, []byte(in.Body.CSR), in.Body.Years, in.Body.Profile)
		return PEM{PEM: string(cert)}, err
	})
	handle(a, administrators, http.MethodPost, "/cas/{name}/sign-ocsp", "Sign the request of an OCSP signer that lives elsewhere", func(ctx context.Context, c Caller, in *struct {
		Named
		Body SignOCSP
	}) (PEM, error) {
		issued, issuer, err := a.cfg.CA.SignOCSP(ctx, c.Actor, in.Name, []byte(in.Body.CSR))
		if err != nil {
			return PEM{}, err
		}
		return PEM{PEM: encodeDER(issued.DER) + encodeDER(issuer.Raw)}, nil
	})
	handleEmpty(a, administrators, http.MethodPost, "/cas/{name}/offline", "Take a CA's key off this server", func(ctx context.Context, c Caller, in *struct {
		Named
		Body OfflineCA
	}) error {
		if !c.Local {
			return newProblem(http.StatusForbidden, "local_only", "the key is written to a file of the server's machine: run the command there")
		}
		if !filepath.IsAbs(in.Body.Out) {
			return invalid("invalid", "out: %q is not an absolute path", in.Body.Out)
		}
		return a.cfg.CA.Offline(ctx, c.Actor, in.Name, in.Body.Out)
	})
}

func (a *API) createCA(ctx context.Context, c Caller, in NewCA) (CA, error) {
	if in.External && in.Parent != "" {
		return CA{}, invalid("invalid", "ca %s: either a parent or external, not both", in.Name)
	}
	if (in.KeyURI != "" || in.KeyExists) && !c.Local { // a URI names files and libraries of this machine
		return CA{}, newProblem(http.StatusForbidden, "local_only", "the key's URI names files of the server's machine: run the command there")
	}
	req := ca.CreateRequest{
		Name: in.Name, Subject: in.Subject, Key: in.Key, KeyURI: in.KeyURI, KeyExists: in.KeyExists, Parent: in.Parent, External: in.External,
		PublicURL: in.PublicURL, Years: in.Years, Use: in.Use, Shards: in.CRLShards, Profile: in.Profile,
	}
	if req.PublicURL == "" {
		req.PublicURL = a.cfg.PublicURL
	}
	info, err := a.cfg.CA.Create(ctx, c.Actor, req)
	return showCA(info), err
}

func showCA(i ca.Info) CA {
	out := CA{
		Name: i.Name, Subject: i.Subject, Parent: i.Parent, State: i.State, Key: i.Key, KeyURI: i.KeyURI, KeyOnline: i.KeyOnline, Use: i.Use, PublicURL: i.PublicURL, Replaces: i.Replaces, ReplacedBy: i.ReplacedBy,
		Chain: encodeChain(i.Chain), CRLNumber: i.CRLNumber, CRLThisUpdate: i.ThisUpdate, CRLNextUpdate: i.NextUpdate, CRLEntries: i.CRLEntries, CRLShards: i.Shards,
	}
	if i.Certificate != nil {
		out.NotAfter = i.Certificate.NotAfter
		out.Fingerprint = fingerprint(i.Certificate.Raw)
		out.Certificate = encodeChain([]*x509.Certificate{i.Certificate})
	}
	return out
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

func encodeChain(certs []*x509.Certificate) string {
	var b bytes.Buffer
	for _, c := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.String()
}

func encodeDER(der []byte) string {
	if len(der) == 0 {
		return ""
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func list[T, U any](in []T, show func(T) U) List[U] {
	out := List[U]{Items: make([]U, 0, len(in))}
	for _, v := range in {
		out.Items = append(out.Items, show(v))
	}
	return out
}
