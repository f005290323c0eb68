// Certificate profiles, and what one says to a request.

package admin

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/server/front"
	"github.com/natal-pki/natal/server/registration"
)

// ExplainProfile asks what a profile says to a CSR. Nothing is issued.
type ExplainProfile struct {
	CSR    string   `json:"csr" doc:"PEM"`
	CA     string   `json:"ca,omitempty" doc:"default: the first active CA of the profile's use"`
	Device string   `json:"device,omitempty" doc:"the authenticated identity; default: the CSR's common name"`
	SANs   []string `json:"sans,omitempty" doc:"names registered with the device: dns:NAME, ip:ADDRESS; default: those on record"`
	Renews string   `json:"renews,omitempty" doc:"serial of the certificate that would be renewed"`
}

func (a *API) registerProfiles() {
	handle(a, readers, http.MethodGet, "/profiles", "List certificate profiles", func(ctx context.Context, _ Caller, _ *struct{}) (List[Profile], error) {
		named, err := a.cfg.CA.Profiles(ctx)
		if err != nil {
			return List[Profile]{}, err
		}
		out := List[Profile]{Items: []Profile{}}
		for _, name := range slices.Sorted(maps.Keys(named)) {
			version, err := a.cfg.CA.ProfileVersion(ctx, name, "")
			if err != nil {
				return out, err
			}
			item := showProfile(version)
			item.YAML = ""
			out.Items = append(out.Items, item)
		}
		return out, nil
	})
	handle(a, readers, http.MethodGet, "/profiles/{name}", "Show a certificate profile", func(ctx context.Context, _ Caller, in *struct {
		Named
		Hash string `query:"hash" doc:"of a version, or its beginning; default: the newest"`
	}) (Profile, error) {
		p, err := a.cfg.CA.ProfileVersion(ctx, in.Name, strings.ToLower(in.Hash))
		if err != nil {
			return Profile{}, err
		}
		return showProfile(p), nil
	})
	handle(a, readers, http.MethodGet, "/profiles/{name}/versions", "List the versions of a certificate profile", func(ctx context.Context, _ Caller, in *Named) (List[Profile], error) {
		versions, err := a.cfg.CA.ProfileVersions(ctx, in.Name)
		return list(versions, showProfile), err
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
		version, err := a.cfg.CA.ProfileVersion(ctx, p.Name(), p.Hash())
		if err != nil {
			return Profile{}, err
		}
		return showProfile(version), nil
	})
	handle(a, readers, http.MethodPost, "/profiles/{name}/explain", "What a profile says to a CSR", func(ctx context.Context, _ Caller, in *struct {
		Named
		Body ExplainProfile
	}) (Explanation, error) {
		return a.explain(ctx, in.Name, in.Body)
	})
}

// explain asks all who look at a request, in the order in which an enrollment asks them: the first finding that is not OK is the reason word
// of the refusal.
func (a *API) explain(ctx context.Context, name string, in ExplainProfile) (Explanation, error) {
	p, err := a.cfg.CA.Profile(ctx, name)
	if err != nil {
		return Explanation{}, err
	}
	block, _ := pem.Decode([]byte(in.CSR))
	if block == nil || !strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") {
		return Explanation{}, invalid("bad_csr", "csr: not a PEM certificate request")
	}
	issuer, err := a.issuerFor(ctx, in.CA, p.Use())
	if err != nil {
		return Explanation{}, err
	}
	out := Explanation{Profile: name, Version: p.Hash(), CA: issuer.Name, OK: true, Findings: []Finding{}}
	add := func(rule string, ok bool, detail string) {
		out.Findings = append(out.Findings, Finding{rule, ok, detail})
		out.OK = out.OK && ok
	}
	csr, checks := front.Inspect(block.Bytes)
	for _, c := range checks {
		add(c.Reason, c.OK, c.Detail)
	}
	if csr == nil {
		return out, nil
	}
	if in.Device == "" {
		in.Device = csr.Subject.CommonName
	}
	var differs *registration.Error
	if err := registration.CheckIdentity(in.Device, csr); errors.As(err, &differs) {
		add(differs.Reason, false, differs.Detail)
	} else {
		add("identity_differs", true, "the request names no other identity")
	}
	if in.SANs == nil {
		if device, err := a.cfg.Book.Device(ctx, in.Device); err == nil {
			in.SANs = device.SANs
		}
	}
	findings, err := a.cfg.CA.Explain(ctx, ca.Request{
		CA: issuer.Name, Profile: name, Device: in.Device, Registered: in.SANs, Reserved: a.cfg.Book.Reserved(ctx, in.Device), CSR: csr, Renews: in.Renews,
	})
	for _, f := range findings {
		add(f.Rule, f.OK, f.Detail)
	}
	return out, err
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
		if info.Name == name || (name == "" && info.State == "active" && (info.Use == use || use == profile.UseOCSP)) {
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

func showProfile(p ca.ProfileVersion) Profile {
	return Profile{Name: p.Name(), Use: p.Use(), Keys: p.KeySpecs(), Version: p.Version, Hash: p.Hash(), AddedAt: p.AddedAt, YAML: p.YAML()}
}
