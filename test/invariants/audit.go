// INV-11: the chain of hashes, computed anew, and an entry for each change of state.

package invariants

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

type auditRow struct {
	Seq      int64  `db:"seq"`
	At       int64  `db:"at"`
	Actor    string `db:"actor"`
	Action   string `db:"action"`
	Object   string `db:"object"`
	Detail   string `db:"detail"`
	Previous string `db:"previous"`
	Hash     string `db:"hash"`
}

func (r auditRow) detail(key string) string {
	var detail map[string]string
	json.Unmarshal([]byte(r.Detail), &detail)
	return detail[key]
}

func (c *checker) checkAudit() {
	c.entries = map[string][]auditRow{}
	previous, newest, seq := "", int64(0), int64(0)
	bases := map[int64]bool{} // first numbers after stated restores
	for _, r := range c.audit {
		text := ""
		for _, field := range []string{fmt.Sprint(r.Seq), fmt.Sprint(r.At), r.Actor, r.Action, r.Object, r.Detail, previous} {
			text += fmt.Sprintf("%d:%s", len(field), field)
		}
		sum := sha256.Sum256([]byte(text))
		if seq++; r.Action == "restored" && r.Seq >= seq+1<<40 {
			bases[r.Seq], seq = true, r.Seq
		}
		if r.Seq != seq || r.Previous != previous || r.Hash != hex.EncodeToString(sum[:]) {
			c.fail("INV-11", "audit entry %d (%s %s) does not continue entry %d", r.Seq, r.Action, r.Object, seq-1)
		}
		previous, newest = r.Hash, max(newest, r.At)
		c.entries[r.Action+" "+r.Object] = append(c.entries[r.Action+" "+r.Object], r)
	}
	if c.head.Seq != seq || c.head.Hash != previous || c.head.At != newest {
		c.fail("INV-11", "the head tells of entry %d, the last one is %d", c.head.Seq, seq)
	}
	last := int64(0)
	for _, change := range c.changes {
		if change != last+1 && !bases[change] {
			c.fail("INV-11", "change %d follows %d", change, last)
		}
		last = change
	}
	if c.changeCount != last {
		c.fail("INV-11", "the newest change is %d, the counter says %d", last, c.changeCount)
	}
	for _, a := range c.authorities {
		c.one("ca_created", a.Name)
	}
	for _, e := range c.entities {
		if len(c.entries["device_added "+e.ID]) == 0 {
			c.fail("INV-11", "device %s has no audit entry", e.ID)
		}
	}
}

// one returns the only audit entry of an action on an object.
func (c *checker) one(action, object string) (auditRow, bool) {
	list := c.entries[action+" "+object]
	if len(list) != 1 {
		c.fail("INV-11", "%d audit entries %s %s, want one", len(list), action, object)
		return auditRow{}, false
	}
	return list[0], true
}
