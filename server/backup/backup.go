// Package backup is the form of a backup: an age file (https://age-encryption.org/v1) of a tar archive that begins with manifest.json, which
// holds the SHA-256 of every other file.
//
// It knows what a backup looks like, and nothing of what is in it: server/instance collects the files and takes them back. A backup is
// never written in clear.
//
//	backup.go   Manifest, Write
//	read.go     Read: every file checked against the manifest
//	keys.go     for whom it is encrypted, and with what it is read
package backup

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// Format is the number of the form that this program writes and reads.
const Format = 1

const manifestName = "manifest.json"

// Names of the database in a backup.
const (
	SQLiteName   = "est.db"
	PostgresName = "database.dump"
)

// Manifest says what a backup is of.
type Manifest struct {
	Format   int       `json:"format"`
	MadeAt   time.Time `json:"made_at"`
	Database string    `json:"database"` // "sqlite", "postgres" (a dump of pg_dump), or "none": it is kept elsewhere
	Epoch    int64     `json:"epoch"`
	Seq      int64     `json:"seq"`  // of the newest audit entry in it, or an older one
	Hash     string    `json:"hash"` // of that entry
	Files    []File    `json:"files"`
}

// File is one file of a backup.
type File struct {
	Name   string `json:"name"` // relative to the data directory
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`

	path string // where it is read from
}

// Add adds the file at path to the manifest, under a name. Its content must not change until it is written.
func (m *Manifest) Add(name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	m.Files = append(m.Files, File{Name: name, Size: size, SHA256: hex.EncodeToString(h.Sum(nil)), path: path})
	return nil
}

// Write writes the archive, in clear: out encrypts it. A file that is not any more what Add saw is an error.
func (m *Manifest) Write(out io.Writer) error {
	content, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	archive := tar.NewWriter(out)
	header := func(name string, size int64) error {
		return archive.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o600, ModTime: m.MadeAt, Format: tar.FormatPAX})
	}
	if err := header(manifestName, int64(len(content))); err != nil {
		return err
	}
	if _, err := archive.Write(content); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := header(f.Name, f.Size); err != nil {
			return err
		}
		if err := f.copyTo(archive); err != nil {
			return err
		}
	}
	return archive.Close()
}

func (f File) copyTo(out io.Writer) error {
	in, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer in.Close()
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(out, h), in, f.Size); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	if hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("%s was changed while it was copied", f.Name)
	}
	return nil
}
