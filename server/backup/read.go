// Reading a backup back. Nothing of it is believed before it has been checked: names, sizes, sums, and that nothing is missing.

package backup

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
)

// Read reads an archive in clear. begin is called with the manifest before any file; put takes each file's content and must read it to its end. What it has
// been given counts only when Read returns without an error.
func Read(in io.Reader, begin func(Manifest) error, put func(name string, content io.Reader) error) (Manifest, error) {
	archive := tar.NewReader(in)
	m, err := readManifest(archive)
	if err != nil {
		return m, err
	}
	if err := begin(m); err != nil {
		return m, err
	}
	left := slices.Clone(m.Files)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return m, fmt.Errorf("the backup cannot be read: %w", err)
		}
		n := slices.IndexFunc(left, func(f File) bool { return f.Name == header.Name })
		if n < 0 || header.Typeflag != tar.TypeReg {
			return m, fmt.Errorf("the backup holds %q, which is not in its manifest", header.Name)
		}
		if err := left[n].check(archive, header.Size, put); err != nil {
			return m, err
		}
		left = slices.Delete(left, n, n+1)
	}
	if len(left) > 0 {
		return m, fmt.Errorf("the backup lacks %s", left[0].Name)
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // its end is authenticated too
		return m, fmt.Errorf("the backup cannot be read: %w", err)
	}
	return m, nil
}

func readManifest(archive *tar.Reader) (Manifest, error) {
	const most = 1 << 20
	var m Manifest
	header, err := archive.Next()
	if err != nil {
		return m, fmt.Errorf("the backup cannot be read: %w", err)
	}
	if header.Name != manifestName || header.Size > most {
		return m, errors.New("it is no backup: it does not begin with a manifest")
	}
	if err := json.NewDecoder(archive).Decode(&m); err != nil {
		return m, fmt.Errorf("the manifest of the backup: %w", err)
	}
	if m.Format != Format {
		return m, fmt.Errorf("the backup has format %d, this program reads %d", m.Format, Format)
	}
	for n, f := range m.Files {
		if !filepath.IsLocal(f.Name) || slices.ContainsFunc(m.Files[:n], func(other File) bool { return other.Name == f.Name }) {
			return m, fmt.Errorf("the manifest of the backup names %q", f.Name)
		}
	}
	return m, nil
}

func (f File) check(in io.Reader, size int64, put func(string, io.Reader) error) error {
	h := sha256.New()
	if err := put(f.Name, io.TeeReader(in, h)); err != nil {
		return err
	}
	if size != f.Size || hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("%s in the backup is not what its manifest says", f.Name)
	}
	return nil
}
