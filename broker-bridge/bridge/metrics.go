// Prometheus series of the bridge, on a registry of its own.

package bridge

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is the set of series. All are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	sourceSuccess   prometheus.Gauge
	setSeq          *prometheus.GaugeVec
	crlNumber       *prometheus.GaugeVec
	crlNextUpdate   *prometheus.GaugeVec
	crlEntries      *prometheus.GaugeVec
	refusals        *prometheus.CounterVec
	partsRefused    *prometheus.GaugeVec
	reload          prometheus.Histogram
	verify          *prometheus.GaugeVec
	failOpen        prometheus.Gauge
	rollbacks       prometheus.Counter
	kick            prometheus.Histogram
	kicks           *prometheus.CounterVec
	kicksPending    prometheus.Gauge
	toRefused       prometheus.Histogram
	toKicked        prometheus.Histogram
	generations     prometheus.Gauge
	pendingApproval prometheus.Gauge
	brokerUp        prometheus.Gauge
	devices         prometheus.Gauge
	expiry          *prometheus.GaugeVec
}

// NewMetrics registers every series; those whose labels are known start at 0.
func NewMetrics() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(g)
		return g
	}
	counters := func(name, help string, label string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		m.registry.MustRegister(c)
		for _, v := range values {
			c.WithLabelValues(v)
		}
		return c
	}
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: []float64{
			.001, .002, .005, .01, .02, .03, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 15, 35, 60, 300, 3600}})
		m.registry.MustRegister(h)
		return h
	}
	m.sourceSuccess = gauge("bridge_source_last_success_timestamp_seconds", "When the EST server last answered the bridge, Unix time.")
	m.setSeq = gauges("bridge_set_seq", "Sequence number of the trust set: offered and valid (fetched), on the broker's disk (published), proven at the broker (verified).", "stage")
	m.crlNumber = gauges("bridge_crl_number", "CRL number that the broker was proven to hold; of several CRLs of a CA the highest.", "issuer")
	m.crlNextUpdate = gauges("bridge_crl_next_update_timestamp_seconds", "When the broker begins to refuse every device of the issuer unless it gets a newer CRL, Unix time.", "issuer")
	m.crlEntries = gauges("bridge_crl_entries", "Revoked certificates in the CRL that the broker was proven to hold.", "issuer", "shard")
	m.refusals = counters("bridge_validation_failures_total", "What the server offered and the bridge did not take, by reason.", "code", codes...)
	m.partsRefused = gauges("bridge_parts_refused", "Parts of the newest trust set that are not in place (what was good before is), by reason.", "code")
	m.refused(nil)
	m.reload = histogram("bridge_reload_seconds", "From the signal to the broker until the broker was proven.")
	m.verify = gauges("bridge_verify_result", "1 if the last probe turned out as it must, else 0.", "listener", "probe")
	m.failOpen = gauge("bridge_fail_open", "1 while the broker accepts a certificate that it must refuse. Page somebody.")
	m.rollbacks = counter(m.registry, "bridge_rollbacks_total", "Sets taken back because the broker could not be proven with them.")
	m.kick = histogram("bridge_kick_seconds", "Time the broker took to end the sessions of a device.")
	m.kicks = counters("bridge_kicks_total", "Sessions to end, by result.", "result", "done", "error")
	m.kicksPending = gauge("bridge_kicks_pending", "Sessions still to be ended.")
	m.toRefused = histogram("bridge_revocation_to_refused_seconds", "From the revocation at the server until the broker was proven to refuse.")
	m.toKicked = histogram("bridge_revocation_to_kicked_seconds", "From the revocation at the server until the device's live sessions were ended.")
	m.generations = gauge("bridge_generations_live_estimate", "CRLs loaded since the bridge started: at most as many are pinned in the broker's memory by live sessions.")
	m.pendingApproval = gauge("bridge_pending_approval", "1 while a change of trust waits for: broker-bridge approve.")
	m.brokerUp = gauge("bridge_broker_up", "1 if the broker answered the last probes.")
	m.devices = gauge("bridge_devices", "Devices in the access control list.")
	m.expiry = gauges("bridge_certificate_expiry_timestamp_seconds", "End of validity of the certificates that the bridge and its broker live on, Unix time.", "use")
	for _, stage := range []string{"fetched", "published", "verified"} {
		m.setSeq.WithLabelValues(stage)
	}
	return m
}

func counter(r *prometheus.Registry, name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	r.MustRegister(c)
	return c
}

// Handler serves the series in Prometheus' text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// refused counts the parts of the newest set that were not taken.
func (m *Metrics) refused(refusals []*Refusal) {
	for _, code := range codes {
		m.partsRefused.WithLabelValues(code).Set(0)
	}
	for _, r := range refusals {
		m.refusals.WithLabelValues(r.Code).Inc()
		m.partsRefused.WithLabelValues(r.Code).Inc()
	}
}

func (m *Metrics) proven(s *Set) {
	m.crlNumber.Reset()
	m.crlNextUpdate.Reset()
	m.crlEntries.Reset()
	for _, i := range s.Issuers {
		m.crlNumber.WithLabelValues(i.Name).Set(float64(i.number()))
		m.crlNextUpdate.WithLabelValues(i.Name).Set(float64(i.nextUpdate().Unix()))
		for shard, c := range i.CRLs {
			m.crlEntries.WithLabelValues(i.Name, strconv.Itoa(shard)).Set(float64(len(c.RevokedCertificateEntries)))
		}
	}
	m.setSeq.WithLabelValues("verified").Set(float64(s.Seq))
}

func (m *Metrics) probed(listener string, outcomes []Outcome) {
	for _, o := range outcomes {
		m.verify.WithLabelValues(listener, o.Probe.Name).Set(number(o.Right()))
	}
	m.brokerUp.Set(number(!allDown(outcomes)))
	if failOpen(outcomes) {
		m.failOpen.Set(1)
	} else if allRight(outcomes) {
		m.failOpen.Set(0)
	}
}

func (m *Metrics) expires(use string, at time.Time) {
	m.expiry.WithLabelValues(strings.ReplaceAll(use, "-", "_")).Set(float64(at.Unix()))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
