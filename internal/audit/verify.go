// Verifying the log: every hash computed anew, every entry continuing the one before.

package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/natal-pki/natal/internal/database"
)

// ErrBroken is the root of every finding of Verify.
var ErrBroken = errors.New("audit log is broken")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBroken, fmt.Sprintf(format, args...))
}

// Verify walks the whole log and returns its head. known, if not nil, is a head exported earlier, which must still be part of the log. Entries
// may be added meanwhile.
func Verify(ctx context.Context, db *database.DB, known *Head) (Head, error) {
	before, err := Current(ctx, db)
	if err != nil {
		return Head{}, err
	}
	w := &verification{before: before, known: known}
	if err := walk(ctx, db, Filter{}, math.MaxInt64, w.visit); err != nil {
		return w.head, err
	}
	if before.Seq > w.head.Seq {
		return w.head, broken("its end is missing: head says %d, last entry is %d", before.Seq, w.head.Seq)
	}
	after, err := Current(ctx, db)
	if err != nil {
		return w.head, err
	}
	w.head.Epoch, w.head.At = after.Epoch, after.At
	if after.Seq < w.head.Seq {
		return w.head, broken("entries stand after its end: head says %d, last entry is %d", after.Seq, w.head.Seq)
	}
	if known != nil && known.Seq > w.head.Seq {
		return w.head, broken("its end is missing: exported head says %d, last entry is %d", known.Seq, w.head.Seq)
	}
	return w.head, nil
}

// verification is a walk under way.
type verification struct {
	before Head  // what the head said at the beginning
	known  *Head // what must be part of the log
	head   Head
}

func (w *verification) visit(r record) error {
	last := w.head
	switch gap := r.Seq > last.Seq+1; {
	case r.Seq != last.Seq+1 && !(gap && r.Action == Restored):
		return broken("entry %d is followed by %d", last.Seq, r.Seq)
	case r.Previous != last.Hash:
		return broken("entry %d does not continue entry %d", r.Seq, last.Seq)
	case r.sum() != r.Hash:
		return broken("entry %d was changed", r.Seq)
	case r.Seq == w.before.Seq && r.Hash != w.before.Hash:
		return broken("entry %d is not the one that the head tells of", r.Seq)
	case w.known != nil && w.known.Seq == r.Seq && w.known.Hash != r.Hash:
		return broken("entry %d is not the one of the exported head", r.Seq)
	case w.known != nil && gap && last.Seq < w.known.Seq && w.known.Seq < r.Seq:
		return broken("entry %d of the exported head is not there: entries from %d on were lost when a backup was restored (entry %d, %s)",
			w.known.Seq, last.Seq+1, r.Seq, strings.TrimSpace(r.Detail))
	}
	w.head = Head{Seq: r.Seq, Hash: r.Hash}
	return nil
}
