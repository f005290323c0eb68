// Making and publishing CRLs: numbered by the database, complete, and published in the order of their numbers (INV-7), by any number of servers.

package ca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/internal/feedapi"
)

// Of each shard the newest crlsKept CRLs stay fetchable by their hash, but of large ones only as many as fit into keptBytes for the CA,
// and never fewer than crlsKeptAtLeast: a bridge may be in the middle of fetching one.
const (
	crlsKept        = 20
	crlsKeptAtLeast = 3
	keptBytes       = 64 << 20
)

// partsAWrite bounds how long the writer is busy with parts of a CRL while others want to record certificates.
const partsAWrite = 4

// publisher makes the CRLs of one CA at a time: revocations that come while they are being made share the next.
type publisher struct {
	mu      sync.Mutex
	running map[string]*publication // by CA
	poke    chan struct{}
	sets    map[string]*revokedSet // by CA
}

type publication struct {
	done  chan struct{}
	next  *publication // asked for while this one was under way
	actor string
	all   bool // every shard, not only those that are due
	crl   CRL
	err   error
}

// IssueCRL publishes CRLs of all shards of a CA, which list everything revoked before the call, and returns the last one, without its DER.
func (a *Authorities) IssueCRL(ctx context.Context, actor, name string) (CRL, error) {
	return a.requestCRLs(ctx, actor, name, true)
}

func (a *Authorities) requestCRLs(ctx context.Context, actor, name string, all bool) (CRL, error) {
	p := &a.publisher
	p.mu.Lock()
	running := p.running[name]
	mine := &publication{done: make(chan struct{}), actor: actor, all: all}
	switch {
	case running == nil:
		p.running[name] = mine
		go a.publish(context.WithoutCancel(ctx), name, mine)
	case running.next == nil:
		running.next = mine
	default:
		mine = running.next
		mine.all = mine.all || all
	}
	p.mu.Unlock()
	select {
	case <-mine.done:
		return mine.crl, mine.err
	case <-ctx.Done():
		return CRL{}, ctx.Err()
	}
}

func (a *Authorities) publish(ctx context.Context, name string, job *publication) {
	for job != nil {
		job.crl, job.err = a.makeCRLs(ctx, job.actor, name, job.all)
		a.publisher.mu.Lock()
		next := job.next
		if next == nil {
			delete(a.publisher.running, name)
		} else {
			a.publisher.running[name] = next
		}
		a.publisher.mu.Unlock()
		close(job.done)
		job = next
	}
}

// PublishAfterRevocation issues the CRLs of the CAs named that lack a revocation, none of them waiting for another's key. A failure does not undo
// the revocation, which counts already: it is logged, and the schedule tries again.
func (a *Authorities) PublishAfterRevocation(ctx context.Context, names ...string) {
	var wait sync.WaitGroup
	for _, name := range names {
		wait.Go(func() {
			if _, err := a.requestCRLs(ctx, "server", name, false); err != nil {
				a.log.Error("crl not issued after a revocation", "ca", name, "error", err)
				select {
				case a.publisher.poke <- struct{}{}:
				default:
				}
			}
		})
	}
	wait.Wait()
}

// makeCRLs makes the CRLs of all shards, or of those that are due, and returns the one with the highest number.
func (a *Authorities) makeCRLs(ctx context.Context, actor, name string, all bool) (CRL, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return CRL{}, err
	}
	if au.certificate == nil {
		return CRL{}, refuse(Unavailable, "ca_waiting", "CA %q waits for its certificate", name)
	}
	if done, err := a.signedLastCRL(ctx, au); done || err != nil {
		crl, readErr := a.highestCRL(ctx, name)
		return crl, errors.Join(err, readErr)
	}
	if err := a.checkClock(ctx); err != nil {
		return CRL{}, err
	}
	key, err := a.signer(au)
	if err != nil {
		return CRL{}, err
	}
	key = keystore.Patient(key) // brokers refuse everybody without it
	shards, _, err := a.dueShards(ctx, au)
	if err != nil {
		return CRL{}, err
	}
	if all {
		shards = make([]int, au.shards())
		for i := range shards {
			shards[i] = i
		}
	}
	var failed error
	for _, shard := range shards {
		failed = errors.Join(failed, a.makeCRL(ctx, actor, au, key, shard))
	}
	if len(shards) > 0 {
		a.changes.Announce()
	}
	if failed != nil {
		return CRL{}, firstOf(failed)
	}
	return a.highestCRL(ctx, name)
}

// highestCRL is the newest CRL of all shards of a CA.
func (a *Authorities) highestCRL(ctx context.Context, name string) (CRL, error) {
	rows, err := a.newestCRLs(ctx, name)
	if err == nil && len(rows) == 0 {
		err = refuse(NotFound, "unknown_crl", "CA %q has no CRL", name)
	}
	if err != nil {
		return CRL{}, err
	}
	newest := slices.MaxFunc(rows, func(x, y crlRow) int { return int(x.Number - y.Number) })
	return newest.crl(), nil
}

// firstOf is the first of joined errors: one shard's reason is everybody's.
func firstOf(err error) error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
		return joined.Unwrap()[0]
	}
	return err
}

// makeCRL publishes a CRL of one shard.
func (a *Authorities) makeCRL(ctx context.Context, actor string, au *authority, key crypto.Signer, shard int) error {
	var number int64
	err := a.db.Write(ctx, "ca.crl_number", func(tx *database.Tx) error {
		if _, err := tx.Exec("UPDATE authorities SET crl_number = crl_number + 1 WHERE name = ?", au.row.Name); err != nil {
			return err
		}
		return tx.Get(&number, "SELECT crl_number FROM authorities WHERE name = ?", au.row.Name)
	})
	if err != nil {
		return unavailable("reserve CRL number", err)
	}
	// The records are read after the number is taken: whoever publishes a higher number has seen at least what was revoked before this call.
	for settled := false; !settled; {
		made, basis, err := a.signCRL(ctx, au, key, shard, number)
		if err != nil {
			return err
		}
		if err := a.storeParts(ctx, made); err != nil {
			return err
		}
		var published bool
		if settled, published, err = a.storeCRL(ctx, actor, au, made, basis); err != nil {
			return err
		}
		if published {
			a.contents.put(made)
			a.pruneParts(ctx, made)
		}
	}
	return nil
}

// signCRL makes a CRL that continues the newest published one of its shard, whose number is basis.
func (a *Authorities) signCRL(ctx context.Context, au *authority, key crypto.Signer, shard int, number int64) (made *content, basis int64, err error) {
	set, err := a.revoked(ctx, au)
	if err != nil {
		return nil, 0, err
	}
	now := a.clock.Now()
	last, err := a.newestCRL(ctx, au.row.Name, shard)
	if err != nil && !isKind(err, NotFound) {
		return nil, 0, err
	}
	previous, thisUpdate := moment(last.ThisUpdate), now.Add(-crlBackdate).Truncate(time.Second)
	if previous.After(now) {
		return nil, 0, &Error{Kind: Unavailable, Rule: "clock_behind", Detail: "the server's clock is behind its own records", Err: fmt.Errorf("last CRL of %s: %s", au.row.Name, previous)}
	}
	if previous.After(thisUpdate) {
		thisUpdate = previous
	}
	nextUpdate := au.crlEnds(now)
	// An expired certificate stays until one CRL after its expiry: whatever ended after the last CRL's thisUpdate is listed once more.
	entries := set.snapshot(shard, previous)
	f, err := au.frame(number, shard, thisUpdate, nextUpdate)
	if err != nil {
		return nil, 0, &Error{Kind: Invalid, Rule: "encoding", Detail: "the CRL cannot be encoded", Err: err}
	}
	if err := a.lintCRL(f, entries.buckets, au.certificate); err != nil {
		return nil, 0, err
	}
	var signature []byte
	err = fault.Step("ca.crl_sign", func() (err error) {
		signature, err = signFrame(f, entries.buckets, entries.size, key)
		return err
	})
	if err != nil {
		return nil, 0, a.signFailed(au, err)
	}
	made = &content{row: crlRow{
		Authority: au.row.Name, Shard: int64(shard), Number: number, ThisUpdate: thisUpdate.UnixMilli(), NextUpdate: nextUpdate.UnixMilli(), IssuedAt: now.UnixMilli(),
		Entries: int64(entries.count), Seq: entries.seq,
	}}
	made.head, made.tail = f.whole(entries.size, signature)
	if err := a.divide(ctx, made, entries, last); err != nil {
		return nil, 0, err
	}
	pieces := made.pieces()
	for _, p := range pieces {
		made.row.Size += int64(len(p))
	}
	made.row.SHA256 = digestOf(pieces...)
	return made, last.Number, nil
}

// divide decides what of the CRL is stored anew: all of a small one; of a large one the parts that differ from those of the CRL before.
func (a *Authorities) divide(ctx context.Context, made *content, entries snapshot, last crlRow) error {
	if entries.size <= inlineBytes {
		made.head = slices.Concat(append([][]byte{made.head}, append(slices.Clone(entries.buckets), made.tail)...)...)
		made.tail = nil
		return nil
	}
	var before *content
	if last.Parts != "" {
		var err error
		if before, err = a.content(ctx, last); err != nil && !isKind(err, NotFound) {
			return err
		}
	}
	if before == nil {
		before = &content{}
	}
	made.parts = split(entries.buckets, entries.size, len(before.parts))
	for i := range made.parts {
		p := &made.parts[i]
		p.number = made.row.Number
		if len(before.parts) != len(made.parts) || before.parts[i].size != p.size {
			continue
		}
		if sameBytes(p.pieces, before.parts[i].pieces) {
			p.number = before.parts[i].number
		}
	}
	made.row.Parts = manifest(made.parts)
	return nil
}

// storeParts writes the new parts of a large CRL, a few in each transaction, before the CRL itself: until it is there nobody looks for them.
func (a *Authorities) storeParts(ctx context.Context, made *content) error {
	type numbered struct {
		slot int
		part
	}
	var fresh []numbered
	for slot, p := range made.parts {
		if p.number == made.row.Number {
			fresh = append(fresh, numbered{slot, p})
		}
	}
	for some := range slices.Chunk(fresh, partsAWrite) {
		err := a.db.Write(ctx, "crl.part", func(tx *database.Tx) error {
			for _, p := range some {
				_, err := tx.Exec("INSERT INTO crl_parts (authority, shard, slot, number, der) VALUES (?, ?, ?, ?, ?) ON CONFLICT (authority, shard, slot, number) DO UPDATE SET der = excluded.der",
					made.row.Authority, made.row.Shard, p.slot, p.number, slices.Concat(p.pieces...))
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return unavailable("store part of a CRL", err)
		}
	}
	return nil
}

// pruneParts removes parts that no CRL needs any more. What it leaves behind when it fails goes with the next CRL.
func (a *Authorities) pruneParts(ctx context.Context, made *content) {
	if err := a.prune(ctx, made.row); err != nil {
		a.log.Warn("old parts of a CRL not removed", "ca", made.row.Authority, "shard", made.row.Shard, "error", err)
	}
}

func (a *Authorities) prune(ctx context.Context, newest crlRow) error {
	type key struct {
		Slot   int64 `db:"slot"`
		Number int64 `db:"number"`
	}
	// A part of a lower number than the newest CRL belongs to a published CRL or to one that will never be published.
	var stored []key
	err := a.db.Select(ctx, &stored, "SELECT slot, number FROM crl_parts WHERE authority = ? AND shard = ? AND number < ?", newest.Authority, newest.Shard, newest.Number)
	if err != nil || len(stored) == 0 {
		return err
	}
	var manifests []string
	if err := a.db.Select(ctx, &manifests, "SELECT parts FROM crls WHERE authority = ? AND shard = ? AND parts <> ''", newest.Authority, newest.Shard); err != nil {
		return err
	}
	needed := map[key]bool{}
	for _, m := range manifests {
		numbers, err := partNumbers(m)
		if err != nil {
			return err
		}
		for slot, number := range numbers {
			needed[key{int64(slot), number}] = true
		}
	}
	stored = slices.DeleteFunc(stored, func(k key) bool { return needed[k] })
	for some := range slices.Chunk(stored, partsAWrite) {
		err := a.db.Write(ctx, "crl.part_prune", func(tx *database.Tx) error {
			for _, k := range some {
				if _, err := tx.Exec("DELETE FROM crl_parts WHERE authority = ? AND shard = ? AND slot = ? AND number = ?", newest.Authority, newest.Shard, k.Slot, k.Number); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// storeCRL publishes a CRL. It is settled without it when another server has published a higher number, which then holds all of this one; when
// another server has published a lower number since basis, it is not: this one may lack what that one lists, and has to be made anew.
func (a *Authorities) storeCRL(ctx context.Context, actor string, au *authority, made *content, basis int64) (settled, published bool, err error) {
	r := &made.row
	err = a.db.Write(ctx, "ca.crl", func(tx *database.Tx) error {
		newest, err := lockNewestCRL(tx, r.Authority, r.Shard)
		published = newest == basis && newest < r.Number
		settled = published || newest > r.Number
		if err != nil || !published {
			return err
		}
		_, err = tx.Exec("INSERT INTO crls ("+crlSummary+", der, tail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			r.Authority, r.Shard, r.Number, r.ThisUpdate, r.NextUpdate, r.IssuedAt, r.Entries, r.Seq, r.Size, r.SHA256, r.Parts, made.head, made.tail)
		if err != nil {
			return err
		}
		if err := dropOldCRLs(tx, r, au.shards()); err != nil {
			return err
		}
		if au.row.Use == profile.UseBroker {
			a.changes.Append(tx, feedapi.Change{At: a.clock.Now(), Kind: feedapi.TrustSetChanged})
		}
		detail := map[string]string{"number": fmt.Sprint(r.Number), "entries": fmt.Sprint(r.Entries), "sha256": r.SHA256}
		if au.shards() > 1 {
			detail["shard"] = fmt.Sprint(r.Shard)
		}
		return a.append(tx, audit.Entry{Actor: actor, Action: "crl_issued", Object: r.Authority, Detail: detail})
	})
	return settled, published && err == nil, unavailable("store CRL", err)
}

func dropOldCRLs(tx *database.Tx, r *crlRow, shards int) error {
	var kept []struct {
		Number int64 `db:"number"`
		Size   int64 `db:"size"`
	}
	if err := tx.Select(&kept, "SELECT number, size FROM crls WHERE authority = ? AND shard = ? ORDER BY number DESC", r.Authority, r.Shard); err != nil {
		return err
	}
	var total int64
	for i, k := range kept {
		if total += k.Size; i < crlsKeptAtLeast || i < crlsKept && total <= int64(keptBytes/shards) {
			continue
		}
		_, err := tx.Exec("DELETE FROM crls WHERE authority = ? AND shard = ? AND number <= ?", r.Authority, r.Shard, k.Number)
		return err
	}
	return nil
}

// lockNewestCRL returns the number of the newest CRL of a shard, which stays the newest until the end of the transaction.
func lockNewestCRL(tx *database.Tx, name string, shard int64) (number int64, err error) {
	query := "SELECT crl_number FROM authorities WHERE name = ?"
	if tx.Dialect() == database.Postgres {
		query += " FOR UPDATE"
	}
	if err := tx.Get(&number, query, name); err != nil {
		return 0, err
	}
	err = tx.Get(&number, "SELECT COALESCE(MAX(number), 0) FROM crls WHERE authority = ? AND shard = ?", name, shard)
	return number, err
}
