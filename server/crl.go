// est-server crl: certificate revocation lists.

package main

import (
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/natal-pki/natal/server/admin"
)

type crlCommand struct {
	List  crlList  `cmd:"" help:"List the current CRLs."`
	Issue crlIssue `cmd:"" help:"Issue a CA's CRL now; all of them if it has several."`
	Get   crlGet   `cmd:"" help:"Write a CA's current CRL."`
	Set   crlSet   `cmd:"" help:"Change how long a CA's CRLs are valid and how often they are issued."`
}

type crlList struct{ jsonFlag }

func (c *crlList) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.List[admin.CRL]
		if err := api.call(http.MethodGet, "/crls", nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			var rows [][]string
			for _, l := range out.Items {
				shard := "-"
				if l.Shards > 1 {
					shard = fmt.Sprintf("%d/%d", l.Shard, l.Shards)
				}
				rows = append(rows, []string{l.CA, shard, fmt.Sprint(l.Number), stamp(l.ThisUpdate), stamp(l.NextUpdate), fmt.Sprint(l.Entries)})
			}
			table(w, "CA SHARD NUMBER THIS-UPDATE NEXT-UPDATE ENTRIES", rows)
		})
	})
}

type crlIssue struct {
	jsonFlag
	CA string `arg:"" name:"ca"`
}

func (c *crlIssue) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.CRL
		if err := api.call(http.MethodPost, path("crls", c.CA), nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			if out.Shards > 1 {
				fmt.Fprintf(w, "%d CRLs of %s, up to number %d, valid until %s\n", out.Shards, out.CA, out.Number, stamp(out.NextUpdate))
				return
			}
			fmt.Fprintf(w, "CRL %d of %s: %d entries, valid until %s\n", out.Number, out.CA, out.Entries, stamp(out.NextUpdate))
		})
	})
}

type crlGet struct {
	CA     string `arg:"" name:"ca"`
	Shard  *int   `help:"Which one, of a CA with several: from 0." placeholder:"N"`
	Format string `help:"pem or der." enum:"pem,der" default:"pem"`
	Out    string `help:"File to write. Default: standard output." placeholder:"FILE"`
}

func (c *crlGet) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.CRL
		shard := 0
		if c.Shard != nil {
			shard = *c.Shard
		}
		if err := api.call(http.MethodGet, path("crls", c.CA)+"?shard="+strconv.Itoa(shard), nil, &out); err != nil {
			return err
		}
		if c.Shard == nil && out.Shards > 1 { // one of several must not be taken for all
			return wrongUsage("CA %q has %d CRLs: choose one, --shard 0 to %d", out.CA, out.Shards, out.Shards-1)
		}
		content := out.DER
		if c.Format == "pem" {
			content = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: out.DER})
		}
		return a.write(c.Out, content, 0o644)
	})
}

type crlSet struct {
	CA       string `arg:"" name:"ca"`
	Valid    string `help:"From issue to nextUpdate, as 7d or 24h." required:"" placeholder:"TIME"`
	Interval string `help:"Between two CRLs when nothing is revoked; at most half of --valid." required:"" placeholder:"TIME"`
}

func (c *crlSet) Run(a *app) error {
	return a.with(func(api *api) error {
		return api.call(http.MethodPut, path("crls", c.CA, "schedule"), admin.CRLSchedule{Valid: c.Valid, Interval: c.Interval}, nil)
	})
}
