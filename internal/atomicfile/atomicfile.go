// Package atomicfile replaces a file so that a reader, and a machine that loses power at any
// moment, finds the old content or the new one, whole: temporary file in the same
// directory, fsync, rename, fsync of the directory.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Write replaces path by data with exactly the permission bits of mode, whatever the umask. On an error
// the old file is untouched, except that after a failed fsync of the directory either may be there.
func Write(path string, data []byte, mode os.FileMode) error {
	return WriteOwned(path, data, mode, -1, -1)
}

// WriteOwned is Write with an owner; -1 leaves the user or the group as the process's own.
func WriteOwned(path string, data []byte, mode os.FileMode, uid, gid int) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+temporary+"*")
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("replace %s: %w", path, err)
		}
	}()
	if uid != -1 || gid != -1 {
		if err = f.Chown(uid, gid); err != nil {
			return err
		}
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

const temporary = ".tmp-" // between the name of a file, with a dot before it, and random digits

// RemoveLeftovers removes from dir what processes left that were killed in Write: the temporary files of the files called
// names, or without names of all files. The caller makes sure that nobody writes one of them now.
func RemoveLeftovers(dir string, names ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, _, found := strings.Cut(strings.TrimPrefix(entry.Name(), "."), temporary)
		if !found || !strings.HasPrefix(entry.Name(), ".") || len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// SyncDir makes the directory's entries durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
