// The life of an end entity, in one table: nothing else in the source writes end_entities.state (states_test.go looks).
//
//	new        may enroll (first time, or again after a reissue)
//	generated  has a certificate; its credentials serve for nothing but a repeat of the same request
//	revoked    nothing of it is accepted until a reissue
//	historical removed; its certificates stay on record
//
// A device that is new or generated may be suspended besides: nothing of it is accepted until it is resumed, and then everything is as before.

package registration

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/natal-pki/natal/internal/database"
)

// States of an end entity.
const (
	StateNew        = "new"
	StateGenerated  = "generated"
	StateRevoked    = "revoked"
	StateHistorical = "historical"
)

// event is what may happen to an end entity.
type event string

const (
	eventAdd     event = "add" // for the first time, or again after a removal
	eventEnroll  event = "enroll"
	eventRevoke  event = "revoke"
	eventReissue event = "reissue"
	eventRemove  event = "remove"
	eventSuspend event = "suspend"
	eventResume  event = "resume"
)

// standing is all of an end entity that decides what may happen to it. The zero standing is that of an id without a record.
type standing struct {
	state     string
	suspended bool
}

// life is the table. What is not in it is refused; where an event leads to where it came from, its repeat changes nothing (a reissue excepted, which
// ends what was there).
var life = map[standing]map[event]standing{
	{}: {eventAdd: {state: StateNew}},
	{state: StateNew}: {
		eventEnroll: {state: StateGenerated}, eventRevoke: {state: StateRevoked}, eventReissue: {state: StateNew},
		eventRemove: {state: StateHistorical}, eventSuspend: {StateNew, true}, eventResume: {state: StateNew},
	},
	{state: StateGenerated}: {
		eventRevoke: {state: StateRevoked}, eventReissue: {state: StateNew},
		eventRemove: {state: StateHistorical}, eventSuspend: {StateGenerated, true}, eventResume: {state: StateGenerated},
	},
	{StateNew, true}: {
		eventRevoke: {state: StateRevoked}, eventRemove: {state: StateHistorical}, eventSuspend: {StateNew, true}, eventResume: {state: StateNew},
	},
	{StateGenerated, true}: {
		eventRevoke: {state: StateRevoked}, eventRemove: {state: StateHistorical}, eventSuspend: {StateGenerated, true}, eventResume: {state: StateGenerated},
	},
	{state: StateRevoked}: {
		eventRevoke: {state: StateRevoked}, eventReissue: {state: StateNew}, eventRemove: {state: StateHistorical},
	},
	{state: StateHistorical}: {
		eventAdd: {state: StateNew}, eventRemove: {state: StateHistorical},
	},
}

func (e *EndEntity) standing() standing { return standing{e.State, !e.SuspendedAt.IsZero()} }

// counts tells whether a certificate of the given generation authenticates the end entity now.
func (e *EndEntity) counts(generation int64) bool {
	return e.standing() == standing{state: StateGenerated} && e.Generation == generation
}

func (e *EndEntity) describe() string {
	if !e.SuspendedAt.IsZero() {
		return e.State + ", suspended"
	}
	return e.State
}

// next is where an event leads, or the refusal that tells the way out.
func next(e EndEntity, ev event) (standing, error) {
	from := e.standing()
	to, ok := life[from][ev]
	switch {
	case ok:
		return to, nil
	case from.suspended:
		return to, refuse(Conflict, "device_suspended", "device %q is suspended since %s: resume it, or revoke it", e.ID, e.SuspendedAt.Format(time.RFC3339))
	case ev == eventAdd:
		return to, refuse(Conflict, "device_exists", "device %q exists", e.ID)
	case from.state == StateHistorical:
		return to, refuse(Conflict, "device_state", "device %q was removed: add it again", e.ID)
	}
	return to, refuse(Conflict, "device_state", "device %q is %s: device reissue lets it enroll anew", e.ID, from.state)
}

// change lets ev happen to an end entity that was locked in this transaction, with what edit changes besides. changed is false where the table says
// that nothing is to be done.
func (b *Book) change(tx *database.Tx, now time.Time, old EndEntity, ev event, edit func(*EndEntity)) (e EndEntity, changed bool, err error) {
	to, err := next(old, ev)
	if err != nil {
		return old, false, err
	}
	if to == old.standing() && ev != eventReissue {
		return old, false, nil
	}
	e = old
	e.State, e.UpdatedAt = to.state, now
	switch {
	case !to.suspended:
		e.SuspendedAt = time.Time{}
	case e.SuspendedAt.IsZero():
		e.SuspendedAt = now
	}
	if edit != nil {
		edit(&e)
	}
	names, err := json.Marshal(e.SANs)
	if err != nil {
		return old, false, err
	}
	rows, err := tx.Exec("UPDATE end_entities SET state = ?, label = ?, bound_kind = ?, bound_to = ?, sans = ?, generation = ?, service = ?, suspended_at = ?, updated_at = ? "+
		"WHERE id = ? AND state = ? AND generation = ? AND suspended_at = ?",
		e.State, e.Label, e.BoundKind, e.BoundTo, string(names), e.Generation, e.Service, milliseconds(e.SuspendedAt), milliseconds(now),
		old.ID, old.State, old.Generation, milliseconds(old.SuspendedAt))
	if err == nil && rows != 1 {
		err = fmt.Errorf("end entity %s was changed meanwhile", old.ID)
	}
	return e, true, err
}

// insertEntities makes the records of ids that have none, in one statement; the caller bounds their number. names are the SANs as they are stored.
func insertEntities(tx *database.Tx, now time.Time, devices []NewDevice, names []string) error {
	args := make([]any, 0, 11*len(devices))
	for n, d := range devices {
		args = append(args, d.ID, d.Label, life[standing{}][eventAdd].state, "", "", names[n], 1, d.Service, 0, milliseconds(now), milliseconds(now))
	}
	_, err := tx.Exec("INSERT INTO end_entities ("+entityColumns+") VALUES "+tuples(11, len(devices)), args...)
	return err
}

func milliseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// unbound undoes what an end entity was bound to, for its next life.
func unbound(e *EndEntity) {
	e.BoundKind, e.BoundTo = "", ""
	e.Generation++
}
