// Sheets for printing: PDF 1.4 with the fonts that every reader has, ten cards a page, one device a card.

package codesheet

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"net/url"
	"strings"

	"rsc.io/qr"
)

// Sheet is what a printed sheet tells besides the codes.
type Sheet struct {
	Server string // https://HOST:PORT of the EST server
	Trust  string // SHA-256 of the root, hex; "" if it is not to be told
}

// Content is the text of a device's QR code: est://HOST:PORT/LABEL?code=CODE&id=ID&trust=SHA256, each value escaped as in a URL. The label is left out
// where it is the default one.
func (s Sheet) Content(d Device) string {
	u := url.URL{Scheme: "est", Host: strings.TrimPrefix(strings.TrimSuffix(s.Server, "/"), "https://")}
	if d.Label != "" && d.Label != "default" {
		u.Path = "/" + d.Label
	}
	values := url.Values{"id": {d.ID}, "code": {d.Code}}
	if s.Trust != "" {
		values.Set("trust", s.Trust)
	}
	u.RawQuery = values.Encode()
	return u.String()
}

// In points, from the lower left corner of an A4 page.
const (
	pageWidth, pageHeight = 595, 842
	columnsOfCards        = 2
	rowsOfCards           = 5
	cardWidth             = 262
	cardHeight            = 150
	left, bottom          = 36, 50
	qrSide                = 118
	codeLine              = 24 // characters of a code in a line
)

// PDF writes a card for each device.
func (s Sheet) PDF(devices []Device) ([]byte, error) {
	perPage := columnsOfCards * rowsOfCards
	pages := (len(devices) + perPage - 1) / perPage
	w := &pdf{}
	w.raw("%%PDF-1.4\n")
	kids := make([]string, pages)
	for n := range kids {
		kids[n] = fmt.Sprintf("%d 0 R", firstPage+2*n)
	}
	w.object("<< /Type /Catalog /Pages 2 0 R >>")
	w.object("<< /Type /Pages /Kids [%s] /Count %d >>", strings.Join(kids, " "), pages)
	for _, font := range []string{"Helvetica", "Helvetica-Bold", "Courier"} {
		w.object("<< /Type /Font /Subtype /Type1 /BaseFont /%s /Encoding /WinAnsiEncoding >>", font)
	}
	for n := range kids {
		content, err := s.page(devices[n*perPage:min((n+1)*perPage, len(devices))], n+1, pages)
		if err != nil {
			return nil, err
		}
		w.object("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents %d 0 R /Resources << /Font << /F1 3 0 R /F2 4 0 R /F3 5 0 R >> >> >>", pageWidth, pageHeight, firstPage+2*n+1)
		if err := w.stream(content); err != nil {
			return nil, err
		}
	}
	return w.end(), nil
}

// firstPage is the number of the first page's object, after the catalog, the list of pages and three fonts.
const firstPage = 6

func (s Sheet) page(devices []Device, page, pages int) ([]byte, error) {
	var b bytes.Buffer
	for n, d := range devices {
		x, y := left+n%columnsOfCards*cardWidth, bottom+(rowsOfCards-1-n/columnsOfCards)*cardHeight
		if err := s.card(&b, d, float64(x), float64(y)); err != nil {
			return nil, fmt.Errorf("line %d: %w", d.Line, err)
		}
	}
	text(&b, "F1", 7, left, 30, fmt.Sprintf("%s   root SHA-256 %s   page %d of %d", s.Server, s.Trust, page, pages))
	return b.Bytes(), nil
}

func (s Sheet) card(b *bytes.Buffer, d Device, x, y float64) error {
	fmt.Fprintf(b, "0.7 G 0.3 w %.2f %.2f %d %d re S 0 g\n", x, y, cardWidth-6, cardHeight-6)
	code, err := qr.Encode(s.Content(d), qr.M)
	if err != nil {
		return fmt.Errorf("QR code: %w", err)
	}
	module := qrSide / float64(code.Size)
	for row := range code.Size {
		for from := 0; from < code.Size; from++ {
			to := from
			for to < code.Size && code.Black(to, row) {
				to++
			}
			if to > from {
				fmt.Fprintf(b, "%.2f %.2f %.2f %.2f re\n", x+12+float64(from)*module, y+13+float64(code.Size-1-row)*module, float64(to-from)*module, module)
				from = to
			}
		}
	}
	b.WriteString("f\n")
	tx, ty := x+qrSide+20, y+cardHeight-24
	for rest, size := d.ID, 22; rest != ""; rest = rest[min(size, len(rest)):] {
		text(b, "F2", 9, tx, ty, rest[:min(size, len(rest))])
		ty -= 11
	}
	text(b, "F1", 7, tx, ty, strings.TrimSpace("label "+d.Label+"  "+d.Service))
	ty -= 14
	size := 7.5
	if len(d.Code) > 4*codeLine {
		size = 6.5
	}
	for rest := d.Code; rest != ""; rest = rest[min(codeLine, len(rest)):] {
		text(b, "F3", size, tx, ty, rest[:min(codeLine, len(rest))])
		ty -= size + 2
	}
	text(b, "F1", 7, tx, y+12, "until "+d.Expires)
	return nil
}

var escapes = strings.NewReplacer(`\`, `\\`, "(", `\(`, ")", `\)`)

// text shows printable ASCII; anything else is a question mark.
func text(b *bytes.Buffer, font string, size, x, y float64, what string) {
	plain := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, what)
	fmt.Fprintf(b, "BT /%s %.1f Tf %.2f %.2f Td (%s) Tj ET\n", font, size, x, y, escapes.Replace(plain))
}

// pdf collects numbered objects and where they begin.
type pdf struct {
	bytes.Buffer
	offsets []int
}

func (p *pdf) raw(format string, args ...any) { fmt.Fprintf(p, format, args...) }

func (p *pdf) object(format string, args ...any) {
	p.offsets = append(p.offsets, p.Len())
	p.raw("%d 0 obj\n%s\nendobj\n", len(p.offsets), fmt.Sprintf(format, args...))
}

func (p *pdf) stream(content []byte) error {
	var packed bytes.Buffer
	z := zlib.NewWriter(&packed)
	if _, err := z.Write(content); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	p.offsets = append(p.offsets, p.Len())
	p.raw("%d 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n", len(p.offsets), packed.Len())
	p.Write(packed.Bytes())
	p.raw("\nendstream\nendobj\n")
	return nil
}

func (p *pdf) end() []byte {
	start := p.Len()
	p.raw("xref\n0 %d\n0000000000 65535 f \n", len(p.offsets)+1)
	for _, offset := range p.offsets {
		p.raw("%010d 00000 n \n", offset)
	}
	p.raw("trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n", len(p.offsets)+1, start)
	return p.Bytes()
}
