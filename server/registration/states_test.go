// The table of states: what it says of every pair, that the book does what it says, and that nothing goes around it.

package registration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The table once more, as a reader of the manual would write it down: state, then where add, enroll, revoke, reissue, remove, suspend and resume lead. A
// dash is a refusal, a star a suspension.
const wanted = `
-           new  -          -        -    -           -           -
new         -    generated  revoked  new  historical  new*        new
new*        -    -          revoked  -    historical  new*        new
generated   -    -          revoked  new  historical  generated*  generated
generated*  -    -          revoked  -    historical  generated*  generated
revoked     -    -          revoked  new  historical  -           -
historical  new  -          -        -    historical  -           -
`

func standingOf(text string) standing {
	if text == "-" {
		return standing{}
	}
	state, suspended := strings.CutSuffix(text, "*")
	return standing{state, suspended}
}

func TestEveryPairOfStateAndEvent(t *testing.T) {
	t.Parallel()
	events := []event{eventAdd, eventEnroll, eventRevoke, eventReissue, eventRemove, eventSuspend, eventResume}
	pairs := 0
	for line := range strings.Lines(strings.TrimSpace(wanted)) {
		fields := strings.Fields(line)
		from := standingOf(fields[0])
		e := EndEntity{ID: "dev-1", State: from.state}
		if from.suspended {
			e.SuspendedAt = time.UnixMilli(1)
		}
		for n, ev := range events {
			pairs++
			got, err := next(e, ev)
			if want := standingOf(fields[n+1]); got != want || (err != nil) != (want == standing{}) {
				t.Errorf("%s, %s: %v, %v; want %v", fields[0], ev, got, err, want)
			}
			if err != nil && !isKind(err, Conflict) {
				t.Errorf("%s, %s: %v", fields[0], ev, err)
			}
		}
		if len(life[from]) > len(events) {
			t.Errorf("%s: %d events", fields[0], len(life[from]))
		}
	}
	if pairs != 7*len(events) || len(life) != 7 {
		t.Errorf("%d pairs, %d rows in the table", pairs, len(life))
	}
}

// Only states.go writes a state.
func TestNothingGoesAroundTheTable(t *testing.T) {
	t.Parallel()
	writes := regexp.MustCompile(`(?is)(insert\s+into|delete\s+from|replace\s+into|update)\s+end_entities\b([^"` + "`" + `]*)`)
	state := regexp.MustCompile(`(?i)\bstate\s*=`)
	root := filepath.Join("..", "..")
	in := map[string]int{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && (name == "test" || name == "bin" || name == "tools" || strings.HasPrefix(name, ".git")) {
			return fs.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range writes.FindAllStringSubmatch(string(source), -1) {
			set, _, _ := strings.Cut(m[2], "WHERE")
			if !strings.EqualFold(m[1], "update") || state.MatchString(set) || strings.Contains(set, "suspended_at") {
				in[filepath.ToSlash(strings.TrimPrefix(path, root+string(filepath.Separator)))]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(in) != 1 || in["server/registration/states.go"] != 2 {
		t.Errorf("the state of end entities is written in %v; want one UPDATE and one INSERT in server/registration/states.go", in)
	}
}
