// A server's database as years of use leave it: rows made by SQL from one that the server itself wrote, so that they have its columns, its sizes
// and its spread of keys, without the hours that a million enrollments take.

package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	_ "modernc.org/sqlite" // driver "sqlite"
)

// serialOf is the serial number of row i: spread over the whole range, ascending with i, so that filling is quick.
const serialOf = "printf('01%%08x%%016x%%08x', (%[1]s) * 4294, (%[1]s) * 8675309 + 1, ((%[1]s) * 1103515245) & 4294967295)"

// fill adds stored certificates of devices to the SQLite file at path, which no server has open. Certificate i belongs to device i mod devices; the
// first of each device is the one in use, the others are those before it. One in twenty is revoked, one in a thousand held.
func fill(ctx context.Context, path string, certificates, devices int, now time.Time) error {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(OFF)&_pragma=synchronous(OFF)&_pragma=cache_size(-262144)")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	indexes, err := dropIndexes(ctx, db, "certificates", "end_entities")
	if err != nil {
		return err
	}
	serial := func(i string) string { return fmt.Sprintf(serialOf, i) }
	day := (24 * time.Hour).Milliseconds()
	age := fmt.Sprintf("(i / %d)", devices)
	begin := fmt.Sprintf("(%d - (i * 7919 %% 364) * %d - %s * 250 * %d)", now.UnixMilli(), day, age, day)
	state := "CASE WHEN i % 20 = 7 THEN 'revoked' WHEN i % 1000 = 11 THEN 'held' ELSE 'issued' END"
	device := fmt.Sprintf("printf('unit-%%07d', i %% %d)", devices)
	if err := copyRows(ctx, db, "certificates", certificates, map[string]string{
		"serial": serial("i"), "state": state, "device": device,
		"spki_sha256": "lower(hex(randomblob(32)))", "claim": "'birth/' || lower(hex(randomblob(24)))", "tbs_sha256": "lower(hex(randomblob(32)))",
		"renews":     fmt.Sprintf("CASE WHEN i + %d < %d THEN %s ELSE '' END", devices, certificates, serial(fmt.Sprintf("i + %d", devices))),
		"not_before": begin, "not_after": fmt.Sprintf("%s + 365 * %d", begin, day), "created_at": begin, "issued_at": begin,
		"renewed_at":    fmt.Sprintf("CASE WHEN %s = 0 THEN 0 ELSE %s + 250 * %d END", age, begin, day),
		"superseded_at": fmt.Sprintf("CASE WHEN %s = 0 THEN 0 ELSE %s + 251 * %d END", age, begin, day),
		"first_used_at": begin, "revoked_at": fmt.Sprintf("CASE WHEN i %% 20 = 7 OR i %% 1000 = 11 THEN min(%s + 90 * %d, %d) ELSE 0 END", begin, day, now.UnixMilli()),
		"reason": "CASE WHEN i % 20 = 7 THEN 'keyCompromise' WHEN i % 1000 = 11 THEN 'certificateHold' ELSE '' END",
	}); err != nil {
		return err
	}
	if err := copyRows(ctx, db, "end_entities", devices, map[string]string{
		"id": device, "state": "CASE WHEN i % 50 = 3 THEN 'revoked' WHEN i % 50 = 4 THEN 'new' ELSE 'generated' END", "bound_to": "lower(hex(randomblob(24)))",
		"created_at": begin, "updated_at": begin,
	}); err != nil {
		return err
	}
	for _, statement := range append(indexes, "PRAGMA journal_mode=WAL") {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// dropIndexes returns the statements that make them again: sorted at the end they cost a fraction.
func dropIndexes(ctx context.Context, db *sql.DB, tables ...string) (statements []string, err error) {
	rows, err := db.QueryContext(ctx, "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN ('"+strings.Join(tables, "', '")+"')")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var name, statement string
		if err := rows.Scan(&name, &statement); err != nil {
			return nil, err
		}
		names, statements = append(names, name), append(statements, statement)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	rows.Close()
	for _, name := range names {
		if _, err := db.ExecContext(ctx, "DROP INDEX "+name); err != nil {
			return nil, err
		}
	}
	return statements, nil
}

// copyRows adds n copies, i = 0 to n-1, of a row that is there, with other values in some columns.
func copyRows(ctx context.Context, db *sql.DB, table string, n int, values map[string]string) error {
	rows, err := db.QueryContext(ctx, "SELECT name FROM pragma_table_info('"+table+"')")
	if err != nil {
		return err
	}
	defer rows.Close()
	var columns, expressions []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		expression, ok := values[name]
		if !ok {
			expression = "model." + name
		}
		columns, expressions = append(columns, name), append(expressions, expression)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	rows.Close()
	_, err = db.ExecContext(ctx, fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < %d) "+
		"INSERT INTO %s (%s) SELECT %s FROM n CROSS JOIN (SELECT * FROM %s WHERE label = 'default' AND state IN ('issued', 'generated') LIMIT 1) AS model",
		n, table, strings.Join(columns, ", "), strings.Join(expressions, ", "), table))
	return err
}
