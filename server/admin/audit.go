// The audit log, to verify and to take along, and the clock that it is compared with.

package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/natal-pki/natal/internal/audit"
)

func (a *API) registerAudit() {
	handle(a, auditors, http.MethodGet, "/audit/head", "The newest entry of the audit log", func(ctx context.Context, _ Caller, _ *struct{}) (AuditHead, error) {
		head, err := audit.Current(ctx, a.cfg.DB)
		return auditHead(head), err
	})
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
		return auditHead(head), err
	})
	stream(a, auditors, "/audit/export", "Export the audit log, one JSON object a line, the last of them its head", "application/x-ndjson", a.exportAudit)
}

func auditHead(h audit.Head) AuditHead {
	return AuditHead{Epoch: h.Epoch, Seq: h.Seq, Hash: h.Hash, At: time.UnixMilli(h.At).UTC()}
}

// auditExport selects entries.
type auditExport struct {
	Since  time.Time `query:"since" doc:"only entries of this time or later"`
	Until  time.Time `query:"until" doc:"only entries before this time"`
	Action string    `query:"action" doc:"only entries of this action"`
	Object string    `query:"object" doc:"only entries about this object"`
}

func (a *API) exportAudit(ctx context.Context, in *auditExport, out huma.Context) error {
	return audit.Export(ctx, a.cfg.DB, out.BodyWriter(), audit.Filter{Since: in.Since, Until: in.Until, Action: in.Action, Object: in.Object})
}
