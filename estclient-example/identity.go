// The loop that keeps the certificate: enrolls when there is none, renews when it is time, and never gives up.

package main

import (
	"context"
	"errors"
	"time"

	"github.com/natal-pki/natal/client"
)

// keepIdentity sends on renewed when there is a certificate to use and each time that there is a new one.
func (a *agent) keepIdentity(ctx context.Context, renewed chan<- struct{}) {
	var backoff client.Backoff
	told := ""
	obtained := false
	for ctx.Err() == nil {
		id, err := a.store.Load()
		if err != nil && !errors.Is(err, client.ErrNoIdentity) {
			a.log.Error("certificate cannot be read", "dir", a.Dir, "error", err)
		}
		if id != nil && told != serialHex(id.Certificate) {
			told = serialHex(id.Certificate)
			a.announce(id, renewed)
		}
		switch {
		case id != nil && a.clock.Now().Before(client.RenewAt(id.Certificate)):
			backoff.Reset()
			a.sleep(ctx, client.RenewAt(id.Certificate))
		case obtained: // a certificate so short-lived that it is due at once must not make a tight loop
			a.sleep(ctx, a.clock.Now().Add(backoff.Next(nil)))
			obtained = false
		default:
			err := a.obtain(ctx, id)
			if obtained = err == nil; err != nil && ctx.Err() == nil {
				wait := backoff.Next(err)
				a.logFailure(id, err, wait)
				a.sleep(ctx, a.clock.Now().Add(wait))
			}
		}
	}
}

func (a *agent) announce(id *client.Identity, renewed chan<- struct{}) {
	a.log.Info("certificate in force", "device", id.Certificate.Subject.CommonName, "serial", serialHex(id.Certificate),
		"not_after", stamp(id.Certificate.NotAfter), "renew_at", stamp(client.RenewAt(id.Certificate)))
	a.status("certificate valid until %s", stamp(id.Certificate.NotAfter))
	select {
	case renewed <- struct{}{}:
	default:
	}
}

// obtain makes one attempt. A server that refuses the certificate (revoked, expired) is asked with the credential
// for a first one, which works after an operator has readmitted the device.
func (a *agent) obtain(ctx context.Context, id *client.Identity) error {
	if id == nil {
		_, err := a.enrollOnce(ctx)
		return err
	}
	_, err := a.renewOnce(ctx)
	if err == nil || !client.Refused(err) || !a.hasCredential() || a.ID == "" && a.BirthCert == "" {
		return err
	}
	if _, enrollErr := a.enrollOnce(ctx); enrollErr == nil {
		return nil
	}
	return err
}

func (a *agent) logFailure(id *client.Identity, err error, wait time.Duration) {
	attributes := []any{"error", err, "retry_in", wait.Round(time.Millisecond)}
	if e := new(client.Error); errors.As(err, &e) {
		attributes = append(attributes, "operation", e.Operation, "status", e.Status, "reason", e.Reason)
	}
	message := "enrollment failed"
	if id != nil {
		message = "renewal failed, the certificate stays in use"
		attributes = append(attributes, "not_after", stamp(id.Certificate.NotAfter))
	}
	a.log.Warn(message, attributes...)
	a.status("%s: %v", message, err)
}

func (a *agent) sleep(ctx context.Context, until time.Time) {
	// Its only error is that ctx has ended, which the loop sees for itself.
	_ = a.clock.SleepUntil(ctx, until)
}
