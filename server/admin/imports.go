// Imports: many devices with a code each, all or none. Every bad row is named.

package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/registration"
)

// maxImportBytes bounds the body of an import: registration.MaxImport rows of an ordinary length.
const maxImportBytes = 8 << 20

func (a *API) registerImports() {
	handleLarge(a, operators, http.MethodPost, "/imports", "Register many devices with a code each, all or none", maxImportBytes, func(ctx context.Context, c Caller, in *struct{ Body NewImport }) (Import, error) {
		rows, faults := a.importRows(in.Body.Rows)
		allowed, err := a.mayImport(ctx, c, rows, faults)
		if err != nil {
			return Import{}, err
		}
		done, err := a.cfg.Book.Import(ctx, c.Actor, rows, allowed, in.Body.Check)
		if err != nil {
			return Import{}, err
		}
		return Import{
			Devices: len(rows), Repeated: done.Repeated, Expires: a.cfg.CodeExpires.String(), Trust: a.trustFingerprint(ctx), Codes: list(done.Codes, showCode).Items,
		}, nil
	})
}

// importRows fills in what rows leave out. faults are the lines whose time cannot be read.
func (a *API) importRows(in []ImportRow) (rows []registration.ImportRow, faults map[int]error) {
	rows, faults = make([]registration.ImportRow, len(in)), map[int]error{}
	now := a.cfg.Clock.Now()
	for n, r := range in {
		out := registration.ImportRow{Line: r.Line, ID: r.ID, Label: r.Label, SANs: r.SANs, Service: r.Service, Code: r.Code}
		if out.Line == 0 {
			out.Line = n + 1
		}
		if out.Label == "" {
			out.Label = registration.Default
		}
		var err error
		if out.Expires, err = expiry(now, a.cfg.CodeExpires, r.Expires); err != nil {
			faults[out.Line] = err
		}
		rows[n] = out
	}
	return rows, faults
}

// expiry reads a life or a time.
func expiry(now time.Time, life time.Duration, text string) (time.Time, error) {
	if text == "" {
		return now.Add(life), nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	d, err := config.ParseDuration(text)
	if err != nil {
		return time.Time{}, invalid("expires", "want a time like 30d or 2027-03-01T12:00:00Z")
	}
	return now.Add(d), nil
}

// mayImport looks at each label once. The result judges a row.
func (a *API) mayImport(ctx context.Context, c Caller, rows []registration.ImportRow, faults map[int]error) (func(registration.ImportRow) error, error) {
	refused := map[string]error{}
	for _, r := range rows {
		if _, known := refused[r.Label]; known {
			continue
		}
		err := a.mayUseLabel(ctx, c, r.Label)
		var p *Problem
		var unknown *registration.Error
		if err != nil && !errors.As(err, &p) && (!errors.As(err, &unknown) || unknown.Kind != registration.UnknownLabel) {
			return nil, err
		}
		refused[r.Label] = err
	}
	return func(r registration.ImportRow) error {
		if err := refused[r.Label]; err != nil {
			return err
		}
		if err := faults[r.Line]; err != nil {
			return err
		}
		return a.mayBeCalled(c, r.ID, r.SANs)
	}, nil
}

// Refusal is the problem as an import names it.
func (p *Problem) Refusal() (rule, detail string) { return p.Reason, p.Detail }

func importProblem(bad *registration.ImportError) *Problem {
	status := http.StatusBadRequest
	if slices.ContainsFunc(bad.Lines, func(l registration.LineError) bool { return l.Rule == "administrator_only" }) {
		status = http.StatusForbidden
	}
	p := newProblem(status, "import", fmt.Sprintf("%d bad lines, nothing was imported", len(bad.Lines)+bad.More))
	for _, l := range bad.Lines {
		p.Errors = append(p.Errors, ProblemField{Location: fmt.Sprintf("line %d", l.Line), Message: l.Rule + ": " + l.Detail})
	}
	return p
}

// trustFingerprint is what a device may recognise the EST server by, or "" while there is no such thing.
func (a *API) trustFingerprint(ctx context.Context) string {
	info, err := a.cfg.CA.Serving(ctx, adminIssuer)
	if err != nil || len(info.Chain) == 0 {
		return ""
	}
	return fingerprint(info.Chain[len(info.Chain)-1].Raw)
}
