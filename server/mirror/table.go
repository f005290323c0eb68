// The states in memory: 35 octets for each certificate.

package mirror

import (
	"bytes"
	"encoding/binary"
	"math/big"
	"slices"
	"sort"
	"time"
)

// table is a snapshot and what changed since. It is not safe for concurrent use.
type table struct {
	snapshot []byte
	changed  map[[serialOctets]byte][recordOctets]byte
}

func newTable(snapshot []byte) *table {
	return &table{snapshot: snapshot, changed: map[[serialOctets]byte][recordOctets]byte{}}
}

func (t *table) apply(records []byte) {
	for ; len(records) > 0; records = records[recordOctets:] {
		t.changed[[serialOctets]byte(records)] = [recordOctets]byte(records)
	}
}

func (t *table) with(records []byte) *table {
	t.apply(records)
	return t
}

func (t *table) revoked(serial *big.Int) bool {
	key, ok := serialKey(serial)
	if !ok {
		return false
	}
	record, found := t.find(key)
	return found && record[serialOctets] == revoked
}

func (t *table) find(key [serialOctets]byte) (record []byte, found bool) {
	if changed, ok := t.changed[key]; ok {
		return changed[:], true
	}
	at := func(n int) []byte { return t.snapshot[n*recordOctets:][:recordOctets] }
	n, found := sort.Find(len(t.snapshot)/recordOctets, func(n int) int { return bytes.Compare(key[:], at(n)[:serialOctets]) })
	if !found {
		return nil, false
	}
	return at(n), true
}

// kept is how long after its end a revoked certificate stays: CRLs name it until one after its end.
const kept = 8 * 24 * time.Hour

// compact returns a snapshot of the table, without what is withdrawn and what ended long ago.
func (t *table) compact(now time.Time) []byte {
	keys := make([][serialOctets]byte, 0, len(t.changed))
	for key := range t.changed {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b [serialOctets]byte) int { return bytes.Compare(a[:], b[:]) })
	out := make([]byte, 0, len(t.snapshot)+len(keys)*recordOctets)
	limit := now.Add(-kept).Unix()
	add := func(record []byte) {
		if record[serialOctets] != 0 && int64(binary.BigEndian.Uint64(record[recordOctets-8:])) > limit {
			out = append(out, record...)
		}
	}
	old := t.snapshot
	for _, key := range keys {
		for len(old) > 0 && bytes.Compare(old[:serialOctets], key[:]) < 0 {
			add(old[:recordOctets])
			old = old[recordOctets:]
		}
		if len(old) > 0 && bytes.Equal(old[:serialOctets], key[:]) {
			old = old[recordOctets:]
		}
		record := t.changed[key]
		add(record[:])
	}
	for ; len(old) > 0; old = old[recordOctets:] {
		add(old[:recordOctets])
	}
	return out
}
