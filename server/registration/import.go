// Bulk registration: many devices with their codes, all or nothing, in one transaction.
//
// Codes may come with the rows. Whoever generates them himself and keeps them before he asks loses none when the answer is lost: a second request with
// the same rows finds them all there and changes nothing.

package registration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

const (
	// MaxImport is the most rows of one import.
	MaxImport = 20_000
	// MaxLineErrors is how many bad lines are named; the others are counted.
	MaxLineErrors = 100

	importChunk = 200 // rows in one statement
)

// ImportRow is one device of an import.
type ImportRow struct {
	Line    int // in the operator's file, for refusals
	ID      string
	Label   string
	SANs    []string
	Service string
	Code    string    // "": made here
	Expires time.Time // of the code; zero: Config.CodeLife from now
}

// LineError says what is wrong with one row.
type LineError struct {
	Line   int
	Rule   string // stable word
	Detail string
}

// ImportError names the bad lines of an import, in their order. Nothing was imported.
type ImportError struct {
	Lines []LineError
	More  int // further bad lines that are not named
}

func (e *ImportError) Error() string {
	return fmt.Sprintf("import: %d bad lines, nothing was imported; line %d: %s: %s", len(e.Lines)+e.More, e.Lines[0].Line, e.Lines[0].Rule, e.Lines[0].Detail)
}

// Domain marks ImportError as an error that crosses a transaction unchanged.
func (e *ImportError) Domain() {}

// Imported is what an import did.
type Imported struct {
	Codes    []Code // in the order of the rows; the secret is set where it was made here
	Repeated bool   // every row was there already, with its code: nothing was changed
}

// importing is an import under way.
type importing struct {
	book  *Book
	actor string
	now   time.Time
	rows  []ImportRow
	names []string // SANs of each row as they are stored
	lives []time.Duration
	bad   []LineError
}

// Import registers all rows with a code each, or none. allowed, if not nil, may refuse a row for reasons of the caller's. With check, nothing is
// changed: the answer is whether Import would succeed. The errors of rows are an *ImportError.
func (b *Book) Import(ctx context.Context, actor string, rows []ImportRow, allowed func(ImportRow) error, check bool) (Imported, error) {
	if len(rows) == 0 || len(rows) > MaxImport {
		return Imported{}, refuse(Invalid, "import_size", "an import has 1 to %d rows, this one has %d", MaxImport, len(rows))
	}
	labels := map[string]Label{}
	for _, r := range rows {
		if _, known := labels[r.Label]; known {
			continue
		}
		l, err := b.Label(ctx, r.Label)
		if err != nil && !isKind(err, UnknownLabel) {
			return Imported{}, err
		}
		labels[r.Label] = l
	}
	im := &importing{book: b, actor: actor, now: b.clock.Now(), rows: rows, names: make([]string, len(rows)), lives: make([]time.Duration, len(rows))}
	im.checkRows(labels, allowed)
	read := func(dest any, query string, args ...any) error { return b.db.Select(ctx, dest, query, args...) }
	before, err := im.compare(read)
	if err != nil {
		return Imported{}, storage("import", err)
	}
	if err := im.failed(); err != nil || check || before.repeated {
		return Imported{Repeated: before.repeated}, err
	}
	var out Imported
	err = b.db.Write(ctx, "registration.import", func(tx *database.Tx) (err error) {
		out, err = im.write(tx)
		return err
	})
	if database.IsUnique(err) {
		err = refuse(Conflict, "device_exists", "somebody else added one of the devices meanwhile: nothing was imported")
	}
	if err != nil {
		return Imported{}, storage("import", err)
	}
	b.changes.Announce()
	return out, nil
}

func (im *importing) fail(row int, err error) {
	line := LineError{Line: im.rows[row].Line, Rule: "invalid", Detail: err.Error()}
	var typed *Error
	var named interface{ Refusal() (rule, detail string) }
	switch {
	case errors.As(err, &typed):
		line.Rule, line.Detail = typed.Reason, typed.Detail
	case errors.As(err, &named):
		line.Rule, line.Detail = named.Refusal()
	}
	im.bad = append(im.bad, line)
}

// failed is the refusal that the bad lines make, or nil.
func (im *importing) failed() error {
	if len(im.bad) == 0 {
		return nil
	}
	slices.SortStableFunc(im.bad, func(a, b LineError) int { return a.Line - b.Line })
	named := im.bad[:min(len(im.bad), MaxLineErrors)]
	return &ImportError{Lines: slices.Clone(named), More: len(im.bad) - len(named)}
}

// checkRows finds all that is wrong with the rows by themselves. A line is named once, with the first rule that it breaks.
func (im *importing) checkRows(labels map[string]Label, allowed func(ImportRow) error) {
	ids, codes := map[string]int{}, map[string]int{}
	for n, r := range im.rows {
		folded := strings.ToLower(r.ID)
		err := im.checkRow(n, r, labels[r.Label])
		if err == nil && ids[folded] > 0 {
			err = refuse(Conflict, "device_twice", "device %q is in line %d already", r.ID, ids[folded])
		}
		if err == nil && r.Code != "" && codes[r.Code] > 0 {
			err = refuse(Invalid, "code_shared", "the code of device %q is that of line %d as well: a code is one device's", r.ID, codes[r.Code])
		}
		if err == nil && allowed != nil {
			err = allowed(r)
		}
		if err != nil {
			im.fail(n, err)
			continue
		}
		ids[folded], codes[r.Code] = r.Line, r.Line
	}
}

func (im *importing) checkRow(n int, r ImportRow, l Label) (err error) {
	if err := im.book.CheckID(r.ID); err != nil {
		return err
	}
	if l.Name == "" {
		return refuse(UnknownLabel, "unknown_label", "there is no label %q", r.Label)
	}
	if r.Service != "" && !idForm.MatchString(r.Service) {
		return refuse(Invalid, "service", "a service matches %s", idForm)
	}
	if im.names[n], err = checkSANs(r.SANs); err != nil {
		return err
	}
	code := NewCode{Secret: r.Code}
	if !r.Expires.IsZero() {
		if code.Life = r.Expires.Sub(im.now); code.Life <= 0 {
			return refuse(Invalid, "code_life", "the code expired on %s", r.Expires.Format(time.RFC3339))
		}
	}
	code, err = im.book.checkCode(l, r.ID, code)
	im.lives[n] = code.Life
	return err
}

// compared is what the database has of the rows.
type compared struct {
	repeated bool
	removed  map[string]entityRow // historical ones, by id
}

// compare finds rows that exist. They are bad lines, unless all rows are there with their codes: then the import is a repeat.
func (im *importing) compare(read func(dest any, query string, args ...any) error) (compared, error) {
	var existing []entityRow
	hashes := map[string]bool{}
	for start := 0; start < len(im.rows); start += importChunk {
		part := im.rows[start:min(start+importChunk, len(im.rows))]
		folded, ids := make([]any, len(part)), make([]any, len(part))
		for i, r := range part {
			folded[i], ids[i] = strings.ToLower(r.ID), r.ID
			if !storable(r.ID) {
				folded[i], ids[i] = "", ""
			}
		}
		var some []entityRow
		if err := read(&some, "SELECT "+entityColumns+" FROM end_entities WHERE lower(id) IN "+tuples(len(part), 1), folded...); err != nil {
			return compared{}, err
		}
		existing = append(existing, some...)
		var codes []string
		if err := read(&codes, "SELECT hash FROM enrollment_codes WHERE device IN "+tuples(len(part), 1), ids...); err != nil {
			return compared{}, err
		}
		for _, hash := range codes {
			hashes[hash] = true
		}
	}
	return im.judge(existing, hashes), nil
}

// storable: only what could be an id is asked for; PostgreSQL would not take every string.
func storable(id string) bool { return idForm.MatchString(id) }

func (im *importing) judge(existing []entityRow, hashes map[string]bool) compared {
	by := map[string]entityRow{}
	for _, e := range existing {
		by[strings.ToLower(e.ID)] = e
	}
	out := compared{repeated: len(im.bad) == 0, removed: map[string]entityRow{}}
	named := map[int]bool{}
	for _, bad := range im.bad {
		named[bad.Line] = true
	}
	var there []int
	for n, r := range im.rows {
		e, exists := by[strings.ToLower(r.ID)]
		same := exists && e.ID == r.ID && e.State != StateHistorical && e.Label == r.Label && r.Code != "" && hashes[im.book.hashCode(r.ID, r.Code)]
		out.repeated = out.repeated && same
		switch {
		case exists && e.ID == r.ID && e.State == StateHistorical:
			if out.removed[r.ID] = e; !named[r.Line] && r.Code != "" && hashes[im.book.hashCode(r.ID, r.Code)] {
				im.fail(n, refuse(Conflict, "code_reused", "device %q had this code before it was removed", r.ID))
			}
		case exists && !named[r.Line]:
			there = append(there, n)
		}
	}
	if out.repeated {
		return out
	}
	for _, n := range there {
		r, e := im.rows[n], by[strings.ToLower(im.rows[n].ID)]
		if e.ID != r.ID {
			im.fail(n, refuse(Conflict, "device_exists", "device %q differs from %q in case only", r.ID, e.ID))
		} else {
			im.fail(n, refuse(Conflict, "device_exists", "device %q exists", r.ID))
		}
	}
	return out
}

// write is the transaction. It may run twice.
func (im *importing) write(tx *database.Tx) (Imported, error) {
	im.bad = nil
	found, err := im.compare(tx.Select)
	if err != nil {
		return Imported{}, err
	}
	if err := im.failed(); err != nil || found.repeated {
		return Imported{Repeated: found.repeated}, err
	}
	out := Imported{Codes: make([]Code, 0, len(im.rows))}
	var list []string
	for start := 0; start < len(im.rows); start += importChunk {
		end := min(start+importChunk, len(im.rows))
		codes, err := im.writeChunk(tx, start, end, found.removed)
		if err != nil {
			return Imported{}, err
		}
		out.Codes = append(out.Codes, codes...)
	}
	for _, r := range im.rows {
		list = append(list, r.ID)
	}
	sum := sha256.Sum256([]byte(strings.Join(list, "\n")))
	return out, im.book.append(tx, audit.Entry{Actor: im.actor, Action: "devices_imported", Object: im.rows[0].ID, Detail: map[string]string{
		"devices": strconv.Itoa(len(im.rows)), "ids_sha256": hex.EncodeToString(sum[:]),
	}})
}

func (im *importing) writeChunk(tx *database.Tx, start, end int, removed map[string]entityRow) ([]Code, error) {
	b := im.book
	var devices []NewDevice
	var names []string
	var rows []codeRow
	var codes []Code
	for n := start; n < end; n++ {
		r := im.rows[n]
		d := NewDevice{ID: r.ID, Label: r.Label, SANs: r.SANs, Service: r.Service}
		if old, was := removed[r.ID]; was {
			if err := b.addAgain(tx, im.now, &old, Label{Name: r.Label}, d, im.names[n]); err != nil {
				return nil, err
			}
		} else {
			devices, names = append(devices, d), append(names, im.names[n])
		}
		row, secret, err := b.newCodeRow(im.now, r.ID, r.Label, NewCode{Secret: r.Code, Life: im.lives[n]})
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
		code := row.code(im.now)
		if r.Code == "" {
			code.Code = secret
		}
		codes = append(codes, code)
		b.tell(tx, im.now, feedapi.DeviceAdded, b.known(r.Label), r.ID, r.Service)
		detail := map[string]string{"label": r.Label, "code_id": row.ID, "expires": code.Expires.Format(time.RFC3339), "source": "import"}
		if r.Service != "" {
			detail["service"] = r.Service
		}
		if err := b.append(tx, audit.Entry{Actor: im.actor, Action: "device_added", Object: r.ID, Detail: detail}); err != nil {
			return nil, err
		}
	}
	if len(devices) > 0 {
		if err := insertEntities(tx, im.now, devices, names); err != nil {
			return nil, err
		}
	}
	return codes, insertCodes(tx, rows)
}
