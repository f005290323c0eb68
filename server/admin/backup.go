// A backup, read while the installation works. It holds the keys, encrypted or not as they are: it is given to this machine only, and whoever reads it
// encrypts it.

package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// NewBackup says where a backup goes.
type NewBackup struct {
	File string `json:"file" minLength:"1" maxLength:"4096" doc:"name of the file that it is written to, for the audit log"`
	For  string `json:"for" minLength:"1" maxLength:"8192" doc:"for whom it is encrypted: age public keys, or 'passphrase'; for the audit log"`
}

func (a *API) registerBackup() {
	op := a.operation(administrators, http.MethodPost, "/backup", "Read a backup, as a tar archive in clear; on this machine only")
	huma.Register(a.huma, op, func(ctx context.Context, in *struct{ Body NewBackup }) (*huma.StreamResponse, error) {
		c, _ := callerOf(ctx)
		if !c.Local || a.cfg.Backup == nil {
			return nil, newProblem(http.StatusForbidden, "local_only", "a backup holds the keys: run the command on the server's machine")
		}
		err := a.cfg.DB.Write(ctx, "backup.record", func(tx *database.Tx) error {
			return audit.Append(tx, a.cfg.Clock.Now(), audit.Entry{Actor: c.Actor, Action: "backup_made", Object: in.Body.File, Detail: map[string]string{"for": in.Body.For}})
		})
		if err != nil {
			return nil, a.problem(c, err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			hc.SetHeader("Content-Type", "application/x-tar")
			if err := a.cfg.Backup(ctx, hc.BodyWriter()); err != nil {
				a.cfg.Log.Error("backup broken off", "error", err)
				panic(http.ErrAbortHandler)
			}
		}}, nil
	})
}
