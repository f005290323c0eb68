// A bridge that is driven by hand, step by step, over a broker in memory.

package bridge

import (
	"crypto/tls"
	"log/slog"
	"testing"

	"github.com/natal-pki/natal/internal/clock"
)

type bare struct {
	t      *testing.T
	feed   *fakeFeed
	broker Broker
	conf   *Config
	own    tls.Certificate
	b      *Bridge
}

func bareBridge(t *testing.T, broker Broker) *bare {
	t.Helper()
	f := newFakeFeed(t, "devices")
	r := &bare{t: t, feed: f, broker: broker, own: f.management.Leaf(t, "mqtt.example.com").TLS()}
	r.conf = &Config{Server: f.http.URL, State: t.TempDir(), Trust: "trust.pem", Identity: "identity", Broker: BrokerConfig{Hosts: []string{"mqtt.example.com"}}}
	r.conf.setDefaults(t.TempDir())
	r.open()
	t.Cleanup(func() { r.b.Close() })
	return r
}

func (r *bare) open() {
	r.t.Helper()
	identity := func() (*tls.Certificate, error) { return &r.own, nil }
	feed := NewFeed(r.conf.Server, fixed(r.feed.root.Certificate), identity, clock.System())
	b, err := New(Parts{Config: r.conf, Clock: clock.System(), Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(), Feed: feed, Broker: r.broker})
	if err != nil {
		r.t.Fatal(err)
	}
	r.b = b
}

func (r *bare) restart() {
	r.b.Close()
	r.open()
}

// step does what the loop does on any news, without pacing.
func (r *bare) step() {
	if r.b.devices == nil {
		if err := r.b.readDevices(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
	r.b.stale, r.b.pace = true, pacer{}
	r.b.step(r.t.Context())
	r.b.publishStatus()
}

// poll asks for changes once, without waiting.
func (r *bare) poll() {
	c, err := r.b.feed.Changes(r.t.Context(), r.b.cursor, 0)
	r.b.changed(pollResult{c, err})
}

func (r *bare) counter(name string) float64 {
	return (&rig{t: r.t, bridge: r.b}).counter(name, "")
}
