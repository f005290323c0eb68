//go:build testhooks

// No statement reads a whole table that grows with the devices: a million certificates must cost no more than ten. SQLite is asked how it
// would carry out every statement that the operations here use, and every form of search.

package fault_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

// scansAll is a step of a plan that reads all rows. An index that is of a part of the table, by its name here, is as good as a search.
var scansAll = regexp.MustCompile(`^SCAN (certificates|end_entities|enrollment_codes|audit|changes|revocations|suspended_certificates)\b`)

var partial = []string{"certificates_intended", "certificates_state", "certificates_canaries", "certificates_revoked", "end_entities_state", "changes_trust_set"}

// seldom are operations that may read all: what a CA goes through once in its life.
var seldom = map[string]bool{"retire a CA": true}

// searches are the listings of the API. {after} is a certificate.
var searches = []string{
	"/certificates", "/certificates?after={after}", "/certificates?device=dev-1", "/certificates?device=dev-1&state=revoked", "/certificates?state=issued", "/certificates?state=held&after={after}",
	"/certificates?state=revoked", "/certificates?expiring=30d", "/certificates?expiring=30d&after={after}", "/certificates?profile=admin", "/certificates?profile=admin&after={after}",
	"/certificates?profile=iot-device&state=revoked", "/certificates?profile=iot-device&expiring=30d", "/certificates/{after}",
	"/devices", "/devices?after=a", "/devices?label=default", "/devices?state=new", "/devices?state=revoked&label=default", "/devices?state=historical&after=a", "/devices?state=generated",
	"/devices/dev-1", "/codes", "/codes?device=dev-1", "/codes?after=a", "/cas", "/labels", "/profiles", "/crls", "/admins", "/bridges",
}

func TestNoStatementReadsAllOfWhatGrows(t *testing.T) {
	template := t.TempDir()
	db, err := database.Open(t.Context(), "sqlite:"+filepath.Join(template, "est.db"))
	if err != nil {
		t.Fatal(err)
	}
	made := installation.New(t, db)
	if err := errors.Join(db.Close(), os.CopyFS(template, os.DirFS(made.Dir))); err != nil {
		t.Fatal(err)
	}
	fresh := func() *world {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
		url := "sqlite:" + filepath.Join(dir, "est.db")
		return &world{t: t, url: url, Installation: installation.Open(t, storage.OpenURL(t, url), dir, clock.NewManual(installation.Start))}
	}
	explained := map[string]bool{}
	explain := func(w *world, by string) {
		w.t.Helper()
		for _, statement := range w.DB.Prepared() {
			if !explained[statement] {
				explained[statement] = true
				for _, step := range plan(w, statement) {
					if readsAll(step) && !seldom[by] {
						t.Errorf("%s: %s\n%s", by, step, statement)
					}
				}
			}
		}
	}
	for _, op := range operations() {
		w := fresh()
		if err := op.prepare(w).act(); err != nil {
			t.Fatalf("%s: %v", op.name, err)
		}
		explain(w, op.name)
	}
	w := fresh()
	after := w.enrolled("dev-1").Serial
	for _, path := range searches {
		if _, err := call(w.admin(), http.MethodGet, admin.Base+strings.ReplaceAll(path, "{after}", after), nil); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		explain(w, path)
	}
	if _, _, err := w.CA.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	explain(w, "the sweep at a start")
	if len(explained) < 100 {
		t.Errorf("only %d statements were looked at", len(explained))
	}
	for _, statement := range []string{"SELECT serial FROM certificates WHERE requester = ?", "SELECT id FROM end_entities WHERE service = ?"} {
		if steps := plan(w, statement); len(steps) != 1 || !readsAll(steps[0]) {
			t.Errorf("the plan of %s does not show that it reads everything: %q", statement, steps)
		}
	}
}

func readsAll(step string) bool {
	if !scansAll.MatchString(step) {
		return false
	}
	for _, index := range partial {
		if strings.Contains(step, "INDEX "+index) {
			return false
		}
	}
	return true
}

// plan is how SQLite carries out a statement; nothing for what is none of a table.
func plan(w *world, statement string) (steps []string) {
	word, _, _ := strings.Cut(statement, " ")
	switch word {
	case "SELECT", "UPDATE", "DELETE", "INSERT":
	default:
		return nil
	}
	var rows []struct {
		ID      int    `db:"id"`
		Parent  int    `db:"parent"`
		NotUsed int    `db:"notused"`
		Detail  string `db:"detail"`
	}
	w.must(w.DB.Select(ctx, &rows, "EXPLAIN QUERY PLAN "+statement, make([]any, strings.Count(statement, "?"))...))
	for _, row := range rows {
		steps = append(steps, row.Detail)
	}
	return steps
}
