// run: two loops, one that keeps the certificate and one that uses it, and the word to systemd.

package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
)

func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	publisher, err := a.newPublisher()
	if err != nil {
		return err
	}
	if _, err := a.newClient(); err != nil {
		return err // trust that cannot be read will not get better by itself
	}
	a.notify(daemon.SdNotifyReady)
	defer a.notify(daemon.SdNotifyStopping)

	renewed := make(chan struct{}, 1) // one pending word is enough: the receiver looks at the store
	var wg sync.WaitGroup
	wg.Go(func() { a.keepIdentity(ctx, renewed) })
	err = a.use(ctx, publisher, renewed)
	cancel()
	wg.Wait()
	return err
}

// use waits for the first certificate, then publishes with the one in force, anew after each renewal.
func (a *agent) use(ctx context.Context, p *publisher, renewed <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-renewed:
		}
		if p == nil && a.Once {
			return nil
		}
		if p == nil {
			continue
		}
		for again := true; again; {
			var err error
			if again, err = p.session(ctx, renewed); err != nil {
				return err
			}
		}
		return nil
	}
}

func (a *agent) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		a.log.Warn("systemd was not told", "state", state, "error", err)
	}
}

func (a *agent) status(format string, args ...any) {
	a.notify("STATUS=" + fmt.Sprintf(format, args...))
}
