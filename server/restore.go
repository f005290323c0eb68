// est-server restore: a backup into an empty data directory, or the statement that the database was put back by other means. Either way
// numbers go on where none can have been used, in a new epoch.

package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"time"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/instance"
)

type restoreCommand struct {
	jsonFlag
	File           string   `arg:"" optional:"" help:"The backup."`
	InPlace        bool     `help:"State that the database of the data directory was put back: no file is touched but the database." name:"in-place"`
	Identity       string   `help:"File with the age identity that decrypts the backup." placeholder:"FILE"`
	PassphraseFile string   `help:"Instead: file with the passphrase of the backup. (--passphrase-file is that of the keys.)" name:"backup-passphrase-file" placeholder:"FILE"`
	CRL            []string `help:"A CRL that was published after the backup: what it lists is revoked again. May be repeated." name:"crl" placeholder:"FILE"`
	KeepCodes      bool     `help:"Leave unused enrollment codes as they were: only if none was used since the backup."`
	Statement      string   `help:"What happened, in your words, for the audit log." placeholder:"TEXT"`
}

func (c *restoreCommand) Run(a *app) error {
	if a.Server != "" {
		return wrongUsage("a restore is made on the server's machine: --server does not go with it")
	}
	if c.InPlace != (c.File == "") {
		return wrongUsage("give the backup's FILE, or --in-place for a database that was put back already")
	}
	say := instance.Statement{Actor: admin.LocalCaller(os.Getuid()).Actor, Text: c.Statement, KeepCodes: c.KeepCodes}
	for _, file := range c.CRL {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		say.CRLs = append(say.CRLs, content)
	}
	if c.InPlace {
		return c.inPlace(a, say)
	}
	return c.fromFile(a, say)
}

func (c *restoreCommand) inPlace(a *app, say instance.Statement) error {
	if _, err := a.dir().ReadSettings(a.Config); err != nil {
		return err
	}
	lock, err := a.dir().Lock()
	if err != nil {
		return err
	}
	defer lock.Release()
	return c.state(a, say)
}

func (c *restoreCommand) fromFile(a *app, say instance.Statement) error {
	in, content, err := openBackup(c.File, c.Identity, c.PassphraseFile)
	if err != nil {
		return err
	}
	defer in.Close()
	state, err := a.dir().State()
	if err != nil {
		return err
	}
	if state != instance.Empty {
		return fmt.Errorf("%s is not empty; nothing was changed (after a restore that was broken off, remove it and begin again)", a.Data)
	}
	if err := os.MkdirAll(a.Data, 0o700); err != nil {
		return err
	}
	lock, err := a.dir().Lock()
	if err != nil {
		return err
	}
	defer lock.Release()
	m, err := a.dir().Unpack(content)
	if err != nil {
		return fmt.Errorf("%s: %w; remove %s before you try again", c.File, err, a.Data)
	}
	if m.Database != database.SQLite {
		return c.show(a, restored{Data: a.Data, Database: m.Database, InPlaceNeeded: true}, func(w io.Writer) {
			fmt.Fprintf(w, "the files of the backup of %s are in %s\n", m.MadeAt.Format(time.RFC3339), a.Data)
			if m.Database == database.Postgres {
				fmt.Fprintf(w, "its dump of the database is %s: put it into an empty database with pg_restore, then remove it\n", a.dir().Path("database.dump"))
			} else {
				fmt.Fprintln(w, "it has no database: put that back from your own backup")
			}
			fmt.Fprintf(w, "then state the restore: est-server restore --in-place --data %s\n", a.Data)
		})
	}
	say.Backup = m.MadeAt.Format(time.RFC3339)
	return c.state(a, say)
}

// restored is what the command says with --json.
type restored struct {
	Data          string   `json:"data"`
	Database      string   `json:"database,omitempty"`
	InPlaceNeeded bool     `json:"in_place_needed"`
	Epoch         int64    `json:"epoch,omitempty"`
	Base          int64    `json:"base,omitempty"`
	CodesEnded    int64    `json:"codes_ended"`
	Known         int      `json:"revoked_known"`
	Unknown       int      `json:"revoked_unknown"`
	Devices       []string `json:"devices_revoked"`
}

func (c *restoreCommand) state(a *app, say instance.Statement) error {
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	o := instance.Options{Dir: a.dir(), ConfigFile: a.Config, PassphraseFile: a.PassphraseFile, Clock: a.clock, Log: log}
	stated, err := instance.Restate(a.ctx, o, say)
	if err != nil {
		if !c.InPlace {
			return fmt.Errorf("the files are in %s, the restore is not stated yet: %w; put it right, then: est-server restore --in-place --data %s, with --passphrase-file, --crl and --statement as before", a.Data, err, a.Data)
		}
		return err
	}
	out := restored{Data: a.Data, Epoch: stated.Epoch, Base: stated.Base, CodesEnded: stated.CodesLeft, Known: stated.Known, Unknown: stated.Unknown, Devices: stated.Ended()}
	if c.KeepCodes {
		out.CodesEnded = 0
	}
	return c.show(a, out, func(w io.Writer) { c.tell(w, out) })
}

func (c *restoreCommand) tell(w io.Writer, out restored) {
	fmt.Fprintf(w, "restored: epoch %d begins, numbers go on from %d\n", out.Epoch, out.Base)
	if c.KeepCodes {
		fmt.Fprintln(w, "unused enrollment codes were kept: make sure that none was used since the backup")
	} else {
		fmt.Fprintf(w, "unused enrollment codes ended: %d (make new ones with `est-server code create ID`)\n", out.CodesEnded)
	}
	if len(c.CRL) == 0 {
		fmt.Fprintln(w, "what was revoked since the backup is not revoked any more: revoke it again, or repeat with `--in-place --crl FILE` and a newer CRL")
	} else {
		fmt.Fprintf(w, "revoked again from the CRL: %d certificates on record, %d that are not\n", out.Known, out.Unknown)
		for _, id := range out.Devices {
			fmt.Fprintf(w, "device %s is revoked: if it is to come back, `est-server device reissue %s`\n", id, id)
		}
	}
	fmt.Fprintln(w, "certificates issued since the backup are unknown here: those devices enroll again, with their birth certificate or a new code")
	if u, err := user.Current(); err == nil && u.Uid == "0" {
		fmt.Fprintf(w, "give the files to the service's user before it starts: chown -R est-server: %s\n", out.Data)
	}
}
