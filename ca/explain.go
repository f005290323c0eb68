// What would become of a request: every rule that Issue applies, in Issue's order. Nothing is recorded.

package ca

import (
	"context"
	"errors"

	"github.com/natal-pki/natal/ca/lint"
	"github.com/natal-pki/natal/ca/profile"
)

// Explain judges req without issuing. The first finding that is not OK is the reason that Issue would refuse it for. Claims are not asked.
func (a *Authorities) Explain(ctx context.Context, req Request) ([]profile.Finding, error) {
	au, prof, err := a.issuer(ctx, req)
	if err != nil {
		return nil, err
	}
	findings := []profile.Finding{finding("issuer", a.mayIssueBy(au, prof, &req), "CA "+au.row.Name+" issues by the profile")}
	if au.certificate == nil {
		return findings, nil
	}
	serial, err := newSerial()
	if err != nil {
		return nil, unavailable("serial number", err)
	}
	in, err := a.input(ctx, req, au, prof, serial)
	if err != nil {
		return nil, err
	}
	findings = append(findings, prof.Explain(in)...)
	row := certificateRow{Device: req.Device}
	if row.SPKISHA256, err = keyHash(req.key()); err != nil { // no rule can be asked about a key that cannot be written
		return findings, nil
	}
	findings = append(findings, a.explainLint(in, au, prof))
	keys, err := a.explainKey(ctx, &row, prof)
	return append(findings, keys...), err
}

// finding is the verdict of a check: err, or that it passed.
func finding(rule string, err error, passed string) profile.Finding {
	var e *Error
	if errors.As(err, &e) {
		return profile.Finding{Rule: e.Rule, Detail: e.Detail}
	}
	return profile.Finding{Rule: rule, OK: true, Detail: passed}
}

func (a *Authorities) explainLint(in profile.Input, au *authority, prof *profile.Profile) profile.Finding {
	template, _, err := prof.Build(in)
	if err != nil {
		return profile.Finding{Rule: "lint", OK: true, Detail: "not run: there is nothing to sign"}
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return finding("lint", unavailable("serial number", err), "")
	}
	if err := au.mustName(template, prof.Use()); err != nil {
		return finding("lint", err, "")
	}
	public := in.PublicKey
	if in.CSR != nil {
		public = in.CSR.PublicKey
	}
	_, err = a.encode(au, au.certificate, template, public, in.Now, lint.Context{Use: prof.Use(), CRL: in.CRL(prof)})
	return finding("lint", err, "no finding of error level")
}
