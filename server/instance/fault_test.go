//go:build testhooks

// A crash at any step of init is answered by the same init once more, or refused with what to do.

package instance

import (
	"strings"
	"testing"

	"github.com/natal-pki/natal/internal/fault"
)

func TestInitResumesAtEveryStep(t *testing.T) {
	defer fault.Set(nil)
	var steps []string
	fault.Set(func(name string) fault.Mode { steps = append(steps, name); return fault.None })
	o, _ := options(t)
	mustInit(t, o)
	if len(steps) < 20 {
		t.Fatalf("init has only %d steps: %v", len(steps), steps)
	}
	resumed, seen := 0, map[string]bool{}
	for at := range steps {
		if seen[steps[at]] { // once for each kind of step: opening the keys again and again is what takes long
			continue
		}
		seen[steps[at]] = true
		for _, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
			n := 0
			fault.Set(func(string) fault.Mode {
				if n++; n == at+1 {
					return mode
				}
				return fault.None
			})
			o, _ := options(t)
			i, err := Init(t.Context(), o, plan)
			fault.Set(nil)
			if err == nil {
				i.Close() // the step's failure may be survived: a CRL that the schedule issues later
			} else if state, stateErr := o.Dir.State(); stateErr != nil || state == Foreign {
				t.Errorf("step %d (%s, %v): the directory is in state %v, %v", at, steps[at], mode, state, stateErr)
			} else if state != Ready {
				i, err = Init(t.Context(), o, plan)
				if err != nil {
					if !strings.Contains(err.Error(), "remove the directory") {
						t.Errorf("step %d (%s, %v): the second init: %v", at, steps[at], mode, err)
					}
					continue
				}
				i.Close()
				resumed++
			}
			again, err := Open(t.Context(), o)
			if err != nil {
				t.Errorf("step %d (%s, %v): %v", at, steps[at], mode, err)
				continue
			}
			if _, err := again.ServerCertificate(t.Context()); err != nil {
				t.Errorf("step %d (%s, %v): %v", at, steps[at], mode, err)
			}
			if labels, err := again.Book.Labels(t.Context()); err != nil || len(labels) != 3 {
				t.Errorf("step %d (%s, %v): labels %v, %v", at, steps[at], mode, labels, err)
			}
			again.Close()
		}
	}
	t.Logf("%d kinds of step, %d times resumed", len(seen), resumed)
}
