// The queue of sessions to end. An entry leaves it when the broker said that it is done, never before; doing it twice harms nobody.

package bridge

import (
	"context"
	"errors"
	"math/big"
	"slices"
	"time"

	"github.com/natal-pki/natal/internal/fault"
)

// kickAll does what is due outside of a change: what failed, or was left by the run before.
func (b *Bridge) kickAll(ctx context.Context) error {
	done, err := b.kickDue(ctx)
	if len(done) > 0 {
		err = errors.Join(err, fault.Step("bridge.kicked", func() error {
			return b.update("kicked", func(s *State) { s.Kicks = without(s.Kicks, done) })
		}))
	}
	b.metrics.kicksPending.Set(float64(len(b.store.Kicks)))
	return err
}

// kickDue ends the sessions of all certificates that the broker was proven to refuse, and returns the entries that are through.
func (b *Bridge) kickDue(ctx context.Context) (done []Kick, err error) {
	if b.current == nil || !b.held {
		return nil, nil
	}
	for _, k := range b.store.Kicks {
		listed := b.listed(k)
		switch {
		case !listed && b.current.upTo(k.Issuer) < k.Seq:
			continue // its CRL is still to come, or was refused: he would come straight back
		case !listed && k.Old:
			done = append(done, k)
			continue
		}
		start := time.Now()
		if e := b.broker.Kick(ctx, k.Device); e != nil {
			b.metrics.kicks.WithLabelValues("error").Inc()
			return done, errors.Join(err, e)
		}
		b.metrics.kick.Observe(time.Since(start).Seconds())
		b.metrics.kicks.WithLabelValues("done").Inc()
		took := b.clock.Now().Sub(k.RevokedAt)
		if !k.Old {
			b.metrics.toKicked.Observe(max(took, 0).Seconds())
		}
		b.log.Info("session ended", "device", k.Device, "serial", k.Serial, "reason", k.Reason, "after", took)
		done = append(done, k)
	}
	return done, err
}

func (b *Bridge) listed(k Kick) bool {
	serial, ok := new(big.Int).SetString(k.Serial, 16)
	return ok && b.current.lists(k.Issuer, serial)
}

// measureRefused notes how long after its revocation each waiting certificate was proven to be refused.
func (b *Bridge) measureRefused() {
	for n := range b.store.Kicks {
		k := &b.store.Kicks[n]
		if !k.Old && !k.Refused && b.listed(*k) {
			k.Refused = true
			b.metrics.toRefused.Observe(max(b.clock.Now().Sub(k.RevokedAt), 0).Seconds())
		}
	}
}

func without(kicks, done []Kick) []Kick {
	return slices.DeleteFunc(slices.Clone(kicks), func(k Kick) bool {
		return slices.ContainsFunc(done, func(d Kick) bool { return d.Device == k.Device && d.Serial == k.Serial })
	})
}
