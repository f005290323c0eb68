// est-server audit: the hash-chained log of everything that changed.

package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/config"
)

type auditCommand struct {
	Head   auditHead   `cmd:"" help:"Print the newest entry's number and hash: keep it elsewhere to notice a truncation later."`
	Verify auditVerify `cmd:"" help:"Verify the whole log, and print its head."`
	Export auditExport `cmd:"" help:"Write the log, one JSON object a line, oldest first, the head last."`
	Key    auditKey    `cmd:"" help:"Print the public key of the daily checkpoints."`

	AcceptClock auditAcceptClock `cmd:"" help:"Take the clock for right although there are records of a later time: after a clock that ran ahead was put right."`
}

type auditHead struct{ jsonFlag }

func (c *auditHead) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.AuditHead
		if err := api.call(http.MethodGet, "/audit/head", nil, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			fields(w, "epoch", fmt.Sprint(out.Epoch), "seq", fmt.Sprint(out.Seq), "hash", out.Hash, "at", stamp(out.At))
		})
	})
}

type auditVerify struct {
	jsonFlag
	Head       string `help:"File with a head (audit head --json, audit verify --json) or an export, which must still be part of the log." xor:"known" placeholder:"FILE"`
	Checkpoint string `help:"File with signed checkpoints (a copy of audit/checkpoints.jsonl): the signatures are checked, and the newest must be part of the log. With --key FILE, the public key that audit key prints." xor:"known" placeholder:"FILE"`
}

func (c *auditVerify) Run(a *app) error {
	known, err := c.known(a)
	if err != nil {
		return err
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
		return c.show(a, out, func(w io.Writer) { fmt.Fprintf(w, "the audit log is whole: head %d %s\n", out.Seq, out.Hash) })
	})
}

// known is the head that must be part of the log; the zero Head when none is given.
func (c *auditVerify) known(a *app) (audit.Head, error) {
	switch {
	case c.Head != "":
		content, err := tail(c.Head)
		if err != nil {
			return audit.Head{}, err
		}
		head, err := audit.ReadHead(content)
		if err != nil {
			return audit.Head{}, fmt.Errorf("%s: %w", c.Head, err)
		}
		return head, nil
	case c.Checkpoint != "":
		keyFile := a.Key
		if a.Server == "" {
			a.Key = ""
		}
		if keyFile == "" || a.Server != "" {
			return audit.Head{}, wrongUsage("--checkpoint goes with --key FILE, the public key of the checkpoints, and with a data directory")
		}
		return c.checkpoint(a, keyFile)
	}
	return audit.Head{}, nil
}

func (c *auditVerify) checkpoint(a *app, keyFile string) (audit.Head, error) {
	content, err := os.ReadFile(keyFile)
	if err != nil {
		return audit.Head{}, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return audit.Head{}, fmt.Errorf("%s: not a public key in PEM", keyFile)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return audit.Head{}, fmt.Errorf("%s: not a public key in PEM", keyFile)
	}
	if content, err = os.ReadFile(c.Checkpoint); err != nil {
		return audit.Head{}, err
	}
	list, err := audit.ReadCheckpoints(content)
	if err != nil {
		return audit.Head{}, fmt.Errorf("%s: %w", c.Checkpoint, err)
	}
	newest, err := audit.VerifyCheckpoints(list, key)
	if err != nil {
		return audit.Head{}, fmt.Errorf("%s: %w", c.Checkpoint, err)
	}
	return newest.Head(), nil
}

// tail is the end of a file, enough for its last line: an export may be large.
func tail(file string) ([]byte, error) {
	const most = 64 << 10
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, most))
}

type auditExport struct {
	Since  string `help:"Only entries of this time (RFC 3339) or later, or of the last so long, as 7d." placeholder:"TIME"`
	Until  string `help:"Only entries before this time (RFC 3339), or older than, as 1d." placeholder:"TIME"`
	Action string `help:"Only entries of this action, as certificate_issued." placeholder:"ACTION"`
	Object string `help:"Only entries about this device, serial number, CA ..." placeholder:"NAME"`
	Out    string `help:"File to write. Default: standard output." placeholder:"FILE"`
}

func (c *auditExport) Run(a *app) error {
	since, err := a.moment("--since", c.Since)
	if err != nil {
		return err
	}
	until, err := a.moment("--until", c.Until)
	if err != nil {
		return err
	}
	return a.with(func(api *api) error {
		answer, err := api.send(http.MethodGet, "/audit/export"+query("since", since, "until", until, "action", c.Action, "object", c.Object), nil)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if c.Out == "" {
			_, err = io.Copy(a.stdout, answer.Body)
			return err
		}
		return writeStream(c.Out, answer.Body, 0o600)
	})
}

// moment is a time that was given as such, or as how long ago; "" when none was.
func (a *app) moment(flag, text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at.UTC().Format(time.RFC3339), nil
	}
	ago, err := config.ParseDuration(text)
	if err != nil {
		return "", wrongUsage("%s %s: want a time as 2027-03-01T12:00:00Z, or how long ago, as 7d", flag, text)
	}
	return a.clock.Now().Add(-ago).Format(time.RFC3339), nil
}

type auditKey struct {
	Out string `help:"File to write. Default: standard output." placeholder:"FILE"`
}

func (c *auditKey) Run(a *app) error {
	content, err := os.ReadFile(a.dir().AuditKey())
	if os.IsNotExist(err) {
		return fmt.Errorf("%s: there is no key yet: the next start of the server makes it", a.dir().AuditKey())
	}
	if err != nil {
		return err
	}
	return a.write(c.Out, content, 0o644)
}

type auditAcceptClock struct {
	jsonFlag
	Reason string `help:"Why, for the audit log." required:"" placeholder:"TEXT"`
}

func (c *auditAcceptClock) Run(a *app) error {
	return a.with(func(api *api) error {
		var out admin.ClockAccepted
		if err := api.call(http.MethodPost, "/audit/accept-clock", admin.AcceptedClock{Reason: c.Reason}, &out); err != nil {
			return err
		}
		return c.show(a, out, func(w io.Writer) {
			fmt.Fprintf(w, "the clock is taken for right; the newest record was of %s\n", stamp(out.Newest))
			fmt.Fprintf(w, "CRLs that begin later, withdrawn: %d; certificates that begin later: %d (revoke them: nobody accepts them until then)\n", out.CRLs, out.Certificates)
		})
	})
}
