// The record of one EST request. It is written once, when the answer is known; keys, codes, bodies and
// Authorization headers never get here.

package telemetry

import (
	"context"
	"log/slog"
	"strconv"
	"time"
)

// ReasonOK is the reason word of an answer that is no refusal.
const ReasonOK = "ok"

// Request describes one EST request after it was answered.
type Request struct {
	ID          string // request id, also in the answer's text when the server is at fault
	Method      string
	Operation   string // one of Operations
	Label       string // Unknown when there is no such label
	Profile     string // of the label
	Status      int
	Reason      string // ReasonOK or the word in the answer's Est-Reason header
	Err         error  // what the device is not told
	Remote      string // address of the TCP peer
	TLS         string // "TLS 1.3"
	Requester   string // kind, once authenticated
	Device      string
	Serial      string // of the certificate handed out
	BodyBytes   int    // of the answer
	Redelivered bool   // the certificate had been handed out before
	Challenge   bool   // no credential was shown and the answer asks for one: no refusal, most first requests are like this
	Duration    time.Duration
}

// reasonWaiting is the refusal of an issuance while a CA waits for its certificate.
const reasonWaiting = "ca_waiting"

// Record counts r and writes its log record: errors of the server as errors, refusals of an issuance as warnings.
func (m *Metrics) Record(ctx context.Context, log *slog.Logger, r Request) {
	m.requests.WithLabelValues(r.Operation, r.Label, strconv.Itoa(r.Status), r.Reason).Inc()
	m.duration.WithLabelValues(r.Operation).Observe(r.Duration.Seconds())
	enrolling := r.Operation == "simpleenroll" || r.Operation == "simplereenroll"
	switch {
	case r.Challenge:
	case r.Reason != ReasonOK && enrolling:
		m.refused.WithLabelValues(r.Label, r.Reason).Inc()
	case r.Serial != "" && !r.Redelivered:
		m.issued.WithLabelValues(r.Profile, r.Label, r.Requester).Inc()
	}
	level := slog.LevelInfo
	switch {
	case r.Reason == reasonWaiting: // an operator has still to import the CA's certificate, and knows
		level = slog.LevelWarn
	case r.Status >= 500 && r.Status != 501:
		level = slog.LevelError
	case r.Reason != ReasonOK && enrolling && !r.Challenge:
		level = slog.LevelWarn
	}
	if !log.Enabled(ctx, level) {
		return
	}
	log.LogAttrs(ctx, level, "est request", r.attrs()...)
}

func (r *Request) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 16)
	attrs = append(attrs,
		slog.String("request_id", r.ID), slog.String("remote", r.Remote), slog.String("method", r.Method),
		slog.String("operation", r.Operation), slog.String("label", r.Label),
		slog.Int("status", r.Status), slog.String("reason", r.Reason),
		slog.Float64("duration_ms", float64(r.Duration.Microseconds())/1000), slog.Int("body_bytes", r.BodyBytes))
	for _, a := range []slog.Attr{
		slog.String("tls", r.TLS), slog.String("requester", r.Requester), slog.String("device", r.Device), slog.String("serial", r.Serial),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	if r.Err != nil {
		attrs = append(attrs, slog.String("error", r.Err.Error()))
	}
	return attrs
}
