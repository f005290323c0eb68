//go:build testhooks

package database

import (
	"maps"
	"slices"
)

// Prepared lists the statements that were used so far. On SQLite only; a test asks there how each is carried out.
func (db *DB) Prepared() []string {
	var list []string
	for _, c := range []any{db.reader, db.writer} {
		if s, ok := c.(*statements); ok && s != nil {
			s.mu.RLock()
			list = append(list, slices.Collect(maps.Keys(s.known))...)
			s.mu.RUnlock()
		}
	}
	return list
}
