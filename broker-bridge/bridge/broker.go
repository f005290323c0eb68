// What the loop needs of a broker. Mosquitto is the first; the interface is the seam for the others.

package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"time"
)

// ErrBrokerDown is in the chain of an error that means: there is no broker process to talk to.
var ErrBrokerDown = errors.New("the broker is not running")

// Broker is one MQTT broker. The loop calls one method at a time; a context always has a deadline.
type Broker interface {
	// Published returns what the broker would read if it were started now; missing files are nil.
	Published() (Material, error)

	// Publish replaces the files that differ, each whole and durable when it returns. It does not touch the running
	// broker. After an error any of the files may be old or new; the caller publishes again.
	Publish(Material) error

	// Reload makes the running broker read what was published, and returns when it has, with the time that the broker took for
	// it (waiting for the right moment to ask is not counted). Live sessions stay.
	Reload(ctx context.Context) (time.Duration, error)

	// Prove connects once as each probe, with a full TLS handshake, and reports what the broker did, in that order.
	Prove(ctx context.Context, probes []Probe) []Outcome

	// Kick ends all live sessions of a device, by its name. There being none is no error. It may be repeated.
	Kick(ctx context.Context, device string) error
}

// Material is the content of the broker's files. A nil field means: leave that file alone.
type Material struct {
	Bundle   []byte // trust anchors, issuing CAs and CRLs, PEM
	ACL      []byte // for the device listener
	Services []byte // for the listener of the operator's services
	Server   []byte // the broker's own key, leaf and chain, PEM
}

// equal reports whether publishing m over old would change nothing.
func (m Material) equal(old Material) bool {
	same := func(a, b []byte) bool { return a == nil || bytes.Equal(a, b) }
	return same(m.Bundle, old.Bundle) && same(m.ACL, old.ACL) && same(m.Services, old.Services) && same(m.Server, old.Server)
}

// Probe is one connection that must turn out in one way.
type Probe struct {
	Name        string           // good, revoked, foreign, none; with the issuing CA: "good:devices"
	Certificate *tls.Certificate // nil presents none
	Want        Verdict
	Alert       uint8 // the TLS alert that Refused must come with; 0 for any
}

// Verdict is what a broker did with a connection.
type Verdict int

const (
	Unknown  Verdict = iota // no answer in time, or no listener
	Accepted                // CONNACK with success
	Refused                 // TLS alert, closed connection or CONNACK with a refusal
)

func (v Verdict) String() string { return [...]string{"unknown", "accepted", "refused"}[v] }

// Outcome is what came of a Probe.
type Outcome struct {
	Probe   Probe
	Verdict Verdict
	Alert   uint8 // TLS alert received, 0 for none
	Down    bool  // nothing listens
	Err     error // detail for the log

	resumed bool // the handshake continued an earlier TLS session
}

// Right reports whether the broker did as the probe wants.
func (o Outcome) Right() bool {
	return o.Verdict == o.Probe.Want && (o.Probe.Alert == 0 || o.Probe.Alert == o.Alert)
}

// failOpen reports whether the broker let somebody in who must stay out.
func failOpen(outcomes []Outcome) bool {
	return slices.ContainsFunc(outcomes, func(o Outcome) bool { return o.Probe.Want == Refused && o.Verdict == Accepted })
}

func allRight(outcomes []Outcome) bool {
	return len(outcomes) > 0 && !slices.ContainsFunc(outcomes, func(o Outcome) bool { return !o.Right() })
}

func allDown(outcomes []Outcome) bool {
	return len(outcomes) > 0 && !slices.ContainsFunc(outcomes, func(o Outcome) bool { return !o.Down })
}
