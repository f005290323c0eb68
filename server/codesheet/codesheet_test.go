package codesheet

import (
	"bytes"
	"compress/zlib"
	"encoding/csv"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestReadTolerates(t *testing.T) {
	t.Parallel()
	want := []Device{
		{Line: 2, ID: "SN-1", Label: "default", SANs: []string{"dns:a", "ip:192.0.2.1"}, Service: "pumps"},
		{Line: 3, ID: "SN-2", Label: "", Service: "a,b"},
	}
	for name, text := range map[string]string{
		"plain":                "id,label,sans,service\nSN-1,default,dns:a ip:192.0.2.1,pumps\nSN-2,,,\"a,b\"\n",
		"BOM, CRLF":            "\xef\xbb\xbfid,label,sans,service\r\nSN-1,default,dns:a ip:192.0.2.1,pumps\r\nSN-2,,,\"a,b\"\r\n",
		"quotes, case, blanks": "\"ID\", Label ,\"sans\",service\n\"SN-1\",default , dns:a  ip:192.0.2.1,pumps\nSN-2,,,\"a,b\"",
		"semicolons":           "id;label;sans;service\nSN-1;default;dns:a ip:192.0.2.1;pumps\nSN-2;;;a,b\n",
		"other order":          "service,sans,label,id\npumps,dns:a ip:192.0.2.1,default,SN-1\n\"a,b\",,,SN-2\n",
	} {
		got, faults, err := Read([]byte(text))
		for n := range got {
			if len(got[n].SANs) == 0 {
				got[n].SANs = nil
			}
		}
		if err != nil || len(faults) != 0 || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, %v", name, got, faults, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "label\nx\n", "id,id\na,b\n", "id,colour\na,b\n", "SN-1\nSN-2\n", "id,\"la\nbel\n", strings.Repeat("x", MaxBytes+1)} {
		if devices, _, err := Read([]byte(text)); err == nil {
			t.Errorf("%.40q: %v", text, devices)
		}
	}
	devices, faults, err := Read([]byte("id,label\nSN-1,a\nSN-2\nSN-3,a,b\n\nSN-4,\"x\ny\"\nSN\"5,x\nSN-6,\xff\nSN-7,z\n"))
	got := fmt.Sprint(faults)
	want := fmt.Sprint([]Fault{{3, "columns", "1 columns, the header has 2"}, {4, "columns", "3 columns, the header has 2"}, {8, "csv", "bare \" in non-quoted-field"}, {9, "encoding", "not UTF-8"}})
	if err != nil || got != want || len(devices) != 3 || devices[1].Line != 6 || devices[2].Line != 10 {
		t.Errorf("%+v\n%s\n%s, %v", devices, got, want, err)
	}
}

// What a spreadsheet would calculate is text in the sheet, and comes back as it was.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	var devices []Device
	for n, cell := range []string{"=1+1", "+1", "-1", "@x", "\tx", "\rx", "'=x", "''=x", "'x", "'", "a\"b", "a,b", "a;b", "a\nb", "=cmd|' /C calc'!A0", "plain"} {
		devices = append(devices, Device{ID: fmt.Sprint("SN-", n), Label: "default", Service: cell, Code: cell, Expires: "2027-03-01T12:00:00Z"})
	}
	text, err := Write(devices)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, cell := range slices.Concat(raw...) {
		if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
			t.Errorf("a formula: %q", cell)
		}
	}
	got, faults, err := Read(text)
	if err != nil || len(faults) != 0 || len(got) != len(devices) {
		t.Fatalf("%v, %v, %d", faults, err, len(got))
	}
	for n := range got {
		if got[n].Code != devices[n].Code || got[n].Service != devices[n].Service || got[n].Expires != devices[n].Expires {
			t.Errorf("%+v, was %+v", got[n], devices[n])
		}
	}
}

func TestContentOfTheQRCode(t *testing.T) {
	t.Parallel()
	s := Sheet{Server: "https://est.example.com:8443/", Trust: strings.Repeat("ab", 32)}
	text := s.Content(Device{ID: "SN-1", Label: "line1", Code: "a&b+c=d/e"})
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "est" || u.Host != "est.example.com:8443" || u.Path != "/line1" || u.Query().Get("id") != "SN-1" || u.Query().Get("code") != "a&b+c=d/e" || u.Query().Get("trust") != s.Trust {
		t.Errorf("%s, %v", text, err)
	}
	if got := s.Content(Device{ID: "SN-1", Label: "default", Code: "x"}); !strings.HasPrefix(got, "est://est.example.com:8443?code=x&id=SN-1&trust=") {
		t.Error(got)
	}
}

func TestPDF(t *testing.T) {
	t.Parallel()
	devices := make([]Device, 23)
	for n := range devices {
		devices[n] = Device{Line: n + 2, ID: fmt.Sprintf("SN-%06d", n), Label: "default", Code: "8f3kq02mvnz6tyw1xa7p5rjdb9", Expires: "2027-03-01T12:00:00Z"}
	}
	devices[1].ID, devices[1].Code = strings.Repeat("x", 64), strings.Repeat(`(a\b)`, 25)
	sheet, err := Sheet{Server: "https://est.example.com:8443", Trust: strings.Repeat("ab", 32)}.PDF(devices)
	if err != nil || !bytes.HasPrefix(sheet, []byte("%PDF-1.4\n")) || bytes.Count(sheet, []byte("/Type /Page ")) != 3 {
		t.Fatalf("%d bytes, %v", len(sheet), err)
	}
	// Each offset of the table points at its object.
	objects := 0
	for n, line := range strings.Split(string(sheet[bytes.Index(sheet, []byte("\nxref\n0 "))+1:]), "\n")[3:] {
		var offset int
		if _, err := fmt.Sscanf(line, "%d 00000 n", &offset); err != nil {
			break
		}
		objects++
		if want := fmt.Sprintf("%d 0 obj\n", n+1); !bytes.HasPrefix(sheet[offset:], []byte(want)) {
			t.Errorf("object %d is not at %d", n+1, offset)
		}
	}
	if objects != 5+2*3 {
		t.Errorf("%d objects in the table", objects)
	}
	var text strings.Builder
	for _, part := range bytes.Split(sheet, []byte("stream\n"))[1:] {
		if z, err := zlib.NewReader(bytes.NewReader(part)); err == nil {
			if _, err := io.Copy(&text, z); err != nil {
				t.Error(err)
			}
		}
	}
	for _, want := range []string{"(SN-000022) Tj", "page 3 of 3", "8f3kq02mvnz6tyw1xa7p5rjd", `(\(a\\b\)`} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in the sheet", want)
		}
	}
	if _, err := (Sheet{}).PDF([]Device{{ID: "x", Code: strings.Repeat("x", 4000)}}); err == nil {
		t.Error("a QR code of 4000 characters")
	}
}
