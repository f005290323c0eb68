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

// waves is how many groups the shards of a CA are reissued in, spread over the interval: not all at one time, and not each at a time of its own,
// because every time costs a broker a reload.
const waves = 4

// RunCRLSchedule issues CRLs until ctx ends. Several servers on one database may all run it.
func (a *Authorities) RunCRLSchedule(ctx context.Context) error {
	for ctx.Err() == nil {
		next, err := a.issueDueCRLs(ctx)
		if err != nil {
			a.log.Error("crl schedule", "error", err)
			next = earlier(next, a.clock.Now().Add(retryAfter))
		}
		wait, cancel := context.WithCancel(ctx)
		watched := make(chan struct{})
		go func() {
			select {
			case <-a.publisher.poke: // a CRL failed after a revocation
			case <-wait.Done():
			}
			cancel()
			close(watched)
		}()
		a.clock.SleepUntil(wait, next)
		cancel()
		<-watched
	}
	return nil
}

// issueDueCRLs issues every CRL that is due and returns when the next one is.
func (a *Authorities) issueDueCRLs(ctx context.Context) (next time.Time, err error) {
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
		soonest, issue := a.issueDue(ctx, info.Name)
		if issue != nil { // the other CAs do not wait for this one
			err = errors.Join(err, fmt.Errorf("crl of %s not issued: %w", info.Name, issue))
		}
		if !soonest.IsZero() {
			next = earlier(next, soonest)
		}
	}
	return next, err
}

// issueDue issues the CRLs of one CA that are due and returns when the next one is; the zero time if that is not known.
func (a *Authorities) issueDue(ctx context.Context, name string) (soonest time.Time, err error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return time.Time{}, err
	}
	due, soonest, err := a.dueShards(ctx, au)
	if err == nil && len(due) > 0 {
		_, err = a.requestCRLs(ctx, "server", name, false)
	}
	return soonest, err
}

// dueShards returns the shards of a CA whose CRL is missing, old, or lacks a revocation, and when the first of the others is due.
func (a *Authorities) dueShards(ctx context.Context, au *authority) (due []int, soonest time.Time, err error) {
	set, err := a.revoked(ctx, au)
	if err != nil {
		return nil, time.Time{}, err
	}
	rows, err := a.newestCRLs(ctx, au.row.Name)
	if err != nil {
		return nil, time.Time{}, err
	}
	published := map[int]*crlRow{}
	for i := range rows {
		published[int(rows[i].Shard)] = &rows[i]
	}
	now := a.clock.Now()
	for shard := range au.shards() {
		r := published[shard]
		if r == nil || set.newest(shard) > r.Seq {
			due = append(due, shard)
			continue
		}
		at := au.reissueAt(shard, moment(r.IssuedAt))
		if !at.After(now) {
			due = append(due, shard)
		} else if soonest.IsZero() || at.Before(soonest) {
			soonest = at
		}
	}
	return due, soonest, nil
}

// reissueAt is when a shard's CRL of a certain time is replaced at the latest: within the interval, shards of one wave at one time.
func (au *authority) reissueAt(shard int, issued time.Time) time.Time {
	interval := time.Duration(au.row.CRLInterval) * time.Millisecond
	if au.shards() == 1 {
		return issued.Add(interval)
	}
	wave := time.Duration(shard%waves) * interval / waves
	return issued.Add(interval - wave).Truncate(interval).Add(wave)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
