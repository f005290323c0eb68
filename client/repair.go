// The links of a Store, whose replacement is the switch, and what is done at the next start about a crash between two steps.

package client

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
)

func (s *Store) switchTo(name string) error {
	err := fault.Step("client.switch", func() error { return replaceLink(s.path(currentLink), name) })
	if err != nil {
		return fmt.Errorf("switch to the new certificate: %w", err)
	}
	return nil
}

// link makes DIR/bundle.pem, key.pem and cert.pem, which never change after: they follow the pointer.
func (s *Store) link() error {
	for _, name := range []string{bundleFile, keyFile, certFile} {
		target := filepath.Join(currentLink, name)
		if have, err := os.Readlink(s.path(name)); err == nil && have == target {
			continue
		}
		if err := fault.Step("client.link", func() error { return replaceLink(s.path(name), target) }); err != nil {
			return err
		}
	}
	return nil
}

// repair ends what a crash interrupted: a pair that was written but not switched to is put in force, a pointer to a damaged
// slot is moved, a damaged file beside a good one is written anew, temporary files go.
func (s *Store) repair() error {
	for _, dir := range []string{s.dir, s.slot("a").dir, s.slot("b").dir} {
		leftovers, err := filepath.Glob(filepath.Join(dir, ".*.tmp-*"))
		if err != nil {
			return err
		}
		for _, path := range leftovers {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	id, name, err := s.best()
	if next, nextErr := s.nextKey(); nextErr == nil && (err != nil || !sameKey(id.Key.Public(), next.Public())) {
		for _, candidate := range []string{"a", "b"} {
			if found, readErr := s.slot(candidate).read(); readErr == nil && sameKey(found.Key.Public(), next.Public()) {
				id, name, err = found, candidate, nil
			}
		}
	}
	if err != nil {
		return nil // nothing kept yet, or nothing that could be saved: Load says which
	}
	if !s.slot(name).complete(id) {
		if err := s.slot(name).restore(id); err != nil {
			return err
		}
	}
	if err := s.link(); err != nil {
		return err
	}
	if s.current() != name {
		if err := s.switchTo(name); err != nil {
			return err
		}
	}
	if next, err := s.nextKey(); err == nil && sameKey(next.Public(), id.Key.Public()) {
		return s.unstage()
	}
	return nil
}

// replaceLink is atomicfile.Write for a symbolic link.
func replaceLink(path, target string) error {
	dir, base := filepath.Split(path)
	temporary := filepath.Join(dir, "."+base+".tmp-"+strings.ReplaceAll(target, string(filepath.Separator), "-"))
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		os.Remove(temporary)
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}
