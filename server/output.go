// What commands print and write: tables for people, JSON for scripts, secrets only to files that nobody else reads.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
)

// jsonFlag is embedded by commands that can print JSON.
type jsonFlag struct {
	JSON bool `help:"Print JSON." name:"json"`
}

// show prints v as JSON, or what text writes.
func (f jsonFlag) show(a *app, v any, text func(w io.Writer)) error {
	if f.JSON {
		e := json.NewEncoder(a.stdout)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	text(a.stdout)
	return nil
}

// table prints a header and rows in columns.
func table(w io.Writer, header string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(header, " ", "\t"))
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	t.Flush()
}

// fields prints "name: value" lines, leaving empty values out.
func fields(w io.Writer, pairs ...string) {
	t := tabwriter.NewWriter(w, 0, 8, 1, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(t, "%s:\t%s\n", pairs[i], pairs[i+1])
		}
	}
	t.Flush()
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// readInput reads a file, or standard input for "-".
func (a *app) readInput(file string) ([]byte, error) {
	return a.readUpTo(file, 1<<20)
}

// write puts content into the file out (mode), or on standard output when out is empty.
func (a *app) write(out string, content []byte, mode os.FileMode) error {
	if out == "" {
		_, err := a.stdout.Write(content)
		return err
	}
	return writeFile(out, content, mode)
}

// outputFile is a file with secrets in it.
type outputFile struct {
	path    string
	content []byte
}

// createFiles writes files with mode 0600, all or none. None of them may exist.
func createFiles(files ...outputFile) error {
	for n, f := range files {
		err := fault.Step("server.output_new", func() error { return f.create() })
		if err != nil {
			return errors.Join(err, removeFiles(files[:n]...))
		}
	}
	return nil
}

func (f outputFile) create() error {
	file, err := atomicfile.Create(f.path, 0o600)
	if err != nil {
		return err
	}
	defer file.Abort()
	if _, err := file.Write(f.content); err != nil {
		return err
	}
	return file.CommitNew()
}

func removeFiles(files ...outputFile) (err error) {
	for _, f := range files {
		err = errors.Join(err, os.Remove(f.path))
	}
	return err
}

// vacant refuses paths that createFiles would refuse, before something happens that cannot be repeated.
func vacant(paths ...string) error {
	for n, path := range paths {
		if _, err := os.Lstat(path); err == nil || slices.Contains(paths[:n], path) {
			return fmt.Errorf("%s exists: nothing is overwritten", path)
		}
		probe, err := os.CreateTemp(filepath.Dir(path), ".natal-*")
		if err != nil {
			return fmt.Errorf("%s cannot be written: %w", path, err)
		}
		if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
			return err
		}
	}
	return nil
}

// readSecret reads a secret of one line from a file, or from standard input for "-".
func (a *app) readSecret(file string) (string, error) {
	content, err := a.readInput(file)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(content), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return secret, nil
}

// writeFile replaces a file of the caller's choice.
func writeFile(path string, content []byte, mode os.FileMode) error {
	return fault.Step("server.output", func() error { return atomicfile.Write(path, content, mode) })
}

// writeStream is writeFile for what is not held in memory.
func writeStream(path string, content io.Reader, mode os.FileMode) error {
	f, err := atomicfile.Create(path, mode)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return fault.Step("server.stream", f.Commit)
}
