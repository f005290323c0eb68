// What commands print and write: tables for people, JSON for scripts, secrets only to files that nobody else reads.

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
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
	const most = 1 << 20
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	content, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && len(content) > most {
		err = fmt.Errorf("%s: larger than %d bytes", file, most)
	}
	return content, err
}

// write puts content into the file out (mode), or on standard output when out is empty.
func (a *app) write(out string, content []byte, mode os.FileMode) error {
	if out == "" {
		_, err := a.stdout.Write(content)
		return err
	}
	return writeFile(out, content, mode)
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
