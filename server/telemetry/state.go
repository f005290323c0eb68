// Gauges about stored things - CAs, CRLs, certificates, codes - are read when Prometheus asks, so that every server
// on one database shows the same and a restart loses nothing.

package telemetry

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// readTimeout bounds one reading; Prometheus gives up after 10 s by default.
const readTimeout = 8 * time.Second

// State is what the gauges show. A zero time leaves its series out.
type State struct {
	CAs                  []CAState
	Keys                 map[string]bool      // by CA: whether its key can be used
	Use                  map[string]time.Time // NotAfter of every certificate that the server itself lives on, by use ("est-server", "birth-ca factory")
	Certificates         map[string]int       // device certificates by state; states that are missing show 0
	CertificatesExpiring map[string]int       // issued device certificates that end within "7d", "30d", "90d"
	Codes                map[string]int       // enrollment codes by state
	BridgeLag            map[string]time.Duration
	OrdersRemaining      map[string]int
	ClockBehind          time.Duration // the newest audit entry's time minus the clock's, not below 0
}

// CAState is a CA and its current CRL.
type CAState struct {
	Name       string
	State      string    // waiting, standby, active, retiring, retired or revoked
	NotAfter   time.Time // zero while it waits for its certificate
	CRLNumber  int64     // the CRL's fields are left out when ThisUpdate is zero
	ThisUpdate time.Time
	NextUpdate time.Time
	CRLEntries int
}

// CertificateStates, ExpiringWithin and CodeStates are the series that exist from the start.
var (
	CertificateStates = []string{"intended", "issued", "held", "revoked", "abandoned"}
	ExpiringWithin    = []string{"7d", "30d", "90d"}
	CodeStates        = []string{"active", "used", "revoked", "expired"}
)

var (
	descCAExpiry    = desc("est_ca_certificate_expiry_timestamp_seconds", "Unix time at which the CA's certificate ends.", "ca")
	descCAState     = desc("est_ca_state", "1 for the state that the CA is in.", "ca", "state")
	descUseExpiry   = desc("est_certificate_expiry_timestamp_seconds", "Unix time at which a certificate that the server itself lives on ends.", "use")
	descKeystoreUp  = desc("est_keystore_up", "1 when the CA's key can be used, 0 when it is needed and cannot. Absent for roots and for keys that were taken offline.", "ca")
	descCRLNumber   = desc("est_crl_number", "Number of the CA's current CRL.", "ca")
	descCRLThis     = desc("est_crl_this_update_timestamp_seconds", "Unix time of the current CRL's thisUpdate.", "ca")
	descCRLNext     = desc("est_crl_next_update_timestamp_seconds", "Unix time of the current CRL's nextUpdate: brokers refuse everybody after it.", "ca")
	descCRLEntries  = desc("est_crl_revoked_certificates", "Entries of the CA's current CRL.", "ca")
	descDevices     = desc("est_device_certificates", "Device certificates by state.", "state")
	descExpiring    = desc("est_device_certificates_expiring", "Issued device certificates that end within the given time.", "within")
	descCodes       = desc("est_enrollment_codes", "Enrollment codes by state.", "state")
	descBridgeLag   = desc("est_bridge_lag_seconds", "Seconds that a broker bridge is behind the trust set; 0 when it holds the current one.", "bridge")
	descOrders      = desc("est_order_remaining", "Certificates left in a production order.", "order")
	descClock       = desc("est_clock_behind_seconds", "Seconds that the clock is behind the newest audit entry; above 300 nothing is signed.")
	descReadSuccess = desc("est_state_read_success", "1 when the gauges about stored things could be read, else 0 and they are absent.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Watch registers the gauges that read gives. read is called once for each scrape and must be safe for concurrent use.
func (m *Metrics) Watch(log *slog.Logger, read func(ctx context.Context) (State, error)) {
	m.registry.MustRegister(&stateCollector{read: read, log: log})
}

type stateCollector struct {
	read func(ctx context.Context) (State, error)
	log  *slog.Logger
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descCAExpiry, descKeystoreUp, descCAState, descUseExpiry, descCRLNumber, descCRLThis, descCRLNext, descCRLEntries,
		descDevices, descExpiring, descCodes, descBridgeLag, descOrders, descClock, descReadSuccess,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	state, err := c.read(ctx)
	if err != nil {
		c.log.Error("metrics state not readable", "error", err)
		gauge(ch, descReadSuccess, 0)
		return
	}
	gauge(ch, descReadSuccess, 1)
	gauge(ch, descClock, state.ClockBehind.Seconds())
	for _, ca := range state.CAs {
		ca.collect(ch)
	}
	for name, up := range state.Keys {
		value := 0.0
		if up {
			value = 1
		}
		gauge(ch, descKeystoreUp, value, name)
	}
	for use, end := range state.Use {
		gaugeTime(ch, descUseExpiry, end, use)
	}
	counts(ch, descDevices, CertificateStates, state.Certificates)
	counts(ch, descExpiring, ExpiringWithin, state.CertificatesExpiring)
	counts(ch, descCodes, CodeStates, state.Codes)
	counts(ch, descOrders, nil, state.OrdersRemaining)
	for bridge, lag := range state.BridgeLag {
		gauge(ch, descBridgeLag, lag.Seconds(), bridge)
	}
}

func (ca *CAState) collect(ch chan<- prometheus.Metric) {
	gaugeTime(ch, descCAExpiry, ca.NotAfter, ca.Name)
	if ca.State != "" {
		gauge(ch, descCAState, 1, ca.Name, ca.State)
	}
	if ca.ThisUpdate.IsZero() {
		return
	}
	gauge(ch, descCRLNumber, float64(ca.CRLNumber), ca.Name)
	gaugeTime(ch, descCRLThis, ca.ThisUpdate, ca.Name)
	gaugeTime(ch, descCRLNext, ca.NextUpdate, ca.Name)
	gauge(ch, descCRLEntries, float64(ca.CRLEntries), ca.Name)
}

func counts(ch chan<- prometheus.Metric, d *prometheus.Desc, known []string, n map[string]int) {
	for _, k := range known {
		if _, ok := n[k]; !ok {
			gauge(ch, d, 0, k)
		}
	}
	for k, v := range n {
		gauge(ch, d, float64(v), k)
	}
}

func gaugeTime(ch chan<- prometheus.Metric, d *prometheus.Desc, t time.Time, label string) {
	if !t.IsZero() {
		gauge(ch, d, float64(t.Unix()), label)
	}
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}
