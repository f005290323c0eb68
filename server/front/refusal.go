// Refused enrollments leave a line in the audit log, with the cause that the answer may not tell. Requests that show no
// credential at all leave none: every device sends one before it is asked for its code.

package front

import (
	"context"
	"net/http"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/registration"
)

const (
	auditTimeout = 5 * time.Second
	// Whoever proved to be nobody shares one budget with all others like him: the audit log is kept for ever.
	strangerBurst    = 500
	strangerInterval = 10 * time.Second
)

// shown tells whether the request shows any credential.
func (x *exchange) shown() bool {
	return len(x.request.Header["Authorization"]) > 0 || x.request.TLS != nil && len(x.request.TLS.PeerCertificates) > 0
}

// auditRefusal records that x was refused. An address that causes more lines than the budget of wrong codes allows is counted in
// the metrics only. A log that cannot be written does not change the answer: nothing was done that would have to be recorded.
func (f *Front) auditRefusal(ctx context.Context, x *exchange, err error) {
	if x.op.name != wire.OpSimpleEnroll && x.op.name != wire.OpSimpleReenroll {
		return
	}
	a := refusal(x, err)
	if !x.shown() || a.status < http.StatusBadRequest || a.status >= http.StatusInternalServerError || f.audited.failed(x.request.RemoteAddr) {
		return
	}
	if x.requester.Device == "" && !f.strangers.AllowN(f.clock.Now(), 1) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	r := registration.Refusal{Device: x.requester.Device, Label: x.label.Name, Remote: x.request.RemoteAddr, Reason: a.reason, Detail: plain(err.Error())}
	if err := f.book.RecordRefusal(ctx, r); err != nil {
		f.log.Error("refusal not recorded", "request_id", x.id, "error", err)
	}
}
