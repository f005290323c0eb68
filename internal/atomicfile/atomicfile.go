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
	f, err := create(path, mode, uid, gid)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

// File is a replacement in the making, for what is too large to be held in memory.
type File struct {
	temporary *os.File
	path      string
	closed    bool
}

// Create begins a replacement of path, which stays as it is until Commit. Call Abort when done, whatever happened.
func Create(path string, mode os.FileMode) (*File, error) { return create(path, mode, -1, -1) }

func create(path string, mode os.FileMode, uid, gid int) (*File, error) {
	t, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+temporary+"*")
	if err != nil {
		return nil, fmt.Errorf("replace %s: %w", path, err)
	}
	f := &File{temporary: t, path: path}
	if uid != -1 || gid != -1 {
		err = t.Chown(uid, gid)
	}
	if err == nil {
		err = t.Chmod(mode)
	}
	if err != nil {
		f.Abort()
		return nil, fmt.Errorf("replace %s: %w", path, err)
	}
	return f, nil
}

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) {
	n, err := f.temporary.Write(p)
	if err != nil {
		err = fmt.Errorf("replace %s: %w", f.path, err)
	}
	return n, err
}

// Commit puts the new file in place of the old one.
func (f *File) Commit() error { return f.finish(os.Rename) }

// CommitNew is Commit that fails, with os.ErrExist, where there is a file already.
func (f *File) CommitNew() error { return f.finish(os.Link) }

func (f *File) finish(place func(from, to string) error) error {
	err := errors.Join(f.temporary.Sync(), f.temporary.Close())
	f.closed = true
	if err == nil {
		err = place(f.temporary.Name(), f.path)
	}
	os.Remove(f.temporary.Name()) // gone already after a rename
	if err == nil {
		err = SyncDir(filepath.Dir(f.path))
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", f.path, err)
	}
	return nil
}

// Abort gives the replacement up; after Commit it does nothing.
func (f *File) Abort() {
	if !f.closed {
		f.closed = true
		f.temporary.Close()
		os.Remove(f.temporary.Name())
	}
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
