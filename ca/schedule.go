// The schedule of CRLs: every CA whose key is here gets a new one in time, and one at once when a crash came between a revocation and its CRL.

package ca

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// retryAfter is how long the schedule waits after a failure.
const retryAfter = 30 * time.Second

// startSlack is how far before the last CRL a revocation may lie that a new start, or a new try after a failure, publishes once more: its
// transaction may have been committed after the CRL had read the records, and the crash then kept it from asking for the next.
const startSlack = time.Minute

// RunCRLSchedule issues CRLs until ctx ends. Several servers on one database may all run it.
func (a *Authorities) RunCRLSchedule(ctx context.Context) error {
	slack := startSlack
	for ctx.Err() == nil {
		next, err := a.issueDueCRLs(ctx, slack)
		slack = 0
		if err != nil {
			a.log.Error("crl schedule", "error", err)
			next, slack = earlier(next, a.clock.Now().Add(retryAfter)), startSlack
		}
		wait, cancel := context.WithCancel(ctx)
		poked := make(chan bool, 1)
		go func() {
			select {
			case <-a.publisher.poke:
				poked <- true
			case <-wait.Done():
				poked <- false
			}
			cancel()
		}()
		a.clock.SleepUntil(wait, next)
		cancel()
		if <-poked { // a CRL failed after a revocation: as at a start
			slack = startSlack
		}
	}
	return nil
}

// issueDueCRLs issues every CRL that is due and returns when the next one is.
func (a *Authorities) issueDueCRLs(ctx context.Context, slack time.Duration) (next time.Time, err error) {
	now := a.clock.Now()
	next = now.Add(time.Minute)
	list, err := a.List(ctx)
	if err != nil {
		return next, err
	}
	for _, info := range list {
		if info.Certificate == nil || !info.KeyOnline {
			continue
		}
		if info.State == Retired { // but for a last CRL that a crash kept it from, it has signed all it ever will
			if _, issue := a.IssueCRL(ctx, "server", info.Name); issue != nil {
				err = errors.Join(err, fmt.Errorf("last crl of %s not issued: %w", info.Name, issue))
			}
			continue
		}
		due, lookErr := a.crlDue(ctx, info, slack)
		if lookErr != nil {
			return next, lookErr
		}
		if !due.After(now) {
			if _, issue := a.IssueCRL(ctx, "server", info.Name); issue != nil {
				err = errors.Join(err, fmt.Errorf("crl of %s not issued: %w", info.Name, issue))
			}
			continue
		}
		next = earlier(next, due)
	}
	return next, err
}

func (a *Authorities) crlDue(ctx context.Context, info Info, slack time.Duration) (time.Time, error) {
	if info.CRLNumber == 0 {
		return time.Time{}, nil
	}
	crl, err := a.CurrentCRL(ctx, info.Name)
	if err != nil {
		return time.Time{}, err
	}
	var pending int64
	err = a.db.Get(ctx, &pending, "SELECT COUNT(*) FROM certificates WHERE issuer = ? AND revoked_at > 0 AND revoked_at > ?", info.Name, crl.IssuedAt.Add(-slack).UnixMilli())
	if err != nil {
		return time.Time{}, unavailable("look for unpublished revocations", err)
	}
	if pending > 0 {
		return time.Time{}, nil
	}
	return crl.IssuedAt.Add(info.CRLInterval), nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
