// The two dialects have one schema, and SQLite the C library that it was made with.

package database_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/storage"
)

func TestMigrationsSayTheSame(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("migrations/sqlite/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	others, _ := filepath.Glob("migrations/postgres/*.sql")
	if len(others) != len(files) {
		t.Errorf("%d files for SQLite, %d for PostgreSQL", len(files), len(others))
	}
	for _, file := range files {
		sqlite, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		postgres, err := os.ReadFile(filepath.Join("migrations/postgres", filepath.Base(file)))
		if err != nil {
			t.Fatal(err)
		}
		a, b := strings.Split(string(sqlite), "\n"), strings.Split(string(postgres), "\n")
		for n := range min(len(a), len(b)) {
			want := strings.Join(strings.Fields(regexp.MustCompile(`\bBLOB\b`).ReplaceAllString(a[n], "BYTEA")), " ")
			// SQLite compares text byte by byte anyway; PostgreSQL has to be told.
			if got := strings.Join(strings.Fields(strings.ReplaceAll(b[n], ` COLLATE "C"`, "")), " "); got != want {
				t.Errorf("%s:%d: SQLite has %q, PostgreSQL %q", filepath.Base(file), n+1, want, got)
			}
		}
		if len(a) != len(b) {
			t.Errorf("%s: %d lines and %d", filepath.Base(file), len(a), len(b))
		}
	}
}

// What the databases themselves say about it.
func TestTablesAndColumnsAreTheSame(t *testing.T) {
	t.Parallel()
	query := map[string]string{
		database.SQLite: `SELECT m.name || '.' || p.name || ' ' || lower(p.type) || CASE WHEN p."notnull" = 1 THEN ' not null' ELSE '' END || CASE WHEN p.pk > 0 THEN ' key' ELSE '' END
			FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table' AND m.name NOT LIKE 'goose%' AND m.name NOT LIKE 'sqlite%'`,
		database.Postgres: `SELECT c.table_name || '.' || c.column_name || ' ' || c.data_type || CASE WHEN c.is_nullable = 'NO' THEN ' not null' ELSE '' END
			|| CASE WHEN EXISTS (SELECT 1 FROM information_schema.table_constraints tc JOIN information_schema.key_column_usage k USING (constraint_name, table_schema)
				WHERE tc.constraint_type = 'PRIMARY KEY' AND tc.table_name = c.table_name AND k.column_name = c.column_name) THEN ' key' ELSE '' END
			FROM information_schema.columns c WHERE c.table_schema = 'public' AND c.table_name NOT LIKE 'goose%'`,
	}
	indexes := map[string]string{
		database.SQLite:   `SELECT name || ' on ' || tbl_name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL`,
		database.Postgres: `SELECT indexname || ' on ' || tablename FROM pg_indexes WHERE schemaname = 'public' AND indexname NOT LIKE '%\_pkey' AND tablename NOT LIKE 'goose%'`,
	}
	seen := map[string][]string{}
	for dialect := range query {
		db := storage.Open(t, dialect)
		for _, q := range []string{query[dialect], indexes[dialect]} {
			var lines []string
			if err := db.Select(context.Background(), &lines, q); err != nil {
				t.Fatal(err)
			}
			for _, line := range lines {
				seen[dialect] = append(seen[dialect], strings.NewReplacer(" blob", " bytea").Replace(line))
			}
		}
		slices.Sort(seen[dialect])
	}
	if len(seen[database.SQLite]) < 100 {
		t.Errorf("only %d columns and indexes", len(seen[database.SQLite]))
	}
	for _, pair := range [][2]string{{database.SQLite, database.Postgres}, {database.Postgres, database.SQLite}} {
		for _, line := range seen[pair[0]] {
			if !slices.Contains(seen[pair[1]], line) {
				t.Errorf("%s has %q, %s has not", pair[0], line, pair[1])
			}
		}
	}
}

// modernc.org/sqlite is C translated to Go for one version of modernc.org/libc; with another it misbehaves silently.
func TestLibcIsTheOneThatSQLiteWasMadeWith(t *testing.T) {
	t.Parallel()
	module := func(path string) (m struct{ GoMod, Version string }) {
		out, err := exec.Command("go", "list", "-m", "-json", path).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", path, err)
		}
		if err := json.Unmarshal(out, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	sqlite, libc := module("modernc.org/sqlite"), module("modernc.org/libc")
	requirements, err := os.ReadFile(sqlite.GoMod)
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`modernc\.org/libc (v\S+)`).FindSubmatch(requirements)
	if want == nil {
		t.Fatalf("%s does not require libc", sqlite.GoMod)
	}
	if libc.Version != string(want[1]) {
		t.Errorf("libc is %s; sqlite %s was made with %s", libc.Version, sqlite.Version, want[1])
	}
}
