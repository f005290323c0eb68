// Waiting for a change. Changes committed by this process announce themselves; those of another server on
// the same database are seen by looking.

package feed

import (
	"context"
	"time"
)

// lookEvery bounds how late a change of another server is noticed.
const lookEvery = 250 * time.Millisecond

// await calls arrived until it returns true or an error, the caller has gone, wait is over or the server stops.
func (f *Feed) await(ctx context.Context, wait time.Duration, arrived func(ctx context.Context) (bool, error)) error {
	over := time.NewTimer(wait)
	defer over.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		announced := f.changes.Announced() // before the look, so that nothing falls between
		if done, err := arrived(ctx); done || err != nil {
			return err
		}
		select {
		case <-announced:
		case <-look.C:
		case <-over.C:
			return nil
		case <-f.cfg.Stop:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
