// est-server audit: the hash-chained log of everything that changed.

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/natal-pki/natal/server/admin"
)

type auditCommand struct {
	Verify auditVerify `cmd:"" help:"Verify the log, and print its head: keep it elsewhere to notice a truncation later."`
	Export auditExport `cmd:"" help:"Write the log, one JSON object a line, oldest first."`
}

type auditVerify struct {
	jsonFlag
	Head string `help:"File with a head printed earlier (with --json), which must still be part of the log." placeholder:"FILE"`
}

func (c *auditVerify) Run(a *app) error {
	var known admin.AuditHead
	if c.Head != "" {
		content, err := a.readInput(c.Head)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(content, &known); err != nil || known.Seq < 1 || known.Hash == "" {
			return fmt.Errorf("%s: not a head as `audit verify --json` prints it", c.Head)
		}
	}
	seq := ""
	if known.Seq != 0 {
		seq = strconv.FormatInt(known.Seq, 10)
	}
	return a.with(func(api *api) error {
		var out admin.AuditHead
		if err := api.call(http.MethodGet, "/audit/verify"+query("seq", seq, "hash", known.Hash), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "the audit log is whole: %d entries, head %s\n", out.Seq, out.Hash) })
	})
}

type auditExport struct {
	Out string `help:"File to write. Default: standard output." placeholder:"FILE"`
}

func (c *auditExport) Run(a *app) error {
	return a.with(func(api *api) error {
		answer, err := api.send(http.MethodGet, "/audit/export", nil)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if c.Out == "" {
			_, err = io.Copy(a.stdout, answer.Body)
			return err
		}
		content, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		return writeFile(c.Out, content, 0o600)
	})
}
