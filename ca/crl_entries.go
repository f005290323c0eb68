// What CRLs are made of: the entries of a CA's revoked certificates, encoded once and kept in memory, brought up to date from the log of
// revocations. The next CRL of a million then costs a hash, not a million encodings.
//
// Entries lie in 256 buckets for each shard, by an octet of the serial number, sorted in each. So the same certificates always give the same
// bytes, on every server, and one revocation changes one bucket: the rest of the next CRL is what the last one had. A bucket is one slice
// and is never changed, only replaced, because published CRLs share it.

package ca

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	bucketCount  = 256
	entriesAPage = 5000 // rows read at once
)

// bucket holds encoded entries by ascending serial number.
type bucket struct {
	der     []byte
	ends    []uint32 // when each certificate ends, Unix seconds
	soonest uint32   // the least of ends
}

// entryChange is how a certificate stands now: der is its entry, or nil if it is not revoked.
type entryChange struct {
	serial []byte
	der    []byte
	end    uint32
}

// shardEntries are the entries of one CRL.
type shardEntries struct {
	buckets []bucket
	count   int
	size    int
	seq     int64 // of the newest entry of the log about this shard
}

// revokedSet is what a CA's CRLs list, as of entry seq of the log.
type revokedSet struct {
	mu     sync.Mutex
	filled bool
	seq    int64
	shards []shardEntries
}

// snapshot is what one CRL lists. Its slices are shared and never change.
type snapshot struct {
	buckets [][]byte
	count   int
	size    int
	seq     int64 // of the log: everything up to it is taken into account
}

// revoked returns the set of a CA, up to date with everything that was committed before the call.
func (a *Authorities) revoked(ctx context.Context, au *authority) (*revokedSet, error) {
	a.publisher.mu.Lock()
	set := a.publisher.sets[au.row.Name]
	if set == nil {
		set = &revokedSet{}
		a.publisher.sets[au.row.Name] = set
	}
	a.publisher.mu.Unlock()
	set.mu.Lock()
	defer set.mu.Unlock()
	if !set.filled {
		if err := a.fillRevoked(ctx, au, set); err != nil {
			return nil, err
		}
	}
	return set, a.followRevoked(ctx, au, set)
}

// fillRevoked reads all revoked certificates that may still have to be listed. The log up to seq is in what is read; what comes later and is
// in it too does no harm when it is followed.
func (a *Authorities) fillRevoked(ctx context.Context, au *authority, set *revokedSet) error {
	newest, err := a.newestCRLs(ctx, au.row.Name)
	if err != nil {
		return err
	}
	var published, since int64 // by the CRL that is furthest behind
	if len(newest) == au.shards() {
		published, since = newest[0].Seq, newest[0].ThisUpdate
		for _, r := range newest {
			published, since = min(published, r.Seq), min(since, r.ThisUpdate)
		}
	}
	var seq int64
	if err := a.db.Get(ctx, &seq, "SELECT COALESCE(MAX(seq), 0) FROM revocations WHERE issuer = ?", au.row.Name); err != nil {
		return unavailable("read the log of revocations", err)
	}
	shards := make([]shardEntries, au.shards())
	for i := range shards {
		shards[i].buckets = make([]bucket, bucketCount)
	}
	if err := a.readRevoked(ctx, au, since, shards); err != nil {
		return err
	}
	for i := range shards {
		shards[i].settle()
	}
	for after := published; after < seq; { // which shards have something that is in no CRL yet
		page, err := a.revocationsSince(ctx, au.row.Name, after, entriesAPage)
		if err != nil {
			return err
		}
		for _, r := range page {
			if after = r.Seq; r.Seq <= seq {
				s := &shards[au.shardOf(r.Serial)]
				s.seq = max(s.seq, r.Seq)
			}
		}
		if len(page) == 0 {
			break
		}
	}
	set.shards, set.seq, set.filled = shards, seq, true
	return nil
}

// readRevoked appends the entries of all revoked certificates to their buckets, not in order yet.
func (a *Authorities) readRevoked(ctx context.Context, au *authority, since int64, shards []shardEntries) error {
	var rows []struct {
		Serial    string `db:"serial"`
		Reason    string `db:"reason"`
		RevokedAt int64  `db:"revoked_at"`
		NotAfter  int64  `db:"not_after"`
	}
	serial := ""
	for {
		rows = rows[:0]
		err := a.db.Select(ctx, &rows, "SELECT serial, reason, revoked_at, not_after FROM certificates WHERE issuer = ? AND revoked_at > 0 AND serial > ? ORDER BY serial LIMIT ?",
			au.row.Name, serial, entriesAPage)
		if err != nil {
			return unavailable("list revoked certificates", err)
		}
		for _, r := range rows {
			if serial = r.Serial; r.NotAfter < since {
				continue
			}
			c, err := change(revocation{Serial: r.Serial, Reason: r.Reason, RevokedAt: r.RevokedAt, NotAfter: r.NotAfter})
			if err != nil {
				return err
			}
			b := &shards[au.shardOf(r.Serial)].buckets[bucketOf(c.serial)]
			b.der, b.ends = append(b.der, c.der...), append(b.ends, c.end)
		}
		if len(rows) < entriesAPage {
			return nil
		}
	}
}

// followRevoked takes in what the log has since seq.
func (a *Authorities) followRevoked(ctx context.Context, au *authority, set *revokedSet) error {
	for {
		page, err := a.revocationsSince(ctx, au.row.Name, set.seq, entriesAPage)
		if err != nil {
			return err
		}
		type place struct{ shard, bucket int }
		changes := map[place][]entryChange{}
		for _, r := range page {
			c, err := change(r)
			if err != nil {
				return err
			}
			p := place{au.shardOf(r.Serial), bucketOf(c.serial)}
			changes[p] = append(changes[p], c)
		}
		for p, list := range changes {
			set.shards[p.shard].merge(p.bucket, list)
		}
		for _, r := range page {
			s := &set.shards[au.shardOf(r.Serial)]
			s.seq, set.seq = r.Seq, r.Seq
		}
		if len(page) < entriesAPage {
			return nil
		}
	}
}

// snapshot returns the entries of a shard without those that ended before since, which are gone for good: thisUpdate never decreases.
func (set *revokedSet) snapshot(shard int, since time.Time) snapshot {
	set.mu.Lock()
	defer set.mu.Unlock()
	s := &set.shards[shard]
	s.drop(seconds(since.UnixMilli()))
	taken := snapshot{buckets: make([][]byte, bucketCount), count: s.count, size: s.size, seq: set.seq}
	for i := range s.buckets {
		taken.buckets[i] = s.buckets[i].der
	}
	return taken
}

// newest is the number of the newest entry of the log about a shard, 0 if no CRL lacks one.
func (set *revokedSet) newest(shard int) int64 {
	set.mu.Lock()
	defer set.mu.Unlock()
	return set.shards[shard].seq
}

func seconds(millis int64) uint32 {
	return uint32(min(max(0, millis/1000), math.MaxUint32))
}

// bucketOf takes an octet that the shard does not depend on.
func bucketOf(serial []byte) int {
	if len(serial) < 2 {
		return 0
	}
	return int(serial[len(serial)-2])
}

// merge puts changes into a bucket; of several for one certificate the last one counts.
func (s *shardEntries) merge(n int, changes []entryChange) {
	slices.SortStableFunc(changes, func(a, b entryChange) int { return compareSerials(a.serial, b.serial) })
	old := &s.buckets[n]
	grow := 0
	for _, c := range changes {
		grow += len(c.der)
	}
	made := bucket{der: make([]byte, 0, len(old.der)+grow), ends: make([]uint32, 0, len(old.ends)+len(changes)), soonest: math.MaxUint32}
	rest, at := old.der, 0
	for i, c := range changes {
		for len(rest) > 0 && compareSerials(entrySerial(rest), c.serial) < 0 {
			made.add(rest[:entrySize(rest)], old.ends[at])
			rest, at = rest[entrySize(rest):], at+1
		}
		if len(rest) > 0 && bytes.Equal(entrySerial(rest), c.serial) {
			rest, at = rest[entrySize(rest):], at+1
		}
		if last := i+1 == len(changes) || !bytes.Equal(changes[i+1].serial, c.serial); last && c.der != nil {
			made.add(c.der, c.end)
		}
	}
	for ; len(rest) > 0; at++ {
		made.add(rest[:entrySize(rest)], old.ends[at])
		rest = rest[entrySize(rest):]
	}
	s.replace(n, made)
}

func (s *shardEntries) replace(n int, made bucket) {
	old := &s.buckets[n]
	s.count, s.size = s.count+len(made.ends)-len(old.ends), s.size+len(made.der)-len(old.der)
	*old = made
}

func (b *bucket) add(entry []byte, end uint32) {
	b.der, b.ends, b.soonest = append(b.der, entry...), append(b.ends, end), min(b.soonest, end)
}

// settle puts buckets in order that were filled in any.
func (s *shardEntries) settle() {
	for n := range s.buckets {
		raw := s.buckets[n]
		list := make([]entryChange, 0, len(raw.ends))
		for rest := raw.der; len(rest) > 0; rest = rest[entrySize(rest):] {
			list = append(list, entryChange{serial: entrySerial(rest), der: rest[:entrySize(rest)], end: raw.ends[len(list)]})
		}
		s.buckets[n] = bucket{}
		s.merge(n, list)
	}
}

// drop removes the entries of certificates that ended before a time.
func (s *shardEntries) drop(before uint32) {
	for n := range s.buckets {
		old := &s.buckets[n]
		if len(old.ends) == 0 || old.soonest >= before {
			continue
		}
		made := bucket{der: make([]byte, 0, len(old.der)), ends: make([]uint32, 0, len(old.ends)), soonest: math.MaxUint32}
		rest := old.der
		for _, end := range old.ends {
			if end >= before {
				made.add(rest[:entrySize(rest)], end)
			}
			rest = rest[entrySize(rest):]
		}
		s.replace(n, made)
	}
}

// entrySize and entrySerial read the first entry of a bucket: SEQUENCE { INTEGER serial, ...}, whose lengths fit into one octet each.
func entrySize(rest []byte) int { return 2 + int(rest[1]) }

func entrySerial(rest []byte) []byte { return rest[4 : 4+int(rest[3])] }

func compareSerials(a, b []byte) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), bytes.Compare(a, b))
}

// change encodes an entry of the log as one of a CRL (RFC 5280 section 5.1.2.6): the reason unspecified is said by saying nothing.
func change(r revocation) (entryChange, error) {
	serial, err := hex.DecodeString(r.Serial)
	if err != nil || len(serial) == 0 || len(serial) > 20 {
		return entryChange{}, refuse(Invalid, "serial", "certificate %q has a serial number that no CRL can list", r.Serial)
	}
	if serial = bytes.TrimLeft(serial, "\x00"); len(serial) == 0 || serial[0] >= 0x80 { // as an INTEGER: the shortest that is positive
		serial = append([]byte{0}, serial...)
	}
	if r.RevokedAt == 0 {
		return entryChange{serial: serial}, nil
	}
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, 64))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
		if at := moment(r.RevokedAt); at.Year() < 2050 {
			b.AddASN1UTCTime(at)
		} else {
			b.AddASN1GeneralizedTime(at)
		}
		if code := reasons[r.Reason]; code != 0 {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidReasonCode)
					b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(code)) })
				})
			})
		}
	})
	der, err := b.Bytes()
	if err != nil {
		return entryChange{}, &Error{Kind: Invalid, Rule: "encoding", Detail: "a revocation cannot be encoded", Err: err}
	}
	return entryChange{serial: serial, der: der, end: seconds(r.NotAfter)}, nil
}
