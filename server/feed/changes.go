// Devices and changes: what the broker's access rules are made from, and who has to leave.

package feed

import (
	"context"
	"net/http"
	"strconv"

	"github.com/natal-pki/natal/internal/feedapi"
)

// A page of changes. A bridge that is further behind asks again at once.
const changesPage = 1000

func (f *Feed) getDevices(w http.ResponseWriter, r *http.Request, _ string) error {
	list, err := f.cfg.Book.DevicesForBroker(r.Context())
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, list)
	return nil
}

func (f *Feed) getChanges(w http.ResponseWriter, r *http.Request, _ string) error {
	since, err := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64)
	if err != nil || since < 0 {
		return badRequest("invalid", "since: a number is needed")
	}
	wait, err := waitOf(w, r)
	if err != nil {
		return err
	}
	newest, err := f.changes.Seq(r.Context())
	if err != nil {
		return err
	}
	known, err := f.known(r.Context(), since, newest)
	if err != nil {
		return err
	}
	if !known {
		answer(w, http.StatusOK, feedapi.Changes{Seq: newest, Reset: true, Changes: []feedapi.Change{}})
		return nil
	}
	var list []feedapi.Change
	err = f.await(r.Context(), wait, func(ctx context.Context) (bool, error) {
		list, err = f.changes.Since(ctx, since, changesPage)
		return len(list) > 0, err
	})
	if err != nil {
		return err
	}
	out := feedapi.Changes{Seq: since, Changes: list}
	if n := len(list); n > 0 {
		out.Seq = list[n-1].Seq
	}
	answer(w, http.StatusOK, out)
	return nil
}

// known tells whether since is the number of a change here. One that a restored server has lost is not, though its numbers go on far beyond.
func (f *Feed) known(ctx context.Context, since, newest int64) (bool, error) {
	if since == 0 || since == newest {
		return true, nil
	}
	if since > newest {
		return false, nil
	}
	return f.changes.Has(ctx, since)
}
