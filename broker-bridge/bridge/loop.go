// The loop. One goroutine owns the state, the files and the broker; the others bring it news: the long poll, the renewal of
// certificates, and clocks.

package bridge

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/feedapi"
)

const (
	firstRetry     = 500 * time.Millisecond
	lastRetry      = 30 * time.Second
	lastLocalRetry = 3 * time.Second
)

// Tasks that may fail and are then tried again.
const (
	taskDevices  = "devices"
	taskChanges  = "changes"
	taskTrustSet = "trust-set"
	taskBroker   = "broker"
	taskKicks    = "kicks"
)

// Bridge keeps one broker in step. Make it with New, use it with Run, then Close.
type Bridge struct {
	conf     *Config
	clock    *clock.Clock
	log      *slog.Logger
	metrics  *Metrics
	feed     *Feed
	broker   Broker
	store    *store
	canaries *canaries
	acl      *ACL

	// Of the loop alone.
	cursor     int64             // changes have been read up to here
	devices    map[string]string // services by device id: what the ACL is made from; nil until it was read once
	devicesSeq int64
	set        *Set      // last valid set
	want       Material  // what the broker should hold: of set, devices and the last renewal
	current    *Set      // what the broker was proven to hold
	loaded     *Material // what it was proven with in this run; nil: not yet, or it has to be done again
	held       bool      // the broker was proven to hold current, and nothing has cast doubt on it since
	lastServer []byte    // the server certificate before want.Server, until that is proven
	rejected   *rejection
	parked     *parkedServer
	refusals   []*Refusal // why parts of the newest offer are not in set
	unproven   *Refusal   // why set was taken back; nil: it was not
	stale      bool       // the trust set must be fetched
	broken     failures
	pace       pacer

	// Between goroutines.
	news    chan pollResult
	renewed chan []byte
	acks    chan feedapi.Ack
	status  statusBox
	wait    sync.WaitGroup
}

// Parts are what a Bridge works with.
type Parts struct {
	Config  *Config
	Clock   *clock.Clock
	Log     *slog.Logger
	Metrics *Metrics
	Feed    *Feed
	Broker  Broker
}

type pollResult struct {
	changes feedapi.Changes
	err     error
}

// New opens the state directory and everything in it.
func New(p Parts) (*Bridge, error) {
	acl, err := p.Config.accessList()
	if err != nil {
		return nil, err
	}
	st, err := openStore(p.Config.State)
	if err != nil {
		return nil, err
	}
	if err := st.tidy(p.Config.Broker); err != nil {
		st.close()
		return nil, err
	}
	cans, err := openCanaries(p.Config.State, p.Clock)
	if err != nil {
		st.close()
		return nil, err
	}
	return &Bridge{
		conf: p.Config, clock: p.Clock, log: p.Log, metrics: p.Metrics, feed: p.Feed, broker: p.Broker,
		store: st, canaries: cans, acl: acl,
		cursor: st.Since, stale: true,
		news: make(chan pollResult, 1), renewed: make(chan []byte, 1), acks: make(chan feedapi.Ack, 1),
	}, nil
}

// Close releases the state directory.
func (b *Bridge) Close() error { return b.store.close() }

// ServerCertificate hands the loop a new server certificate for the broker (key, leaf, chain; PEM). It takes the place
// of one that the loop has not put in place yet.
func (b *Bridge) ServerCertificate(bundle []byte) {
	for {
		select {
		case b.renewed <- bundle:
			return
		case <-b.renewed:
		}
	}
}

// Run works until ctx ends. Nothing that the server or the broker does ends it.
func (b *Bridge) Run(ctx context.Context) error {
	defer b.wait.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.wait.Go(func() { b.acknowledge(ctx) })

	b.recover(ctx)
	floor := time.NewTimer(b.floor())
	prove := time.NewTimer(time.Duration(b.conf.ProveEvery))
	retry := time.NewTimer(0)
	polling := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-b.news:
			polling = false
			b.changed(r)
		case b.want.Server = <-b.renewed:
		case <-floor.C:
			b.stale = true
			floor.Reset(b.floor())
		case <-prove.C:
			b.inspect(ctx)
			prove.Reset(time.Duration(b.conf.ProveEvery))
		case <-retry.C:
		}
		if b.devices == nil && b.broken.due(taskDevices) {
			b.failed(taskDevices, b.readDevices(ctx))
		}
		if !polling && b.devices != nil && b.broken.due(taskChanges) {
			polling = true
			b.broken.hold(taskChanges)
			since := b.cursor
			b.wait.Go(func() { b.news <- b.poll(ctx, since) })
		}
		b.step(ctx)
		b.publishStatus()
		retry.Reset(b.broken.next(b.waiting()...))
	}
}

// step brings the broker to what is known.
func (b *Bridge) step(ctx context.Context) {
	if b.stale && b.broken.due(taskTrustSet) {
		b.failed(taskTrustSet, b.readTrustSet(ctx))
	}
	if b.broken.due(taskBroker) {
		b.failed(taskBroker, b.apply(ctx))
	}
	if b.broken.due(taskKicks) {
		b.failed(taskKicks, b.kickAll(ctx))
	}
}

// waiting are the moments at which something that was put off may be done.
func (b *Bridge) waiting() []time.Time {
	var at []time.Time
	if !b.pace.parked.IsZero() {
		at = append(at, b.pace.parked)
	}
	if b.rejected != nil && fingerprint(b.want.Bundle) == b.rejected.sum {
		at = append(at, b.rejected.again)
	}
	if b.parked != nil && b.want.Server == nil {
		at = append(at, b.parked.again)
	}
	return at
}

func (b *Bridge) floor() time.Duration {
	d := time.Duration(b.conf.Poll)
	return d - rand.N(d/5)
}

// failed keeps account of a task that has to be done again, and logs it.
func (b *Bridge) failed(task string, err error) {
	if b.broken.note(task, err) && !errors.Is(err, context.Canceled) {
		var r *Refusal
		switch {
		case err == nil:
			b.log.Info("works again", "task", task)
		case errors.As(err, &r):
			b.log.Warn("refused", "task", task, "code", r.Code, "error", err)
		default:
			b.log.Warn("failed, will try again", "task", task, "error", err)
		}
	}
}

func (b *Bridge) update(name string, change func(*State)) error {
	err := b.store.update(change)
	if err != nil {
		b.log.Error("state not written", "step", name, "error", err)
	}
	return err
}

// acknowledge tells the server how far the broker is, off the path of a revocation. Only the latest word counts.
func (b *Bridge) acknowledge(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-b.acks:
			if err := b.feed.Ack(ctx, a); err != nil && ctx.Err() == nil {
				b.log.Warn("acknowledgement not delivered", "error", err)
			}
		}
	}
}

func (b *Bridge) ack() {
	a := feedapi.Ack{Seq: b.store.Whole, Broker: b.conf.Broker.Name, VerifiedAt: b.store.VerifiedAt, Error: strings.Join(b.problems(), "; "), Holds: b.store.Mark.holds()}
	for {
		select {
		case b.acks <- a:
			return
		case <-b.acks:
		}
	}
}

// failures remembers which tasks failed, and when each may be tried again: 0.5 s to 30 s with full jitter.
type failures struct {
	tasks map[string]failure
}

type failure struct {
	text  string
	count int
	again time.Time
}

// note returns true if this is news: the first failure, another one, or the end of it.
func (f *failures) note(task string, err error) bool {
	old, failing := f.tasks[task]
	if err == nil {
		delete(f.tasks, task)
		return failing
	}
	if f.tasks == nil {
		f.tasks = map[string]failure{}
	}
	last := lastRetry
	if task == taskBroker || task == taskKicks {
		last = lastLocalRetry
	}
	limit := min(firstRetry<<min(old.count, 10), last)
	f.tasks[task] = failure{text: err.Error(), count: old.count + 1, again: time.Now().Add(limit/4 + rand.N(limit))}
	return !failing || old.text != err.Error()
}

// hold keeps a task that is under way from being due.
func (f *failures) hold(task string) {
	if t, ok := f.tasks[task]; ok {
		t.again = time.Now().Add(time.Hour)
		f.tasks[task] = t
	}
}

// due reports whether the task did not fail lately.
func (f *failures) due(task string) bool { return !time.Now().Before(f.tasks[task].again) }

// next is the time until something is due: the earliest retry, one of the others, or an hour.
func (f *failures) next(others ...time.Time) time.Duration {
	d := time.Hour
	for _, at := range others {
		d = min(d, time.Until(at))
	}
	for _, t := range f.tasks {
		d = min(d, time.Until(t.again))
	}
	return max(d, time.Millisecond)
}
