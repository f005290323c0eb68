// What comes from the feed: the device list, the changes after it, and the trust set.

package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/internal/feedapi"
)

const (
	canaryWait  = 100 * time.Millisecond // between two looks for the CRL with a new canary
	canaryTries = 20
)

func (b *Bridge) poll(ctx context.Context, since int64) pollResult {
	c, err := b.feed.Changes(ctx, since, longPoll)
	return pollResult{c, err}
}

// readDevices fetches the whole list. A bridge without a past notes where it came in: what happened before is read as
// well, and sessions of certificates that a CRL still lists are ended.
func (b *Bridge) readDevices(ctx context.Context) error {
	d, err := b.feed.Devices(ctx)
	if err != nil {
		return err
	}
	b.heard()
	if b.store.Since == 0 && b.store.Synced != d.Seq {
		err := fault.Step("bridge.synced", func() error {
			return b.update("synced", func(s *State) { s.Synced = d.Seq })
		})
		if err != nil {
			return err
		}
	}
	b.devices, b.devicesSeq = make(map[string]struct{}, len(d.Devices)), d.Seq
	for _, one := range d.Devices {
		b.addDevice(one.ID)
	}
	b.renderACL()
	return nil
}

func (b *Bridge) heard() { b.metrics.sourceSuccess.Set(float64(b.clock.Now().Unix())) }

func (b *Bridge) addDevice(id string) {
	if err := b.acl.Allows(id); err != nil {
		b.metrics.refusals.WithLabelValues(CodeDeviceID).Inc()
		b.log.Warn("device not in the access control list", "error", err)
		return
	}
	b.devices[id] = struct{}{}
}

func (b *Bridge) renderACL() {
	ids := slices.Collect(maps.Keys(b.devices))
	b.want.ACL, b.want.Services = b.acl.Devices(ids), nil
	if b.conf.Broker.ServicesFile != "" {
		b.want.Services = b.acl.Services(ids)
	}
	b.metrics.devices.Set(float64(len(b.devices)))
}

// changed takes the answer to a long poll. Sessions to end are on disk before the cursor moves past their revocation.
func (b *Bridge) changed(r pollResult) {
	if r.err != nil {
		b.failed(taskChanges, r.err)
		return
	}
	b.heard()
	if r.changes.Reset {
		b.failed(taskChanges, b.reset(r.changes.Seq))
		return
	}
	b.failed(taskChanges, b.take(r.changes))
}

// reset begins anew: the server does not know where we are (it was restored from a backup).
func (b *Bridge) reset(seq int64) error {
	b.log.Warn("the server begins its feed anew", "since", b.cursor, "seq", seq)
	if b.cursor == 0 {
		return errors.New("the server does not know its own beginning")
	}
	err := fault.Step("bridge.reset", func() error {
		return b.update("reset", func(s *State) { s.Since, s.Synced = 0, 0 })
	})
	if err != nil {
		return err
	}
	b.cursor, b.devices, b.stale = 0, nil, true
	return nil
}

func (b *Bridge) take(c feedapi.Changes) error {
	var kicks []Kick
	touched := false
	for _, one := range c.Changes {
		switch one.Kind {
		case feedapi.DeviceAdded, feedapi.DeviceRemoved:
			touched = b.deviceChanged(one) || touched
		case feedapi.CertificateRevoked:
			b.stale = true
			if k, ok := b.kickFor(one); ok {
				kicks = append(kicks, k)
			}
		case feedapi.TrustSetChanged:
			b.stale = true
		}
	}
	if touched {
		b.renderACL()
	}
	if len(kicks) > 0 {
		err := fault.Step("bridge.queue", func() error {
			return b.update("queue", func(s *State) {
				s.Kicks = append(s.Kicks, kicks...)
				s.Since = c.Seq
			})
		})
		if err != nil {
			return err
		}
	}
	b.cursor = c.Seq
	b.metrics.kicksPending.Set(float64(len(b.store.Kicks)))
	return nil
}

func (b *Bridge) deviceChanged(c feedapi.Change) bool {
	if c.Device == nil || c.Seq <= b.devicesSeq {
		return false
	}
	if c.Kind == feedapi.DeviceAdded {
		b.addDevice(c.Device.ID)
	} else {
		delete(b.devices, c.Device.ID)
	}
	return true
}

// kickFor makes the queue entry, unless there is no session to end: canaries, and a device that has a newer certificate.
func (b *Bridge) kickFor(c feedapi.Change) (Kick, bool) {
	r := c.Revoked
	if r == nil || r.Superseded || b.acl.Allows(r.Device) != nil || b.store.queued(r.Device, r.Serial) {
		return Kick{}, false
	}
	return Kick{Seq: c.Seq, Device: r.Device, Issuer: r.Issuer, Serial: r.Serial, Reason: r.Reason,
		RevokedAt: r.RevokedAt, Old: c.Seq <= b.store.Synced}, true
}

// readTrustSet fetches the set and makes it the wanted one if it is valid and can be proven. A refused set leaves the one
// before in place until the server offers another.
func (b *Bridge) readTrustSet(ctx context.Context) error {
	for try := 0; ; try++ {
		set, err := b.fetchSet(ctx)
		if err != nil {
			return b.refused(err)
		}
		if set == nil {
			b.stale = false
			return nil
		}
		fresh, err := b.canaries.ensure(ctx, b.feed, set, false)
		if err != nil {
			b.log.Warn("no canary", "error", err)
		}
		_, err = b.canaries.probes(set)
		var r *Refusal
		if errors.As(err, &r) && r.Code == CodeCanaryUnlisted && (fresh || try > 0) && try < canaryTries {
			if err := sleep(ctx, canaryWait); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return b.refused(err)
		}
		b.set, b.want.Bundle, b.stale = set, set.Bundle(), false
		b.pardon()
		b.metrics.setSeq.WithLabelValues("fetched").Set(float64(set.Seq))
		return nil
	}
}

// refused keeps the reason. What only time or the server's next change can cure is not tried again by itself.
func (b *Bridge) refused(err error) error {
	var r *Refusal
	if !errors.As(err, &r) {
		return err
	}
	if b.refusal == nil || b.refusal.Error() != r.Error() {
		b.refusal = r
		b.log.Error("trust set refused, the last good one stays", "code", r.Code, "error", r)
		b.ack()
	}
	b.metrics.refusals.WithLabelValues(r.Code).Inc()
	var waiting *pendingApproval
	b.metrics.pendingApproval.Set(number(errors.As(err, &waiting)))
	if r.Code == CodeCanaryMissing || r.Code == CodeCanaryUnlisted {
		return err
	}
	b.stale = false
	return nil
}

// pardon forgets a refusal that no longer stands; one by the broker itself stands until it is proven.
func (b *Bridge) pardon() {
	b.metrics.pendingApproval.Set(0)
	if b.refusal != nil && b.refusal.Code != CodeProof {
		b.refusal = nil
	}
}

// fetchSet returns nil if the set is the one we have.
func (b *Bridge) fetchSet(ctx context.Context) (*Set, error) {
	var have int64
	if b.set != nil && b.refusal == nil {
		have = b.set.Seq
	}
	ts, err := b.feed.TrustSet(ctx, have)
	if err != nil {
		return nil, fmt.Errorf("trust set: %w", err)
	}
	b.heard()
	if ts == nil {
		return nil, nil
	}
	crls := map[string][]byte{}
	for _, known := range []*Set{b.current, b.set} {
		if known != nil {
			for _, i := range known.Issuers {
				crls[i.CRLSHA256] = i.CRL.Raw
			}
		}
	}
	for _, c := range ts.CRLs {
		if crls[c.SHA256] == nil {
			if crls[c.SHA256], err = b.feed.CRL(ctx, c.SHA256); err != nil {
				return nil, fmt.Errorf("CRL of %s: %w", c.Issuer, err)
			}
		}
	}
	return Validate(*ts, crls, Rules{
		Now: b.clock.Now(), Last: b.store.Mark, Approved: b.store.approvals(),
		MaxCRLEntries: b.conf.MaxCRLEntries, Poll: time.Duration(b.conf.Poll),
	})
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
