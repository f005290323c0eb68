// The schedule of CRLs: every CA whose key is here gets a new one in time, and one at once when a crash came between a revocation and its CRL.

package ca

import (
	"context"
	"fmt"
	"time"
)

// retryAfter is how long the schedule waits after a failure.
const retryAfter = 30 * time.Second

// lookEvery is how often the schedule looks at each CA at least: others may have revoked, retired or made one.
const lookEvery = time.Minute

// waves is how many groups the shards of a CA are reissued in, spread over the interval: not all at one time, and not each at a time of its own,
// because every time costs a broker a reload.
const waves = 4

// schedule knows of each CA when its next CRL is due, or that one is under way.
type schedule struct {
	next  map[string]time.Time
	busy  map[string]bool // true: to be looked at again as soon as it is done
	ended chan outcome
}

type outcome struct {
	name string
	next time.Time
}

// RunCRLSchedule issues CRLs until ctx ends, those of one CA beside those of the others: a token that is slow or hangs delays no CRL but its
// own. Several servers on one database may all run it.
func (a *Authorities) RunCRLSchedule(ctx context.Context) error {
	s := schedule{next: map[string]time.Time{}, busy: map[string]bool{}, ended: make(chan outcome)}
	for ctx.Err() == nil {
		next, err := a.beginDueCRLs(ctx, &s)
		if err != nil {
			a.log.Error("crl schedule", "error", err)
			next = earlier(next, a.clock.Now().Add(retryAfter))
		}
		wait, cancel := context.WithCancel(ctx)
		watched := make(chan struct{})
		go func() {
			select {
			case <-a.publisher.poke: // a CRL failed after a revocation
				s.lookAgain()
			case o := <-s.ended:
				s.end(o)
			case <-wait.Done():
			}
			cancel()
			close(watched)
		}()
		a.clock.SleepUntil(wait, next)
		cancel()
		<-watched
	}
	for len(s.busy) > 0 {
		s.end(<-s.ended)
	}
	return nil
}

func (s *schedule) lookAgain() {
	clear(s.next)
	for name := range s.busy {
		s.busy[name] = true
	}
}

func (s *schedule) end(o outcome) {
	if again := s.busy[o.name]; !again {
		s.next[o.name] = o.next
	}
	delete(s.busy, o.name)
}

// beginDueCRLs begins with every CA whose time has come and returns when the next one's does.
func (a *Authorities) beginDueCRLs(ctx context.Context, s *schedule) (next time.Time, err error) {
	now := a.clock.Now()
	next = now.Add(lookEvery)
	list, err := a.List(ctx)
	if err != nil {
		return next, err
	}
	for _, info := range list {
		name := info.Name
		if _, busy := s.busy[name]; busy {
			continue
		}
		if at := s.next[name]; at.After(now) && !at.After(now.Add(lookEvery)) { // a clock that was set back does not make it wait
			next = earlier(next, at)
			continue
		}
		s.busy[name] = false
		go func() {
			at, err := a.issueDueCRLs(ctx, info)
			if err != nil && ctx.Err() == nil {
				a.log.Error("crl schedule", "ca", name, "error", err)
				at = a.clock.Now().Add(retryAfter)
			}
			s.ended <- outcome{name, at}
		}()
	}
	return next, nil
}

// issueDueCRLs issues every CRL of a CA that is due and returns when to look at it next.
func (a *Authorities) issueDueCRLs(ctx context.Context, info Info) (next time.Time, err error) {
	next = a.clock.Now().Add(lookEvery)
	if info.Certificate == nil || !info.KeyOnline {
		return next, nil
	}
	if info.State == Retired { // but for a last CRL that a crash kept it from, it has signed all it ever will
		if _, err := a.IssueCRL(ctx, "server", info.Name); err != nil {
			return next, fmt.Errorf("last crl of %s not issued: %w", info.Name, err)
		}
		return next, nil
	}
	au, err := a.authority(ctx, info.Name)
	if err != nil {
		return next, err
	}
	due, soonest, err := a.dueShards(ctx, au)
	if err != nil {
		return next, err
	}
	if !soonest.IsZero() {
		next = earlier(next, soonest)
	}
	if len(due) > 0 {
		if _, err := a.requestCRLs(ctx, "server", info.Name, false); err != nil {
			return next, fmt.Errorf("crl of %s not issued: %w", info.Name, err)
		}
	}
	return next, nil
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
