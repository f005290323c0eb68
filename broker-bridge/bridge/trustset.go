// The trust set: fetched, validated, and as much of it wanted as may be. What is refused is told to whoever can do something about it.

package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/natal-pki/natal/internal/feedapi"
)

const (
	canaryWait  = 100 * time.Millisecond // between two looks for the CRL with a new canary
	canaryTries = 20

	fetchedAtOnce = 8 // CRLs: a CA may have 256
)

// readTrustSet fetches the set and makes wanted what of it is valid and can be proven. The rest stays as it was until the server
// offers better or the operator approves.
func (b *Bridge) readTrustSet(ctx context.Context) error {
	for try := 0; ; try++ {
		set, refusals, err := b.fetchSet(ctx)
		if err != nil {
			return err
		}
		if set == nil && len(refusals) == 0 {
			b.stale = false
			return nil
		}
		if set != nil {
			fresh, err := b.canaries.ensure(ctx, b.feed, set, false)
			if err != nil {
				b.log.Warn("no canary", "error", err)
			}
			var unproven []*Refusal
			set, unproven = b.provable(set)
			unlisted := slices.ContainsFunc(unproven, func(r *Refusal) bool { return r.Code == CodeCanaryUnlisted })
			if unlisted && (fresh || try > 0) && try < canaryTries {
				if err := sleep(ctx, canaryWait); err != nil {
					return err
				}
				continue
			}
			refusals = append(refusals, unproven...)
		}
		return b.accept(set, refusals)
	}
}

// provable is set with the CRL of before in place of each new one that no canary can prove; a CA that had none is left out. It is nil if
// no CA is left.
func (b *Bridge) provable(set *Set) (*Set, []*Refusal) {
	var unproven []*Refusal
	rules := Rules{Good: b.goodSets()}
	issuers := make([]Issuer, 0, len(set.Issuers))
	for _, i := range set.Issuers {
		if r := b.canaries.lacks(&i); r != nil && i.Seq == set.Seq {
			unproven = append(unproven, r)
			good := rules.good(i.KeyID)
			if good == nil {
				set.LeftOut = append(set.LeftOut, i.Name)
				continue
			}
			i.keepCRLs(good)
		}
		issuers = append(issuers, i)
	}
	if set.Issuers = issuers; len(issuers) == 0 {
		return nil, unproven
	}
	return set, unproven
}

// goodSets are the sets to keep parts of, newest first.
func (b *Bridge) goodSets() []*Set {
	return slices.DeleteFunc([]*Set{b.set, b.current}, func(s *Set) bool { return s == nil })
}

// accept wants set, if there is one, and keeps why it is not all that was offered. What only time or the server's next change can
// cure is not tried again by itself.
func (b *Bridge) accept(set *Set, refusals []*Refusal) error {
	b.report(refusals)
	if set != nil {
		set.Partial = len(refusals) > 0
		b.set, b.want.Bundle = set, set.Bundle()
		b.metrics.setSeq.WithLabelValues("fetched").Set(float64(set.Seq))
	}
	again := slices.IndexFunc(refusals, func(r *Refusal) bool {
		return r.Code == CodeCanaryMissing || r.Code == CodeCanaryUnlisted || r.Code == CodeCRLMissing
	})
	b.stale = again >= 0
	if b.stale {
		return refusals[again]
	}
	return nil
}

// report counts what was refused of the newest offer, and tells log and server if that is news.
func (b *Bridge) report(refusals []*Refusal) {
	before := b.problems()
	b.refusals = refusals
	b.metrics.refused(refusals)
	b.metrics.pendingApproval.Set(number(b.approval() != ""))
	for _, r := range refusals {
		if !slices.Contains(before, r.Error()) {
			b.log.Error("part of the trust set refused, what was good before stays", "code", r.Code, "error", r)
		}
	}
	if !slices.Equal(before, b.problems()) {
		b.ack()
	}
}

// problems are the reasons why the newest offer is not in place as a whole.
func (b *Bridge) problems() []string {
	list := []string{}
	if b.unproven != nil {
		list = append(list, b.unproven.Error())
	}
	for _, r := range b.refusals {
		list = append(list, r.Error())
	}
	return list
}

// approval is the digest of the change of trust that waits for the operator; empty if none does.
func (b *Bridge) approval() string {
	for _, r := range b.refusals {
		var waiting *pendingApproval
		if errors.As(r, &waiting) {
			return waiting.digest
		}
	}
	return ""
}

// fetchSet returns nothing at all if the set is the one we have.
func (b *Bridge) fetchSet(ctx context.Context) (*Set, []*Refusal, error) {
	var have int64
	if b.set != nil && len(b.problems()) == 0 {
		have = b.set.Seq
	}
	ts, err := b.feed.TrustSet(ctx, have)
	if err != nil {
		return nil, nil, fmt.Errorf("trust set: %w", err)
	}
	b.heard()
	if ts == nil {
		return nil, nil, nil
	}
	crls := b.fetchCRLs(ctx, ts.CRLs)
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	set, refusals := Validate(*ts, crls, Rules{
		Now: b.clock.Now(), Last: b.store.Mark, Good: b.goodSets(), Approved: b.store.approvals(),
		MaxCRLEntries: b.conf.MaxCRLEntries, Poll: time.Duration(b.conf.Poll),
	})
	return set, refusals, nil
}

// fetchCRLs returns the CRLs by SHA-256, all that can be had: at the same time, so that one that does not come delays the others once.
func (b *Bridge) fetchCRLs(ctx context.Context, announced []feedapi.CRL) map[string][]byte {
	crls := map[string][]byte{}
	for _, known := range b.goodSets() {
		for _, i := range known.Issuers {
			for _, c := range i.CRLs {
				crls[c.SHA256] = c.Raw
			}
		}
	}
	var wait sync.WaitGroup
	got := make([][]byte, len(announced))
	turn := make(chan struct{}, fetchedAtOnce)
	for n, c := range announced {
		if crls[c.SHA256] == nil {
			wait.Go(func() {
				turn <- struct{}{}
				defer func() { <-turn }()
				var err error
				if got[n], err = b.feed.CRL(ctx, c.SHA256); err != nil {
					b.log.Warn("CRL not delivered", "issuer", c.Issuer, "number", c.Number, "error", err)
				}
			})
		}
	}
	wait.Wait()
	for n, c := range announced {
		if got[n] != nil {
			crls[c.SHA256] = got[n]
		}
	}
	return crls
}
