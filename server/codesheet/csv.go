// Package codesheet reads lists of devices that people keep in spreadsheets, and writes their enrollment codes as sheets: CSV for machines, PDF with QR
// codes for printers and installers. What it writes as CSV it reads again, cell for cell.
//
// Non-goals: it decides nothing about devices and codes; it knows no server.
//
// Files: csv.go, pdf.go.
package codesheet

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxBytes is the largest list that Read takes.
const MaxBytes = 8 << 20

// Device is one line of a list.
type Device struct {
	Line    int // where it stood in the file, from 1
	ID      string
	Label   string
	SANs    []string
	Service string
	Code    string
	Expires string // a life, as 30d, or a time, RFC 3339
}

// Fault says what is wrong with one line.
type Fault struct {
	Line   int
	Rule   string // stable word
	Detail string
}

var columns = []string{"id", "label", "sans", "service", "code", "expires"}

// Read reads a list: a header with the names of the columns (id, and any of label, sans, service, code, expires), then a device a line. It takes a byte
// order mark, CRLF, quotes, and semicolons instead of commas. faults are lines that are no line of a list; the error is about the file as a whole.
func Read(data []byte) (devices []Device, faults []Fault, err error) {
	if len(data) > MaxBytes {
		return nil, nil, fmt.Errorf("larger than %d bytes", MaxBytes)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	r := csv.NewReader(bytes.NewReader(data))
	r.FieldsPerRecord = -1
	first, _, _ := bytes.Cut(data, []byte("\n"))
	if bytes.ContainsRune(first, ';') && !bytes.ContainsRune(first, ',') {
		r.Comma = ';'
	}
	header, err := readHeader(r)
	if err != nil {
		return nil, nil, err
	}
	for {
		cells, err := r.Read()
		if errors.Is(err, io.EOF) {
			return devices, faults, nil
		}
		if err != nil {
			fault := Fault{Rule: "csv", Detail: err.Error()}
			var where *csv.ParseError
			if errors.As(err, &where) {
				fault.Line, fault.Detail = where.StartLine, where.Err.Error()
			}
			faults = append(faults, fault)
			continue
		}
		line, _ := r.FieldPos(0)
		switch {
		case len(cells) != len(header):
			faults = append(faults, Fault{line, "columns", fmt.Sprintf("%d columns, the header has %d", len(cells), len(header))})
		case !utf8.ValidString(strings.Join(cells, "")):
			faults = append(faults, Fault{line, "encoding", "not UTF-8"})
		default:
			devices = append(devices, device(line, header, cells))
		}
	}
}

func readHeader(r *csv.Reader) ([]string, error) {
	header, err := r.Read()
	if err != nil {
		return nil, errors.New("no header: the first line names the columns, as id,label,sans,service,code,expires")
	}
	for n, name := range header {
		header[n] = strings.ToLower(strings.TrimSpace(name))
		if !slices.Contains(columns, header[n]) {
			return nil, fmt.Errorf("the header has a column %.40q: want %s", name, strings.Join(columns, ", "))
		}
		if slices.Contains(header[:n], header[n]) {
			return nil, fmt.Errorf("the header has the column %s twice", header[n])
		}
	}
	if !slices.Contains(header, "id") {
		return nil, errors.New("the header has no column id")
	}
	return header, nil
}

func device(line int, header, cells []string) Device {
	d := Device{Line: line}
	for n, name := range header {
		cell := reveal(strings.Trim(cells[n], " "))
		switch name {
		case "id":
			d.ID = cell
		case "label":
			d.Label = cell
		case "sans":
			d.SANs = strings.Fields(cell)
		case "service":
			d.Service = cell
		case "code":
			d.Code = cell
		case "expires":
			d.Expires = cell
		}
	}
	return d
}

// Write writes a list that Read reads.
func Write(devices []Device) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	rows := [][]string{columns}
	for _, d := range devices {
		cells := []string{d.ID, d.Label, strings.Join(d.SANs, " "), d.Service, d.Code, d.Expires}
		for n := range cells {
			cells[n] = neutralise(cells[n])
		}
		rows = append(rows, cells)
	}
	err := w.WriteAll(rows)
	return b.Bytes(), err
}

// formula begins what a spreadsheet would calculate instead of showing it.
const formula = "=+-@\t\r"

// neutralise puts an apostrophe before a cell that a spreadsheet would take for a formula, and before one that has such an apostrophe already.
func neutralise(cell string) string {
	if bare := strings.TrimLeft(cell, "'"); bare != "" && strings.ContainsRune(formula, rune(bare[0])) {
		return "'" + cell
	}
	return cell
}

// reveal is the inverse of neutralise.
func reveal(cell string) string {
	if bare := strings.TrimLeft(cell, "'"); bare != cell && bare != "" && strings.ContainsRune(formula, rune(bare[0])) {
		return cell[1:]
	}
	return cell
}
