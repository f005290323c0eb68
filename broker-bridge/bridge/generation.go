// The last bundles that were staged, by number, so that there is one to go back to.

package bridge

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/natal-pki/natal/internal/atomicfile"
)

const (
	generationDir   = "generations"
	generationsKept = 5
)

func (s *store) generationPath(n int) string {
	return filepath.Join(s.dir, generationDir, fmt.Sprintf("%08d.pem", n))
}

// writeGeneration keeps a bundle and drops those that are older than the last few, but never the good one.
func (s *store) writeGeneration(n int, bundle []byte) error {
	if err := atomicfile.Write(s.generationPath(n), bundle, 0o600); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, generationDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		old, err := strconv.Atoi(strings.TrimSuffix(e.Name(), ".pem"))
		if err == nil && old <= n-generationsKept && old != s.Good {
			if err := os.Remove(filepath.Join(s.dir, generationDir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// goodBundle is the bundle that was proven last; nil if none was.
func (s *store) goodBundle() ([]byte, error) {
	if s.Good == 0 {
		return nil, nil
	}
	return os.ReadFile(s.generationPath(s.Good))
}
