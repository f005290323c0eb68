// Package telemetry is what the server tells about itself: Prometheus series, one log record for each EST
// request, and the health page. It decides nothing and stores nothing.
//
//	telemetry.go  the series that requests feed, all known ones present from the start
//	request.go    one EST request: its metrics and its log record
//	state.go      gauges that are read from the database when Prometheus asks
//	handler.go    /metrics, /healthz, /readyz
//
// Labels of a series never carry a device id or a serial number: their number would have no bound.
package telemetry

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Unknown stands in a metric for a label that does not exist: what an attacker types must not make series.
const Unknown = "unknown"

// Operations are the values of the label "operation"; "other" is whatever is no EST operation.
var Operations = []string{"cacerts", "csrattrs", "simpleenroll", "simplereenroll", "serverkeygen", "fullcmc", "other"}

// RequesterKinds are the values of the label "requester".
var RequesterKinds = []string{"birth", "code", "operational", "bridge"}

// RevocationReasons are the names of RFC 5280 section 5.3.1.
var RevocationReasons = []string{
	"unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded",
	"cessationOfOperation", "certificateHold", "privilegeWithdrawn", "aACompromise",
}

// Metrics holds the server's own registry. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	issued   *prometheus.CounterVec
	revoked  *prometheus.CounterVec
	refused  *prometheus.CounterVec

	outcomes []Outcome
	labels   sync.Map // label names whose series exist
}

// Outcome is a status and the reason word that goes with it.
type Outcome struct {
	Status string // "200", "401"
	Reason string // "ok", "not_authenticated"
}

// New makes the registry. outcomes are the answers that each label and operation is expected to give: their series start at 0.
func New(outcomes []Outcome) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		outcomes: outcomes,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "est_requests_total",
			Help: "EST requests answered, by operation, label, HTTP status and reason word.",
		}, []string{"operation", "label", "status", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "est_request_duration_seconds",
			Help:    "Seconds from the request's header to its answer, by operation.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"operation"}),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "est_certificates_issued_total",
			Help: "Certificates issued over EST (a redelivered one is not counted again), by profile, label and kind of requester.",
		}, []string{"profile", "label", "requester"}),
		revoked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "est_certificates_revoked_total",
			Help: "Certificates revoked, by RFC 5280 reason.",
		}, []string{"reason"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "est_issuance_refused_total",
			Help: "Requests for a certificate that were refused, by label and reason word.",
		}, []string{"label", "reason"}),
	}
	m.registry.MustRegister(m.requests, m.duration, m.issued, m.revoked, m.refused,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, op := range Operations {
		m.duration.WithLabelValues(op)
	}
	for _, reason := range RevocationReasons {
		m.revoked.WithLabelValues(reason)
	}
	m.Label(Unknown, "")
	return m
}

// Registry is where other parts register series of their own.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Label makes the series of a label start at 0. Calling it again is cheap; the profile may differ from the last call's.
func (m *Metrics) Label(name, profile string) {
	if known, ok := m.labels.Load(name); ok && known == profile {
		return
	}
	m.labels.Store(name, profile)
	for _, o := range m.outcomes {
		if o.Reason != ReasonOK {
			m.refused.WithLabelValues(name, o.Reason)
		}
		for _, op := range Operations[:4] {
			m.requests.WithLabelValues(op, name, o.Status, o.Reason)
		}
	}
	if profile == "" {
		return
	}
	for _, kind := range RequesterKinds {
		m.issued.WithLabelValues(profile, name, kind)
	}
}

// Revoked counts a revocation; reason is an RFC 5280 name.
func (m *Metrics) Revoked(reason string) {
	m.revoked.WithLabelValues(reason).Inc()
}
