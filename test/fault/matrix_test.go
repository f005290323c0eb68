//go:build testhooks

// The fault matrix: each operation of the server is done with each of its steps failing, not done or done with the answer lost, and
// then comes what may come next: the same request again, another one, or a restart. After each of them the invariants hold, and in the
// end the operation is done once.

package fault_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/invariants"
	"github.com/natal-pki/natal/test/storage"
)

// world is an installation and what clients got from it.
type world struct {
	*installation.Installation
	t        *testing.T
	url      string
	received []invariants.Received
}

// operation is something that the server does in steps.
type operation struct {
	name    string
	prepare func(w *world) attempt
	crl     bool // let its CRL fail too: a few operations do, of the many that end with one
}

// attempt is one run of an operation. act can be repeated as the same request.
type attempt struct {
	act     func() error
	other   func() error     // another request for the same right, and what must come of it; default: another device enrolls
	already func(error) bool // what a repeat of an act that was done answers instead of success
	done    func() bool      // what the act should have brought about
}

const (
	same    = "the same again"
	another = "another"
	restart = "restart"
)

// afterwards are steps after the answer: a failure there is the schedule's to make good.
var afterwards = []string{"ca.crl_number", "ca.crl_sign", "ca.crl"}

// Not parallel: fault points belong to the whole process.
func TestServerSteps(t *testing.T) {
	template := t.TempDir()
	db, err := database.Open(t.Context(), "sqlite:"+filepath.Join(template, "est.db"))
	if err != nil {
		t.Fatal(err)
	}
	made := installation.New(t, db)
	if err := errors.Join(db.Close(), os.CopyFS(template, os.DirFS(made.Dir))); err != nil {
		t.Fatal(err)
	}
	fresh := func(t *testing.T) *world {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
		url := "sqlite:" + filepath.Join(dir, "est.db")
		return &world{t: t, url: url, Installation: installation.Open(t, storage.OpenURL(t, url), dir, clock.NewManual(installation.Start))}
	}
	reached := map[string]bool{}
	all := operations()
	if k := newTokens(t); k != nil {
		all = append(all, operation{name: "create a CA in a token", prepare: k.create})
	} else {
		reached["keystore.create_captive"] = true
	}
	for _, op := range all {
		t.Run(op.name, func(t *testing.T) { runOperation(t, op, fresh, reached) })
	}
	for _, step := range serverSteps(t) {
		if !reached[step] {
			t.Errorf("step %s is reached by no operation here: give it one", step)
		}
	}
}

// The same for first enrollments, on PostgreSQL.
func TestServerStepsPostgres(t *testing.T) {
	for _, op := range operations() {
		if !strings.HasPrefix(op.name, "enroll by") {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			runOperation(t, op, func(t *testing.T) *world {
				url := storage.URL(t, database.Postgres)
				return &world{t: t, url: url, Installation: installation.New(t, storage.OpenURL(t, url))}
			}, map[string]bool{})
		})
	}
}

func runOperation(t *testing.T, op operation, fresh func(*testing.T) *world, reached map[string]bool) {
	steps, hasOther := record(t, op, fresh)
	for at, step := range steps {
		if slices.Contains(afterwards, step) && !op.crl {
			continue
		}
		nexts := []string{same, restart}
		if hasOther || !reached[step] { // an unrelated request follows each step once
			nexts = append(nexts, another)
		}
		reached[step] = true
		for mode, how := range map[fault.Mode]string{fault.NotDone: "not done", fault.Lost: "lost"} {
			for _, next := range nexts {
				t.Run(fmt.Sprintf("%d %s %s, %s", at+1, step, how, next), func(t *testing.T) {
					w := fresh(t)
					run(w, op.prepare(w), at, steps, mode, next)
				})
			}
		}
	}
}

// record runs the operation undisturbed and returns the steps that it takes, and whether there is another request for the same.
func record(t *testing.T, op operation, fresh func(*testing.T) *world) (steps []string, hasOther bool) {
	w := fresh(t)
	a := op.prepare(w)
	fault.Set(func(name string) fault.Mode { steps = append(steps, name); return fault.None })
	err := a.act()
	fault.Set(nil)
	if err != nil || !a.done() {
		t.Fatalf("undisturbed: %v", err)
	}
	if len(steps) == 0 {
		t.Fatal("it takes no steps")
	}
	steps = slices.Clone(steps)
	w.settle()
	if err := a.act(); err != nil && (a.already == nil || !a.already(err)) {
		t.Errorf("undisturbed, the same again: %v", err)
	}
	w.settle()
	return steps, a.other != nil
}

func run(w *world, a attempt, at int, steps []string, mode fault.Mode, next string) {
	w.t.Helper()
	n, hit := 0, ""
	fault.Set(func(name string) fault.Mode {
		if n++; n == at+1 {
			hit = name
			return mode
		}
		return fault.None
	})
	err := a.act()
	fault.Set(nil)
	if hit != steps[at] {
		w.t.Fatalf("step %d was %q this time", at+1, hit)
	}
	if err == nil && !slices.Contains(afterwards, hit) {
		w.t.Error("the failure was not reported")
	}
	var domain interface{ Domain() }
	if err != nil && !errors.As(err, &domain) {
		w.t.Errorf("the failure was reported as nothing that can be answered: %v", err)
	}
	w.hold()
	switch next {
	case another:
		other := a.other
		if other == nil {
			other = func() error { return enrollAnother(w) }
		}
		if err := other(); err != nil {
			w.t.Error(err)
		}
		w.hold()
	case same, restart:
		if next == restart {
			w.settle()
		}
		if err := a.act(); err != nil && (a.already == nil || !a.already(err)) {
			w.t.Errorf("the same again: %v", err)
		}
	}
	if next == restart {
		w.await()
	} else {
		w.settle()
	}
	if next != another && !a.done() {
		w.t.Error("in the end it is not done")
	}
}

// hold checks the invariants of a server that may be in the middle of something.
func (w *world) hold() {
	w.t.Helper()
	invariants.Require(w.t, w.url, invariants.State{Now: w.Clock.Clock().Now()}, w.received...)
}

// settle restarts the server: what was left is finished, every revocation gets its CRL, and then the invariants hold without reservation.
func (w *world) settle() {
	w.t.Helper()
	if err := w.DB.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.Installation = installation.Open(w.t, storage.OpenURL(w.t, w.url), w.Dir, w.Clock)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, _, err := w.CA.Sweep(ctx); err != nil {
		w.t.Error(err)
	}
	ended := make(chan error)
	go func() { ended <- w.CA.RunCRLSchedule(ctx) }()
	w.await()
	cancel()
	if err := <-ended; err != nil {
		w.t.Error(err)
	}
}

// await waits until the invariants hold without reservation.
func (w *world) await() {
	w.t.Helper()
	state := invariants.State{Now: w.Clock.Clock().Now(), Settled: true}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		broken := invariants.Check(context.Background(), w.url, state, w.received...)
		if len(broken) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Error(errors.Join(broken...))
			return
		}
	}
}

// serverSteps are the steps that TestServerSteps has to reach.
func serverSteps(t *testing.T) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(scan(t))), func(step string) bool { return !isInProcess(step) })
}
