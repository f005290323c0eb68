// The log as JSON lines: one entry, one line, in plain ASCII, so that nothing that somebody put into a name can act on a terminal
// or pass for a line of its own.

package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
	"unicode/utf8"

	"github.com/natal-pki/natal/internal/database"
)

// Filter selects entries; zero fields select all.
type Filter struct {
	Since  time.Time // at this time or later
	Until  time.Time // before this time
	Action string
	Object string
}

func (f Filter) where() (conditions string, args []any) {
	add := func(condition string, value any) {
		conditions, args = conditions+" AND "+condition, append(args, value)
	}
	if !f.Since.IsZero() {
		add("at >= ?", f.Since.UnixMilli())
	}
	if !f.Until.IsZero() {
		add("at < ?", f.Until.UnixMilli())
	}
	if f.Action != "" {
		add("action = ?", f.Action)
	}
	if f.Object != "" {
		add("object = ?", f.Object)
	}
	return conditions, args
}

// lastLine ends an export: with it a later Verify notices that the end of the log was cut off.
type lastLine struct {
	Head Head `json:"head"`
}

// Export writes one JSON object a line, oldest first, and in the end {"head": ...}, the newest entry when the export began: entries after it are
// not in the export.
func Export(ctx context.Context, db *database.DB, w io.Writer, f Filter) error {
	head, err := Current(ctx, db)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 64<<10)
	if err := walk(ctx, db, f, head.Seq, func(r record) error { return writeLine(out, r) }); err != nil {
		return err
	}
	if err := writeLine(out, lastLine{head}); err != nil {
		return err
	}
	return out.Flush()
}

// ReadHead finds the head in what `audit head`, `audit verify` (as JSON) or an export says: the last line, or the whole.
func ReadHead(content []byte) (Head, error) {
	type named struct {
		Epoch int64  `json:"epoch"`
		Seq   int64  `json:"seq"`
		Hash  string `json:"hash"`
	}
	text := bytes.TrimSpace(content)
	var line struct{ Head named }
	if json.Unmarshal(text[bytes.LastIndexByte(text, '\n')+1:], &line) != nil || line.Head.Hash == "" {
		if err := json.Unmarshal(text, &line.Head); err != nil {
			line.Head = named{}
		}
	}
	if line.Head.Seq < 1 || line.Head.Hash == "" {
		return Head{}, errors.New("not a head as `audit head --json` prints it, and no export that ends with one")
	}
	return Head{Epoch: line.Head.Epoch, Seq: line.Head.Seq, Hash: line.Head.Hash}, nil
}

func writeLine(out *bufio.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	for len(text) > 0 {
		char, size := utf8.DecodeRune(text)
		switch {
		case char < 0x7f:
			err = out.WriteByte(text[0])
		case char > 0xffff:
			char -= 0x10000
			_, err = fmt.Fprintf(out, `\u%04x\u%04x`, 0xd800+char>>10, 0xdc00+char&0x3ff)
		default:
			_, err = fmt.Fprintf(out, `\u%04x`, char)
		}
		if err != nil {
			return err
		}
		text = text[size:]
	}
	return out.WriteByte('\n')
}

// walk visits the entries up to and including one, in pages.
func walk(ctx context.Context, db *database.DB, f Filter, upTo int64, visit func(record) error) error {
	const page = 1000
	conditions, args := f.where()
	query := "SELECT seq, at, actor, action, object, detail, previous, hash FROM audit WHERE seq >= ? AND seq <= ?" + conditions + " ORDER BY seq LIMIT ?"
	for next := int64(math.MinInt64); ; { // an entry before the first one is none of ours, and must show
		var records []record
		if err := db.Select(ctx, &records, query, append(append([]any{next, upTo}, args...), page)...); err != nil {
			return fmt.Errorf("read audit: %w", err)
		}
		for _, r := range records {
			if err := visit(r); err != nil {
				return err
			}
			next = r.Seq + 1
		}
		if len(records) < page {
			return nil
		}
	}
}
