// What comes from the feed: the device list, and the changes after it.

package bridge

import (
	"context"
	"errors"
	"time"

	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/internal/feedapi"
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
	b.devices, b.devicesSeq = make(map[string]string, len(d.Devices)), d.Seq
	for _, one := range d.Devices {
		b.addDevice(one)
	}
	b.renderACL()
	return nil
}

func (b *Bridge) heard() { b.metrics.sourceSuccess.Set(float64(b.clock.Now().Unix())) }

func (b *Bridge) addDevice(d feedapi.Device) {
	err := b.acl.Allows(d.ID)
	if err == nil {
		err = b.acl.AllowsService(d.Service)
	}
	if err != nil {
		delete(b.devices, d.ID)
		b.metrics.refusals.WithLabelValues(CodeDeviceID).Inc()
		b.log.Warn("device not in the access control list", "error", err)
		return
	}
	b.devices[d.ID] = d.Service
}

func (b *Bridge) renderACL() {
	b.want.ACL, b.want.Services = b.acl.Devices(b.devices), nil
	if b.conf.Broker.ServicesFile != "" {
		b.want.Services = b.acl.Services(b.devices)
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
		b.addDevice(*c.Device)
	} else {
		delete(b.devices, c.Device.ID)
	}
	return true
}

// replaced tells a certificate that has served its time from one that somebody else may hold. That the device has a newer one
// excuses only the first: whoever connected with a stolen key must leave, whatever else the device has.
func replaced(r *feedapi.Revoked) bool {
	return r.Superseded && (r.Reason == "superseded" || r.Reason == "affiliationChanged")
}

// kickFor makes the queue entry, unless there is no session to end: canaries, and a device that only has a newer certificate.
func (b *Bridge) kickFor(c feedapi.Change) (Kick, bool) {
	r := c.Revoked
	if r == nil || replaced(r) || b.acl.Allows(r.Device) != nil || b.store.queued(r.Device, r.Serial) {
		return Kick{}, false
	}
	return Kick{Seq: c.Seq, Device: r.Device, Issuer: r.Issuer, Serial: r.Serial, Reason: r.Reason,
		RevokedAt: r.RevokedAt, Old: c.Seq <= b.store.Synced}, true
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
