// Whether the CAs' keys can be used. Tokens are looked at every two seconds; a key file only when it was needed and could not be
// opened: that it is away is not wrong in itself. When a key comes back, what it left unsigned is finished.

package ca

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
)

const (
	keyWatchInterval = 2 * time.Second
	// What was asked of a busy key is finished without its requester after this time, looked for as often.
	leftoverAge = time.Minute
)

// keyWatch remembers why keys cannot be used.
type keyWatch struct {
	mu       sync.Mutex
	failures map[string]error // by CA; none for a key that can be used, as far as is known
	files    map[string]time.Time
	looking  map[string]bool // CAs whose key is being looked at
	back     chan string     // CAs whose key came back
}

// settle notes the outcome of a use of a CA's key. That it is busy says nothing about it. Changes are logged, once.
func (w *keyWatch) settle(a *Authorities, au *authority, err error) {
	if errors.Is(err, keystore.ErrBusy) {
		return
	}
	name := au.row.Name
	w.mu.Lock()
	old := w.failures[name]
	if err == nil {
		delete(w.failures, name)
	} else {
		w.failures[name] = err
	}
	w.mu.Unlock()
	watched := au.watched()
	switch {
	case err != nil && old == nil && watched:
		a.log.Error("the key of a CA cannot be used", "ca", name, "error", err)
	case err == nil && old != nil:
		if watched {
			a.log.Info("the key of a CA can be used again", "ca", name)
		}
		select {
		case w.back <- name:
		default:
		}
	}
}

func (w *keyWatch) failure(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failures[name]
}

// watched: a root's key is away most of the time, and a retired CA signs nothing.
func (au *authority) watched() bool { return au.row.Use != UseRoot && au.row.State != Retired }

// KeyState tells whether the key of a CA can be used.
type KeyState struct {
	Authority string
	Failure   error // nil if it can
}

// Keys returns the state of the keys of all CAs that sign, by name. Left out are roots, whose keys are meant to be away, and key files
// that are away and were not needed.
func (a *Authorities) Keys(ctx context.Context) ([]KeyState, error) {
	list, err := a.keyHolders(ctx)
	if err != nil {
		return nil, err
	}
	var states []KeyState
	for _, au := range list {
		if !au.watched() {
			continue
		}
		failure := a.keyWatch.failure(au.row.Name)
		if failure == nil && keystore.IsFile(au.row.KeyURI) && !a.keyring.holds(au.row.KeyURI) && !a.store.Exists(au.row.KeyURI) {
			continue
		}
		states = append(states, KeyState{au.row.Name, failure})
	}
	return states, nil
}

// KeysReady returns an error that names every key that is needed and cannot be used.
func (a *Authorities) KeysReady(ctx context.Context) error {
	states, err := a.Keys(ctx)
	if err != nil {
		return err
	}
	var all []error
	for _, s := range states {
		if s.Failure != nil {
			all = append(all, fmt.Errorf("the key of CA %s cannot be used: %s", s.Authority, oneLine(s.Failure)))
		}
	}
	return errors.Join(all...)
}

func (r *keyring) holds(uri string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys[uri] != nil && r.keys[uri].key != nil
}

// keyHolders are the CAs that are not retired, by name.
func (a *Authorities) keyHolders(ctx context.Context) ([]*authority, error) {
	if err := a.current(ctx); err != nil {
		return nil, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	var list []*authority
	for _, au := range a.live {
		if au.row.State != Retired {
			list = append(list, au)
		}
	}
	slices.SortFunc(list, func(x, y *authority) int { return strings.Compare(x.row.Name, y.row.Name) })
	return list, nil
}

// RunKeyWatch looks after the keys until ctx ends.
func (a *Authorities) RunKeyWatch(ctx context.Context) error {
	ticker := time.NewTicker(keyWatchInterval)
	defer ticker.Stop()
	leftovers := time.NewTicker(leftoverAge)
	defer leftovers.Stop()
	for {
		list, err := a.keyHolders(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Error("key watch", "error", err)
		}
		for _, au := range list {
			a.lookAt(au)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case name := <-a.keyWatch.back:
			a.keyBack(ctx, name)
		case <-leftovers.C:
			a.finishLeftovers(ctx, "", a.clock.Now().Add(-leftoverAge))
		}
	}
}

// lookAt looks at a CA's key beside everything else: one that hangs delays none but itself.
func (a *Authorities) lookAt(au *authority) {
	w, name, uri := &a.keyWatch, au.row.Name, au.row.KeyURI
	if keystore.IsFile(uri) && !a.fileChanged(name, uri) {
		return
	}
	w.mu.Lock()
	busy := w.looking[name]
	w.looking[name] = true
	w.mu.Unlock()
	if busy {
		return
	}
	go func() {
		defer func() {
			w.mu.Lock()
			delete(w.looking, name)
			w.mu.Unlock()
		}()
		if !keystore.IsFile(uri) {
			a.store.Check(uri)
		}
		a.signer(au) // settles what was found
	}()
}

// fileChanged: a key file that failed is tried again when it is another than at the last try.
func (a *Authorities) fileChanged(name, uri string) bool {
	w := &a.keyWatch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failures[name] == nil {
		delete(w.files, name)
		return false
	}
	var changed time.Time
	if info, err := os.Stat(a.store.Path(uri)); err == nil {
		changed = info.ModTime()
	}
	last, tried := w.files[name]
	w.files[name] = changed
	return !changed.IsZero() && (!tried || !last.Equal(changed))
}

// keyBack does what waited for a key.
func (a *Authorities) keyBack(ctx context.Context, name string) {
	a.finishLeftovers(ctx, name, a.clock.Now())
	select {
	case a.publisher.poke <- struct{}{}:
	default:
	}
}

// finishLeftovers finishes what was left intended before a time, of one CA or of all whose key can be used.
func (a *Authorities) finishLeftovers(ctx context.Context, name string, before time.Time) {
	completed, abandoned, err := a.sweep(ctx, func(r *certificateRow) bool {
		return (name == "" || r.Issuer == name) && moment(r.CreatedAt).Before(before) && a.keyWatch.failure(r.Issuer) == nil
	})
	if err != nil && ctx.Err() == nil {
		a.log.Error("finish certificates", "error", err)
	}
	if completed+abandoned > 0 {
		a.log.Info("certificates left unsigned are finished", "completed", completed, "abandoned", abandoned)
	}
}
