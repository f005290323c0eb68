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
	handle(a, administrators, http.MethodPost, "/audit/accept-clock", "Take this machine's clock for right although records are of a later time; on this machine only", a.acceptClock)
	stream(a, auditors, "/audit/export", "Export the audit log, one JSON object a line, the last of them its head", "application/x-ndjson", a.exportAudit)
}

// AcceptedClock says why the clock is right although there are records of a later time.
type AcceptedClock struct {
	Reason string `json:"reason" minLength:"1" maxLength:"1000" doc:"for the audit log"`
}

// ClockAccepted is what was found from a later time.
type ClockAccepted struct {
	Newest       time.Time `json:"newest" doc:"the newest time of an audit entry before"`
	CRLs         int64     `json:"crls" doc:"CRLs withdrawn because they begin later than now"`
	Certificates int64     `json:"certificates" doc:"certificates that begin later than now"`
}

func (a *API) acceptClock(ctx context.Context, c Caller, in *struct{ Body AcceptedClock }) (ClockAccepted, error) {
	if !c.Local {
		return ClockAccepted{}, newProblem(http.StatusForbidden, "local_only", "look at this machine's clock: run the command on it")
	}
	found, err := a.cfg.CA.AcceptClock(ctx, c.Actor, in.Body.Reason)
	return ClockAccepted{Newest: found.Newest, CRLs: found.CRLs, Certificates: found.Certificates}, err
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
