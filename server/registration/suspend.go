// Suspending a device: everything of it is refused, and everything comes back.

package registration

import (
	"context"
	"strconv"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// SuspendDevice holds all certificates of a device that are issued; its code, its birth certificate and repeats of what it asked for are refused,
// and it leaves the brokers, until ResumeDevice. A repeat changes nothing.
func (b *Book) SuspendDevice(ctx context.Context, actor, id string) (EndEntity, error) {
	var issuers []string
	ctx = context.WithoutCancel(ctx)
	err := b.db.Write(ctx, "registration.device_suspend", func(tx *database.Tx) error {
		issuers = nil
		e, err := b.lock(tx, id)
		if err != nil {
			return err
		}
		now := b.clock.Now()
		if _, changed, err := b.change(tx, now, e, eventSuspend, nil); err != nil || !changed {
			return err
		}
		if issuers, err = b.ca.SuspendInTx(tx, now, actor, id); err != nil {
			return err
		}
		b.tell(tx, now, feedapi.DeviceRemoved, b.known(e.Label), id, e.Service)
		return b.append(tx, audit.Entry{Actor: actor, Action: "device_suspended", Object: id, Detail: map[string]string{"generation": strconv.FormatInt(e.Generation, 10)}})
	})
	return b.afterHold(ctx, "suspend device", id, issuers, err)
}

// ResumeDevice is the exact inverse of SuspendDevice: the certificates that the suspension held are valid again; one that was held before stays held, one
// that was revoked meanwhile stays revoked. A repeat changes nothing.
func (b *Book) ResumeDevice(ctx context.Context, actor, id string) (EndEntity, error) {
	var issuers []string
	ctx = context.WithoutCancel(ctx)
	err := b.db.Write(ctx, "registration.device_resume", func(tx *database.Tx) error {
		issuers = nil
		e, err := b.lock(tx, id)
		if err != nil {
			return err
		}
		now := b.clock.Now()
		if _, changed, err := b.change(tx, now, e, eventResume, nil); err != nil || !changed {
			return err
		}
		if issuers, err = b.ca.ResumeInTx(tx, actor, id); err != nil {
			return err
		}
		b.tell(tx, now, feedapi.DeviceAdded, b.known(e.Label), id, e.Service)
		return b.append(tx, audit.Entry{Actor: actor, Action: "device_resumed", Object: id, Detail: map[string]string{"generation": strconv.FormatInt(e.Generation, 10)}})
	})
	return b.afterHold(ctx, "resume device", id, issuers, err)
}

func (b *Book) afterHold(ctx context.Context, what, id string, issuers []string, err error) (EndEntity, error) {
	if err != nil {
		return EndEntity{}, storage(what, err)
	}
	b.changes.Announce()
	b.ca.PublishAfterRevocation(ctx, issuers...)
	return b.Device(ctx, id)
}
