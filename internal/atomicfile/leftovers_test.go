package atomicfile

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestRemoveLeftovers(t *testing.T) {
	t.Parallel()
	all := []string{".a.pem.tmp-1", ".a.pem.tmp-22", ".b.tmp-3", ".hidden", "a.pem", "c.tmp-4", "tmp-5"}
	for _, c := range []struct {
		names []string
		left  []string
	}{
		{nil, []string{".hidden", "a.pem", "c.tmp-4", "tmp-5"}},
		{[]string{"a.pem"}, []string{".b.tmp-3", ".hidden", "a.pem", "c.tmp-4", "tmp-5"}},
		{[]string{"a", "pem"}, all},
	} {
		dir := filepath.Join(t.TempDir(), "[a")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range all {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := RemoveLeftovers(dir, c.names...); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if !slices.Equal(left, c.left) {
			t.Errorf("names %q: left %q, want %q", c.names, left, c.left)
		}
	}
	if err := RemoveLeftovers(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a directory that is not there: no error")
	}
}
