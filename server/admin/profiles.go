// Certificate profiles, and what one says to a request.

package admin

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
)

// ExplainProfile asks what a profile says to a CSR. Nothing is issued.
type ExplainProfile struct {
	CSR    string   `json:"csr" doc:"PEM"`
	CA     string   `json:"ca,omitempty" doc:"default: the first active CA of the profile's use"`
	Device string   `json:"device,omitempty" doc:"the authenticated identity; default: the CSR's common name"`
	SANs   []string `json:"sans,omitempty" doc:"names registered with the device: dns:NAME, ip:ADDRESS"`
}

func (a *API) registerProfiles() {
	handle(a, readers, http.MethodGet, "/profiles", "List certificate profiles", func(ctx context.Context, _ Caller, _ *struct{}) (List[Profile], error) {
		named, err := a.cfg.CA.Profiles(ctx)
		out := List[Profile]{Items: []Profile{}}
		for _, p := range named {
			item := showProfile(p)
			item.YAML = ""
			out.Items = append(out.Items, item)
		}
		slices.SortFunc(out.Items, func(x, y Profile) int { return strings.Compare(x.Name, y.Name) })
		return out, err
	})
	handle(a, readers, http.MethodGet, "/profiles/{name}", "Show a certificate profile", func(ctx context.Context, _ Caller, in *Named) (Profile, error) {
		p, err := a.cfg.CA.Profile(ctx, in.Name)
		if err != nil {
			return Profile{}, err
		}
		return showProfile(p), nil
	})
	handle(a, administrators, http.MethodPost, "/profiles", "Add a certificate profile, or a new version of one", func(ctx context.Context, c Caller, in *struct {
		Body struct {
			YAML string `json:"yaml"`
		}
	}) (Profile, error) {
		p, err := a.cfg.CA.AddProfile(ctx, c.Actor, []byte(in.Body.YAML))
		if err != nil {
			return Profile{}, err
		}
		return showProfile(p), nil
	})
	handle(a, readers, http.MethodPost, "/profiles/{name}/explain", "What a profile says to a CSR", func(ctx context.Context, _ Caller, in *struct {
		Named
		Body ExplainProfile
	}) (Explanation, error) {
		return a.explain(ctx, in.Name, in.Body)
	})
}

func (a *API) explain(ctx context.Context, name string, in ExplainProfile) (Explanation, error) {
	p, err := a.cfg.CA.Profile(ctx, name)
	if err != nil {
		return Explanation{}, err
	}
	csr, err := parseCSR(in.CSR)
	if err != nil {
		return Explanation{}, err
	}
	issuer, err := a.issuerFor(ctx, in.CA, p.Use())
	if err != nil {
		return Explanation{}, err
	}
	if in.Device == "" {
		in.Device = csr.Subject.CommonName
	}
	_, findings, err := p.Build(profile.Input{
		Device: in.Device, Registered: in.SANs, CSR: csr, Issuer: issuer.Certificate, PublicURL: issuer.PublicURL, IssuerName: issuer.Name, Now: a.cfg.Clock.Now(),
	})
	var v *profile.Violation
	if err != nil && !errors.As(err, &v) {
		return Explanation{}, err
	}
	out := Explanation{Profile: name, OK: err == nil, Findings: make([]Finding, 0, len(findings))}
	for _, f := range findings {
		out.Findings = append(out.Findings, Finding(f))
	}
	return out, nil
}

// issuerFor is the CA called name, or without a name the first active one of that use.
func (a *API) issuerFor(ctx context.Context, name, use string) (ca.Info, error) {
	infos, err := a.cfg.CA.List(ctx)
	if err != nil {
		return ca.Info{}, err
	}
	for _, info := range infos {
		if info.Certificate == nil {
			continue
		}
		if info.Name == name || (name == "" && info.State == "active" && info.Use == use) {
			return info, nil
		}
	}
	if name != "" {
		return ca.Info{}, notFound("there is no CA %q with a certificate", name)
	}
	return ca.Info{}, notFound("there is no active CA for use %q", use)
}

func parseCSR(text string) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
		return nil, invalid("bad_csr", "csr: not a PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, invalid("bad_csr", "csr: cannot be parsed")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, invalid("bad_csr", "csr: its signature does not fit its key")
	}
	return csr, nil
}

func showProfile(p *profile.Profile) Profile {
	return Profile{Name: p.Name(), Use: p.Use(), Keys: p.KeySpecs(), Hash: p.Hash(), YAML: string(p.YAML())}
}
