// Package docs holds the tests of what the documents say about the repository: links lead somewhere, and the tests that
// docs/invariants.md names exist.
package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// pages are all Markdown files of the repository, by their path from its root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/decisions/*.md"} {
		files, err := filepath.Glob(filepath.Join(harness.Root(), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			relative, err := filepath.Rel(harness.Root(), file)
			if err != nil {
				t.Fatal(err)
			}
			found[relative] = string(content)
		}
	}
	if len(found) < 10 {
		t.Fatalf("only %d pages found", len(found))
	}
	return found
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	odd     = regexp.MustCompile("[^a-z0-9 _-]")
)

// anchors are the fragments by which a page's headings are reached.
func anchors(page string) map[string]bool {
	found := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(page, -1) {
		found[strings.ReplaceAll(odd.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
	}
	return found
}

func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	all := pages(t)
	for name, content := range all {
		for _, m := range link.FindAllStringSubmatch(content, -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := name
			if target != "" {
				file = filepath.Join(filepath.Dir(name), target)
			}
			if _, err := os.Stat(filepath.Join(harness.Root(), file)); err != nil {
				t.Errorf("%s: %s leads nowhere", name, m[1])
				continue
			}
			if fragment != "" && !anchors(all[file])[fragment] {
				t.Errorf("%s: %s has no such heading", name, m[1])
			}
		}
	}
}

// proof is a test as the page names it: `server/registration TestCodeIsUsedOnce`.
var proof = regexp.MustCompile("`([a-z0-9/-]+) ((?:Test|Fuzz)[A-Za-z0-9_]+)`")

func TestInvariantsAreProven(t *testing.T) {
	t.Parallel()
	page := pages(t)["docs/invariants.md"]
	sources := map[string]string{}
	for _, invariant := range strings.Split(page, "\n**INV-")[1:] {
		name, _, _ := strings.Cut(invariant, " ")
		proofs := proof.FindAllStringSubmatch(invariant, -1)
		if proofs == nil && !strings.Contains(strings.Join(strings.Fields(invariant), " "), "not built yet") {
			t.Errorf("INV-%s names no test", name)
		}
		for _, p := range proofs {
			dir, test := p[1], p[2]
			if _, read := sources[dir]; !read {
				files, _ := filepath.Glob(filepath.Join(harness.Root(), dir, "*_test.go"))
				for _, file := range files {
					content, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					sources[dir] += string(content)
				}
			}
			if !strings.Contains(sources[dir], "\nfunc "+test+"(") {
				t.Errorf("INV-%s: there is no %s in %s", name, test, dir)
			}
		}
	}
	for i := 1; i <= 22; i++ {
		if !strings.Contains(page, fmt.Sprintf("**INV-%d ", i)) {
			t.Errorf("INV-%d is missing", i)
		}
	}
}
