// Stage, apply, prove; and back again if the broker does not do what the set says.
//
// On disk there is at every moment a bundle that was validated, whole. Until the broker has been proven with it, the one before is kept as a
// generation to return to.

package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/natal-pki/natal/internal/fault"
)

const (
	proveTimeout    = 2 * time.Second
	proveTimeoutPer = 4 * time.Microsecond // for each CRL entry

	aclSpacing    = 200 * time.Millisecond // between reloads that only change the ACL
	proofTries    = 3
	firstPenance  = 5 * time.Second // before a bundle that was taken back is tried again
	lastPenance   = 10 * time.Minute
	spacingFactor = 10

	firstServerPenance = time.Minute // the same for a server certificate
	lastServerPenance  = time.Hour
)

// rejection is a bundle that the broker could not be proven with.
type rejection struct {
	sum   string
	count int
	again time.Time
}

// parkedServer is a server certificate that was taken back. It is tried again: the one in its place ends some day.
type parkedServer struct {
	bundle []byte
	count  int
	again  time.Time
}

// pacer spreads reloads. A revocation waits at most as long as the last reload took; a change of the ACL alone waits longer, so that a
// burst of devices becomes one reload.
type pacer struct {
	last   time.Time
	took   time.Duration
	parked time.Time // when what waits may be done; zero if nothing does
}

// park reports whether it is too early, and remembers until when.
func (p *pacer) park(aclOnly bool) bool {
	space := p.took
	if aclOnly {
		space = max(aclSpacing, spacingFactor*p.took)
	}
	if at := p.last.Add(space); time.Now().Before(at) {
		p.parked = at
		return true
	}
	return false
}

// apply makes the broker hold what is wanted, unless it was proven to already.
func (b *Bridge) apply(ctx context.Context) error {
	b.pace.parked = time.Time{}
	target, want, err := b.target()
	if err != nil || target == nil {
		return err
	}
	if b.loaded != nil && want.equal(*b.loaded) {
		if b.recorded(target) {
			return nil
		}
		return b.proven(ctx, target, want) // another number for the same files
	}
	if b.loaded == nil && b.held && b.set == nil && b.want.ACL == nil && b.onDisk(want) {
		return nil // found right at the start, and the server has not said anything yet
	}
	aclOnly := b.loaded != nil && bytes.Equal(want.Bundle, b.loaded.Bundle)
	if b.pace.park(aclOnly) {
		return nil
	}
	probes, err := b.canaries.probes(target)
	if err != nil {
		return err
	}
	if err := b.stage(target, want); err != nil {
		return err
	}
	if err := b.publish(want); err != nil {
		return fmt.Errorf("write the broker's files: %w", err)
	}
	b.metrics.setSeq.WithLabelValues("published").Set(float64(target.Seq))
	outcomes, err := b.reloadAndProve(ctx, target, probes)
	if err != nil {
		return err
	}
	if !allRight(outcomes) {
		return b.takeBack(ctx, want, outcomes)
	}
	return b.proven(ctx, target, want)
}

func (b *Bridge) onDisk(want Material) bool {
	disk, err := b.broker.Published()
	return err == nil && want.equal(disk)
}

// target is what to work towards: what is wanted, but with the proven bundle while the wanted one does penance.
func (b *Bridge) target() (*Set, Material, error) {
	if b.parked != nil && b.want.Server == nil && !time.Now().Before(b.parked.again) {
		b.want.Server = b.parked.bundle
	}
	target, want := b.set, b.want
	penance := b.rejected != nil && fingerprint(want.Bundle) == b.rejected.sum && time.Now().Before(b.rejected.again)
	if target == nil || penance {
		target = b.current
		good, err := b.store.goodBundle()
		if err != nil {
			return nil, want, err
		}
		want.Bundle = good
	}
	if target == nil || want.Bundle == nil {
		return nil, want, nil
	}
	return target, want, nil
}

// stage keeps the bundle under the next number, unless it is the proven one.
func (b *Bridge) stage(target *Set, want Material) error {
	good, err := b.store.goodBundle()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if bytes.Equal(good, want.Bundle) {
		return nil
	}
	return fault.Step("bridge.generation", func() error {
		return b.store.writeGeneration(b.store.Good+1, want.Bundle)
	})
}

// publish remembers the server certificate that a new one takes the place of.
func (b *Bridge) publish(want Material) error {
	if want.Server != nil {
		disk, err := b.broker.Published()
		if err != nil {
			return err
		}
		if !bytes.Equal(disk.Server, want.Server) {
			b.lastServer = disk.Server
		}
	}
	return b.broker.Publish(want)
}

func (b *Bridge) reloadAndProve(ctx context.Context, target *Set, probes []Probe) ([]Outcome, error) {
	limited, cancel := context.WithTimeout(ctx, settleTime+proofBudget(target))
	defer cancel()
	took, err := b.broker.Reload(limited)
	if err != nil {
		if errors.Is(err, ErrBrokerDown) {
			b.metrics.brokerUp.Set(0)
		}
		return nil, fmt.Errorf("reload the broker: %w", err)
	}
	start := time.Now()
	outcomes := b.prove(ctx, target, probes)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	b.pace.last, b.pace.took = time.Now(), took+time.Since(start)
	b.metrics.reload.Observe(b.pace.took.Seconds())
	return outcomes, nil
}

// proofBudget is how long the broker may take: it verifies a CRL's signature over the whole list, at each load and each connection.
func proofBudget(s *Set) time.Duration {
	return proveTimeout + time.Duration(s.Entries())*proveTimeoutPer
}

// prove probes again while all that went wrong may be bad luck: no answer in time, or an alert that got lost.
func (b *Bridge) prove(ctx context.Context, set *Set, probes []Probe) []Outcome {
	var outcomes []Outcome
	for range proofTries {
		limited, cancel := context.WithTimeout(ctx, proofBudget(set))
		outcomes = b.broker.Prove(limited, probes)
		cancel()
		certain := slices.ContainsFunc(outcomes, func(o Outcome) bool {
			return !o.Right() && o.Verdict != Unknown && (o.Verdict != Refused || o.Alert != 0)
		})
		if allRight(outcomes) || certain || allDown(outcomes) || ctx.Err() != nil {
			break
		}
	}
	b.metrics.probed(b.conf.Broker.Listener, outcomes)
	for _, o := range outcomes {
		if !o.Right() {
			b.log.Error("probe", "probe", o.Probe.Name, "want", o.Probe.Want.String(), "got", o.Verdict.String(), "alert", o.Alert, "error", o.Err)
		}
	}
	return outcomes
}

// proven is the end of a good change: now, and not before, sessions are ended.
func (b *Bridge) proven(ctx context.Context, target *Set, want Material) error {
	changed := b.loaded == nil || !bytes.Equal(b.loaded.Bundle, want.Bundle)
	b.loaded, b.current, b.held = &want, target, true
	b.acquit(target, want)
	b.metrics.proven(target)
	b.measureRefused()
	done, kickErr := b.kickDue(ctx)
	b.failed(taskKicks, kickErr)
	if !changed && len(done) == 0 && b.recorded(target) {
		return nil
	}
	if changed {
		b.metrics.generations.Inc()
	}
	good, err := b.store.goodBundle()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err = fault.Step("bridge.verified", func() error {
		return b.update("verified", func(s *State) {
			if !bytes.Equal(good, want.Bundle) {
				s.Good++
			}
			s.Since, s.Verified, s.VerifiedAt = b.cursor, target.Seq, b.clock.Now()
			if !target.Partial {
				s.Whole = target.Seq
			}
			s.Mark = target.Mark().after(s.Mark)
			s.Kicks = without(s.Kicks, done)
		})
	})
	if err != nil {
		b.doubt() // the next proof writes it again
		return fmt.Errorf("remember the proven set: %w", err)
	}
	b.log.Info("broker proven", "seq", target.Seq, "entries", target.Entries(), "devices", len(b.devices), "kicked", len(done),
		"took", b.pace.took)
	b.ack()
	return nil
}

// acquit forgets what stood against a set and a server certificate that the broker was proven with. The certificate before is then
// nothing to go back to any more, it may have ended.
func (b *Bridge) acquit(target *Set, want Material) {
	if target == b.set {
		b.rejected = nil
	}
	if want.Server != nil {
		b.parked, b.lastServer = nil, nil
	}
	if b.rejected == nil && b.parked == nil {
		b.unproven = nil
	}
}

// recorded reports whether the state says already that target was proven.
func (b *Bridge) recorded(target *Set) bool {
	return b.store.Verified == target.Seq && (target.Partial || b.store.Whole == target.Seq)
}

// takeBack returns to the last proven bundle and server certificate. The access control list stays: the broker keeps its old rules if it
// cannot read the new ones.
func (b *Bridge) takeBack(ctx context.Context, want Material, outcomes []Outcome) error {
	if failOpen(outcomes) {
		b.log.Error("THE BROKER ACCEPTS WHAT IT MUST REFUSE")
	}
	b.doubt()
	b.unproven = refuse(CodeProof, "%s", wrongProbes(outcomes))
	b.metrics.refusals.WithLabelValues(CodeProof).Inc()
	b.ack()
	good, err := b.store.goodBundle()
	if err != nil {
		return errors.Join(b.unproven, err)
	}
	var back Material
	if good != nil && !bytes.Equal(good, want.Bundle) {
		back.Bundle = good
		b.reject(want.Bundle)
	}
	if want.Server != nil && b.lastServer != nil && !bytes.Equal(b.lastServer, want.Server) {
		back.Server, b.want.Server = b.lastServer, nil
		b.park(want.Server)
	}
	if back.Bundle == nil && back.Server == nil {
		return fmt.Errorf("nothing to go back to: %w", b.unproven)
	}
	b.metrics.rollbacks.Inc()
	b.log.Error("back to what was proven last", "seq", b.store.Verified, "error", b.unproven)
	return b.restore(ctx, good, back)
}

// restore puts back in place and proves the broker with it.
func (b *Bridge) restore(ctx context.Context, good []byte, back Material) error {
	previous, err := b.readGood(good)
	if err != nil {
		return err
	}
	probes, err := b.canaries.probes(previous)
	if err != nil {
		b.log.Warn("the proven set cannot be proven again", "error", err)
	}
	if err := b.broker.Publish(back); err != nil {
		return fmt.Errorf("write the broker's files: %w", err)
	}
	b.current = previous
	outcomes, err := b.reloadAndProve(ctx, previous, probes)
	if err != nil {
		return err
	}
	b.held = allRight(outcomes)
	if !b.held {
		return fmt.Errorf("also after going back: %s", wrongProbes(outcomes))
	}
	return nil
}

func (b *Bridge) reject(bundle []byte) {
	sum, count := fingerprint(bundle), 0
	if b.rejected != nil && b.rejected.sum == sum {
		count = b.rejected.count + 1
	}
	b.rejected = &rejection{sum: sum, count: count, again: time.Now().Add(min(firstPenance<<min(count, 10), lastPenance))}
}

func (b *Bridge) park(server []byte) {
	count := 0
	if b.parked != nil && bytes.Equal(b.parked.bundle, server) {
		count = b.parked.count + 1
	}
	b.parked = &parkedServer{bundle: server, count: count, again: time.Now().Add(min(firstServerPenance<<min(count, 10), lastServerPenance))}
}

func wrongProbes(outcomes []Outcome) string {
	var b bytes.Buffer
	for _, o := range outcomes {
		if !o.Right() {
			fmt.Fprintf(&b, "%s was %s (alert %d); ", o.Probe.Name, o.Verdict, o.Alert)
		}
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("; ")))
}
