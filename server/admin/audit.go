// The audit log, to verify and to take along.

package admin

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/natal-pki/natal/internal/audit"
)

func (a *API) registerAudit() {
	handle(a, auditors, http.MethodGet, "/audit/verify", "Verify the audit log", func(ctx context.Context, _ Caller, in *struct {
		Seq  int64  `query:"seq" doc:"of a head exported earlier, which must still be part of the log"`
		Hash string `query:"hash" doc:"of that head"`
	}) (AuditHead, error) {
		var known *audit.Head
		if in.Seq != 0 || in.Hash != "" {
			known = &audit.Head{Seq: in.Seq, Hash: in.Hash}
		}
		head, err := audit.Verify(ctx, a.cfg.DB, known)
		if errors.Is(err, audit.ErrBroken) {
			return AuditHead{}, newProblem(http.StatusConflict, "audit_broken", err.Error())
		}
		return AuditHead{Seq: head.Seq, Hash: head.Hash}, err
	})
	stream(a, auditors, "/audit/export", "Export the audit log, one JSON object a line", "application/x-ndjson", func(ctx context.Context, _ *struct{}, out huma.Context) error {
		return audit.Export(ctx, a.cfg.DB, out.BodyWriter())
	})
}
