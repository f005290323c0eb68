// est-server code import: many devices at once, and sheets with their codes.
//
// The codes are made here and written to their files before the server is asked. A refusal takes the files away again. When the answer is lost they stay,
// and the sheet is itself a file for `code import`: if the server has done it, that changes nothing, and if not, it does it now.

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/codesheet"
	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/registration"
)

type codeImport struct {
	jsonFlag
	File    string `arg:"" help:"CSV file with a header: id, and any of label, sans, service, code, expires; - is standard input." placeholder:"FILE.csv"`
	Label   string `help:"Label of lines that name none." default:"default" placeholder:"LABEL"`
	Expires string `help:"Life of codes whose line does not say, as 30d or 12h. Default: codes.expires of the configuration." placeholder:"TIME"`
	Out     string `help:"File for the code sheet, CSV, mode 0600. It must not exist. Not needed if every line has its code." placeholder:"FILE"`
	Print   string `help:"File for the code sheet to print, PDF with a QR code each, mode 0600. It must not exist." placeholder:"FILE"`
	ESTURL  string `help:"With --print: how devices reach the EST server." name:"est-url" placeholder:"https://HOST:PORT"`
	Check   bool   `help:"Change nothing, tell only what is wrong."`
}

func (c *codeImport) Run(a *app) error {
	if (c.Print != "") != (c.ESTURL != "") {
		return wrongUsage("--print and --est-url go together")
	}
	if c.ESTURL != "" && !strings.HasPrefix(c.ESTURL, "https://") {
		return wrongUsage("--est-url %s: want https://HOST:PORT", c.ESTURL)
	}
	data, err := a.readUpTo(c.File, codesheet.MaxBytes)
	if err != nil {
		return err
	}
	devices, faults, err := codesheet.Read(data)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	if len(devices)+len(faults) == 0 {
		return fmt.Errorf("%s: no devices in it", c.File)
	}
	for n := range devices {
		if devices[n].Label == "" {
			devices[n].Label = c.Label
		}
		if devices[n].Expires == "" {
			devices[n].Expires = c.Expires
		}
	}
	needed := slices.ContainsFunc(devices, func(d codesheet.Device) bool { return d.Code == "" })
	if c.Out == "" && needed && !c.Check {
		return wrongUsage("there are lines without a code: --out FILE for the codes that are made")
	}
	return a.with(func(api *api) error { return c.run(a, api, devices, faults) })
}

func (c *codeImport) run(a *app, api *api, devices []codesheet.Device, faults []codesheet.Fault) error {
	var found admin.Import
	err := api.importDevices(devices, true, &found)
	if err := c.tellFaults(a, faults, err); err != nil {
		return err
	}
	if c.Check {
		return c.show(a, found, func(w io.Writer) { fmt.Fprintf(w, "%s: %d devices, nothing wrong\n", c.File, found.Devices) })
	}
	if err := complete(devices, a.clock.Now(), found.Expires); err != nil {
		return err
	}
	files, err := c.sheets(devices, found.Trust)
	if err != nil {
		return err
	}
	if err := createFiles(files...); err != nil {
		return fmt.Errorf("%w: nothing was imported", err)
	}
	err = api.importDevices(devices, false, &found)
	var refused *apiError
	if errors.As(err, &refused) && refused.problem.Status < http.StatusInternalServerError {
		return errors.Join(c.tellFaults(a, nil, err), removeFiles(files...))
	}
	if err != nil {
		return fmt.Errorf("%w: whether it was done is not known; %s imports the same codes again, and changes nothing if it was", err, c.again())
	}
	found.Codes = nil // they are in the sheet
	return c.show(a, found, func(w io.Writer) {
		if found.Repeated {
			fmt.Fprintf(w, "%d devices with these codes are there already: nothing was changed\n", found.Devices)
			return
		}
		fmt.Fprintf(w, "%d devices imported\n", found.Devices)
		for _, f := range files {
			fmt.Fprintf(w, "their codes are in %s\n", f.path)
		}
	})
}

func (c *codeImport) again() string {
	if c.Out == "" {
		return "est-server code import " + c.File
	}
	return "est-server code import " + c.Out
}

// importDevices asks the server to register devices, or whether it would.
func (api *api) importDevices(devices []codesheet.Device, check bool, out *admin.Import) error {
	in := admin.NewImport{Rows: make([]admin.ImportRow, len(devices)), Check: check}
	for n, d := range devices {
		in.Rows[n] = admin.ImportRow{Line: d.Line, ID: d.ID, Label: d.Label, SANs: d.SANs, Service: d.Service, Code: d.Code, Expires: d.Expires}
	}
	if len(in.Rows) == 0 {
		return nil // every line has a fault of its own
	}
	return api.call(http.MethodPost, "/imports", in, out)
}

// complete makes the codes that are missing and turns lives into times.
func complete(devices []codesheet.Device, now time.Time, life string) (err error) {
	for n := range devices {
		d := &devices[n]
		if d.Code == "" {
			if d.Code, err = registration.MakeCode(); err != nil {
				return err
			}
		}
		if d.Expires == "" {
			d.Expires = life
		}
		if _, err := time.Parse(time.RFC3339, d.Expires); err == nil {
			continue
		}
		length, err := config.ParseDuration(d.Expires)
		if err != nil {
			if length, err = time.ParseDuration(d.Expires); err != nil {
				return err
			}
		}
		d.Expires = stamp(now.Add(length))
	}
	return nil
}

// sheets are the files to write.
func (c *codeImport) sheets(devices []codesheet.Device, trust string) (files []outputFile, err error) {
	if c.Out != "" {
		content, err := codesheet.Write(devices)
		if err != nil {
			return nil, err
		}
		files = append(files, outputFile{c.Out, content})
	}
	if c.Print != "" {
		content, err := codesheet.Sheet{Server: c.ESTURL, Trust: trust}.PDF(devices)
		if err != nil {
			return nil, err
		}
		files = append(files, outputFile{c.Print, content})
	}
	return files, nil
}

// tellFaults prints every bad line, those that the server found among them, and returns the one line for all.
func (c *codeImport) tellFaults(a *app, faults []codesheet.Fault, err error) error {
	var refused *apiError
	more := 0
	switch {
	case errors.As(err, &refused) && refused.problem.Reason == "import":
		for _, e := range refused.problem.Errors {
			line, _ := strconv.Atoi(strings.TrimPrefix(e.Location, "line "))
			rule, detail, _ := strings.Cut(e.Message, ": ")
			faults = append(faults, codesheet.Fault{Line: line, Rule: rule, Detail: detail})
		}
		count, _, _ := strings.Cut(refused.problem.Detail, " ")
		if all, err := strconv.Atoi(count); err == nil {
			more = all - len(refused.problem.Errors)
		}
	case err != nil:
		return err
	}
	if len(faults) == 0 {
		return nil
	}
	slices.SortStableFunc(faults, func(a, b codesheet.Fault) int { return a.Line - b.Line })
	if extra := len(faults) - registration.MaxLineErrors; extra > 0 {
		faults, more = faults[:registration.MaxLineErrors], more+extra
	}
	for _, f := range faults {
		fmt.Fprintf(a.stderr, "line %d: %s: %s\n", f.Line, f.Rule, strings.Join(strings.Fields(f.Detail), " "))
	}
	if more > 0 {
		fmt.Fprintf(a.stderr, "and %d more lines\n", more)
	}
	return fmt.Errorf("%s: %d bad lines, nothing was imported", c.File, len(faults)+more)
}

// readUpTo reads a file, or standard input for "-", of at most so many bytes.
func (a *app) readUpTo(file string, most int64) ([]byte, error) {
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	content, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && int64(len(content)) > most {
		err = fmt.Errorf("%s: larger than %d bytes", file, most)
	}
	return content, err
}
