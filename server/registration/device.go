// End entities: the devices (and bridges) as the registration authority knows them. Their states are in states.go.

package registration

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// EndEntity is the record of a device.
type EndEntity struct {
	ID         string
	Label      string
	State      string
	BoundKind  string   // "code", "birth" or "bundle": its first authenticator; "" while unbound
	BoundTo    string   // code id, or birth CA key and serial number
	SANs       []string // names registered with it: "dns:NAME", "ip:ADDRESS"
	Service    string   // the application it belongs to, a level of its topics at the broker; "" if none
	Generation int64    // rises with each reissue
	CreatedAt  time.Time
	UpdatedAt  time.Time

	SuspendedAt time.Time // zero if it is not suspended
}

type entityRow struct {
	ID          string `db:"id"`
	Label       string `db:"label"`
	State       string `db:"state"`
	BoundKind   string `db:"bound_kind"`
	BoundTo     string `db:"bound_to"`
	SANs        string `db:"sans"`
	Generation  int64  `db:"generation"`
	Service     string `db:"service"`
	SuspendedAt int64  `db:"suspended_at"`
	CreatedAt   int64  `db:"created_at"`
	UpdatedAt   int64  `db:"updated_at"`
}

const entityColumns = "id, label, state, bound_kind, bound_to, sans, generation, service, suspended_at, created_at, updated_at"

func (r *entityRow) entity() (EndEntity, error) {
	e := EndEntity{ID: r.ID, Label: r.Label, State: r.State, BoundKind: r.BoundKind, BoundTo: r.BoundTo, Service: r.Service, Generation: r.Generation, CreatedAt: moment(r.CreatedAt), UpdatedAt: moment(r.UpdatedAt), SuspendedAt: moment(r.SuspendedAt)}
	if err := json.Unmarshal([]byte(r.SANs), &e.SANs); err != nil {
		return e, fmt.Errorf("end entity %s: %w", r.ID, err)
	}
	return e, nil
}

// NewDevice is what an end entity is registered with.
type NewDevice struct {
	ID      string
	Label   string
	SANs    []string // "dns:NAME", "ip:ADDRESS"
	Service string   // of the form of an id; "" if none
}

// AddDevice registers an end entity in state new.
func (b *Book) AddDevice(ctx context.Context, actor string, d NewDevice) (EndEntity, error) {
	l, err := b.Label(ctx, d.Label)
	if err != nil {
		return EndEntity{}, err
	}
	err = b.db.Write(ctx, "registration.device_add", func(tx *database.Tx) error {
		return b.addEntity(tx, actor, l, d)
	})
	if err != nil {
		return EndEntity{}, storage("add device", err)
	}
	b.changes.Announce()
	return b.Device(ctx, d.ID)
}

// addEntity is a part of every transaction that may meet an end entity for the first time.
func (b *Book) addEntity(tx *database.Tx, actor string, l Label, d NewDevice) error {
	id := d.ID
	if err := b.CheckID(id); err != nil {
		return err
	}
	if d.Service != "" && !idForm.MatchString(d.Service) {
		return refuse(Invalid, "service", "a service matches %s", idForm)
	}
	names, err := checkSANs(d.SANs)
	if err != nil {
		return err
	}
	now := b.clock.Now()
	var twin entityRow
	err = tx.Get(&twin, "SELECT "+entityColumns+" FROM end_entities WHERE lower(id) = ?", strings.ToLower(id))
	switch {
	case isNoRows(err):
		d.Label = l.Name
		err = insertEntities(tx, now, []NewDevice{d}, []string{names})
	case err == nil && twin.ID != id:
		err = refuse(Conflict, "device_exists", "device %q differs from %q in case only", id, twin.ID)
	case err == nil:
		err = b.addAgain(tx, now, &twin, l, d, names)
	}
	if err != nil {
		return err
	}
	b.tell(tx, now, feedapi.DeviceAdded, l, id, d.Service)
	detail := map[string]string{"label": l.Name}
	if d.Service != "" {
		detail["service"] = d.Service
	}
	return b.append(tx, audit.Entry{Actor: actor, Action: "device_added", Object: id, Detail: detail})
}

// addAgain gives a removed device's id a new life.
func (b *Book) addAgain(tx *database.Tx, now time.Time, row *entityRow, l Label, d NewDevice, names string) error {
	row.SANs = names
	old, err := row.entity()
	if err != nil {
		return err
	}
	_, _, err = b.change(tx, now, old, eventAdd, func(e *EndEntity) {
		unbound(e)
		e.Label, e.Service = l.Name, d.Service
	})
	return err
}

// tell puts a change of a device into the feed if its label's certificates reach brokers.
func (b *Book) tell(tx *database.Tx, now time.Time, kind string, l Label, id, service string) {
	p, err := b.ca.Profile(context.Background(), l.Profile) // from memory
	if err == nil && p.Use() == profile.UseBroker {
		b.changes.Append(tx, feedapi.Change{At: now, Kind: kind, Device: &feedapi.Device{ID: id, Label: l.Name, Profile: l.Profile, Service: service}})
	}
}

func checkSANs(sans []string) (string, error) {
	if len(sans) > 32 {
		return "", refuse(Invalid, "san", "more than 32 names")
	}
	names := []string{}
	for _, san := range sans {
		kind, value, _ := strings.Cut(san, ":")
		if (kind != "dns" && kind != "ip") || profile.NameOf(value) != kind+":"+strings.ToLower(value) || !sanForm(value) {
			return "", refuse(Invalid, "san", "%q is not dns:NAME or ip:ADDRESS", san)
		}
		names = append(names, profile.NameOf(value))
	}
	list, err := json.Marshal(names)
	return string(list), err
}

func sanForm(value string) bool {
	return value != "" && len(value) <= 253 && !strings.ContainsFunc(value, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(".-_:*", r))
	})
}

// Device returns an end entity.
func (b *Book) Device(ctx context.Context, id string) (EndEntity, error) {
	var r entityRow
	err := b.db.Get(ctx, &r, "SELECT "+entityColumns+" FROM end_entities WHERE id = ?", id)
	if isNoRows(err) {
		return EndEntity{}, refuse(NotFound, "unknown_device", "there is no device %q", id)
	}
	if err != nil {
		return EndEntity{}, storage("read device", err)
	}
	return r.entity()
}

// Filter selects end entities or codes; zero fields select all.
type Filter struct {
	Label  string
	State  string
	Device string // codes only
	Prefix string // beginning of the id; end entities only, like the next two
	Part   string // some part of the id, whatever the case; reads all ids until a page is full

	Suspended bool // only those that are

	After string // id of the last one of the page before
	Limit int    // default and most: 1000
}

var likeEscapes = strings.NewReplacer("!", "!!", "%", "!%", "_", "!_")

func (f Filter) where(key string) (string, []any) {
	where, args := []string{key + " > ?"}, []any{f.After}
	if f.Label != "" {
		where, args = append(where, "label = ?"), append(args, f.Label)
	}
	switch {
	case f.State != StateGenerated && slices.Contains(entityStates, f.State): // in the words that SQLite needs to use the index of these
		where = append(where, "state = '"+f.State+"' AND state <> 'generated'")
	case f.State != "":
		where, args = append(where, "state = ?"), append(args, f.State)
	}
	if f.Prefix != "" {
		where, args = append(where, key+" >= ? AND "+key+" < ?"), append(args, f.Prefix, f.Prefix+"\x7f") // behind every character of an id
	}
	if f.Part != "" {
		where, args = append(where, "lower("+key+") LIKE ? ESCAPE '!'"), append(args, "%"+likeEscapes.Replace(strings.ToLower(f.Part))+"%")
	}
	if f.Suspended {
		where = append(where, "suspended_at > 0")
	}
	if f.Device != "" {
		where, args = append(where, "device = ?"), append(args, f.Device)
	}
	if f.Limit <= 0 || f.Limit > 1000 {
		f.Limit = 1000
	}
	return " WHERE " + strings.Join(where, " AND ") + " ORDER BY " + key + " LIMIT ?", append(args, f.Limit)
}

var entityStates = []string{StateNew, StateGenerated, StateRevoked, StateHistorical}

// Devices lists end entities in the order of their ids.
func (b *Book) Devices(ctx context.Context, f Filter) ([]EndEntity, error) {
	if f.State != "" && !slices.Contains(entityStates, f.State) {
		return nil, refuse(Invalid, "state", "%q is none of %s", f.State, strings.Join(entityStates, ", "))
	}
	where, args := f.where("id")
	var rows []entityRow
	if err := b.db.Select(ctx, &rows, "SELECT "+entityColumns+" FROM end_entities"+where, args...); err != nil {
		return nil, storage("list devices", err)
	}
	list := make([]EndEntity, len(rows))
	for i := range rows {
		var err error
		if list[i], err = rows[i].entity(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// DevicesForBroker lists every end entity that may use the broker, and the sequence number from which to follow the changes.
func (b *Book) DevicesForBroker(ctx context.Context) (feedapi.Devices, error) {
	seq, err := b.changes.Seq(ctx) // before the list: a change in between is in both, which does no harm
	if err != nil {
		return feedapi.Devices{}, storage("read change log", err)
	}
	labels, err := b.Labels(ctx)
	if err != nil {
		return feedapi.Devices{}, err
	}
	list := feedapi.Devices{Seq: seq, Devices: []feedapi.Device{}}
	for _, l := range labels {
		in, err := b.inBroker(ctx, l)
		if err != nil {
			return feedapi.Devices{}, err
		}
		if !in {
			continue
		}
		var members []struct {
			ID      string `db:"id"`
			Service string `db:"service"`
		}
		if err := b.db.Select(ctx, &members, "SELECT id, service FROM end_entities WHERE label = ? AND state IN ('new', 'generated') AND suspended_at = 0 ORDER BY id", l.Name); err != nil {
			return feedapi.Devices{}, storage("list devices", err)
		}
		for _, m := range members {
			list.Devices = append(list.Devices, feedapi.Device{ID: m.ID, Label: l.Name, Profile: l.Profile, Service: m.Service})
		}
	}
	slices.SortFunc(list.Devices, func(a, b feedapi.Device) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// RevokeDevice revokes the end entity: all its certificates, its codes, its birth certificate's right, until a reissue.
func (b *Book) RevokeDevice(ctx context.Context, actor, id, reason string) (EndEntity, error) {
	if err := checkFinal(reason); err != nil {
		return EndEntity{}, err
	}
	return b.end(ctx, actor, id, eventRevoke, "device_revoked", reason)
}

// checkFinal refuses what is no reason for an end.
func checkFinal(reason string) error {
	if reason == "certificateHold" {
		return refuse(Invalid, "reason", "certificateHold is no end: device suspend ID, or cert revoke SERIAL --reason certificateHold")
	}
	return ca.CheckReason(reason)
}

// RemoveDevice revokes all that the device has and keeps it as historical. The id may be added again.
func (b *Book) RemoveDevice(ctx context.Context, actor, id string) error {
	_, err := b.end(ctx, actor, id, eventRemove, "device_removed", "cessationOfOperation")
	return err
}

func (b *Book) end(ctx context.Context, actor, id string, ev event, action, reason string) (EndEntity, error) {
	var issuers []string
	ctx = context.WithoutCancel(ctx)
	err := b.db.Write(ctx, "registration.device_end", func(tx *database.Tx) (err error) {
		issuers, err = b.endInTx(tx, actor, id, ev, action, reason)
		return err
	})
	if err != nil {
		return EndEntity{}, storage("end device", err)
	}
	b.changes.Announce()
	b.ca.PublishAfterRevocation(ctx, issuers...)
	return b.Device(ctx, id)
}

// endInTx returns the CAs whose certificates were revoked.
func (b *Book) endInTx(tx *database.Tx, actor, id string, ev event, action, reason string) (issuers []string, err error) {
	e, err := b.lock(tx, id)
	if err != nil {
		return nil, err
	}
	now := b.clock.Now()
	if _, changed, err := b.change(tx, now, e, ev, nil); err != nil || !changed {
		return nil, err
	}
	if issuers, err = b.endCredentials(tx, now, actor, id, reason); err != nil {
		return nil, err
	}
	b.tell(tx, now, feedapi.DeviceRemoved, b.known(e.Label), id, e.Service)
	return issuers, b.append(tx, audit.Entry{Actor: actor, Action: action, Object: id, Detail: map[string]string{"reason": reason}})
}

// lock reads an end entity for a change of it, inside a transaction.
func (b *Book) lock(tx *database.Tx, id string) (EndEntity, error) {
	query := "SELECT " + entityColumns + " FROM end_entities WHERE id = ?"
	if tx.Dialect() == database.Postgres {
		query += " FOR UPDATE"
	}
	var r entityRow
	err := tx.Get(&r, query, id)
	if isNoRows(err) {
		return EndEntity{}, refuse(NotFound, "unknown_device", "there is no device %q", id)
	}
	if err != nil {
		return EndEntity{}, err
	}
	return r.entity()
}

// endCredentials revokes every certificate and code of a device, and with them the memory of a suspension, and returns the CAs concerned.
func (b *Book) endCredentials(tx *database.Tx, now time.Time, actor, id, reason string) (issuers []string, err error) {
	if _, err := tx.Exec("UPDATE enrollment_codes SET state = 'revoked' WHERE device = ? AND state = 'active'", id); err != nil {
		return nil, err
	}
	if err := b.ca.ForgetSuspensionInTx(tx, id); err != nil {
		return nil, err
	}
	var rows []struct {
		Serial   string `db:"serial"`
		Issuer   string `db:"issuer"`
		IssuedAt int64  `db:"issued_at"`
	}
	err = tx.Select(&rows, "SELECT serial, issuer, issued_at FROM certificates WHERE device = ? AND state IN ('issued', 'held', 'intended') AND not_after > ?", id, now.UnixMilli())
	if err != nil {
		return nil, err
	}
	// What a bridge was given to prove its broker with goes with it.
	canaries := rows[:0:0]
	err = tx.Select(&canaries, "SELECT serial, issuer, issued_at FROM certificates WHERE requester_kind = 'canary' AND requester = ? AND state IN ('issued', 'held', 'intended') AND not_after > ?", id, now.UnixMilli())
	if err != nil {
		return nil, err
	}
	rows = append(rows, canaries...)
	for _, r := range rows {
		c := ca.Certificate{Issuer: r.Issuer, Serial: r.Serial, Device: id, IssuedAt: moment(r.IssuedAt)}
		if _, err := b.ca.RevokeInTx(tx, now, actor, c, reason); err != nil {
			return nil, err
		}
		if !slices.Contains(issuers, r.Issuer) {
			issuers = append(issuers, r.Issuer)
		}
	}
	return issuers, nil
}

// Reissue lets an end entity enroll once more: its certificates are revoked for reason ("": superseded), its bindings undone; a fresh code is returned where the
// label takes codes (otherwise Code.Code is empty and its birth certificate serves once more).
func (b *Book) Reissue(ctx context.Context, actor, id, reason string) (Code, error) {
	if reason == "" {
		reason = "superseded"
	}
	if err := checkFinal(reason); err != nil {
		return Code{}, err
	}
	var issuers []string
	var code Code
	ctx = context.WithoutCancel(ctx)
	err := b.db.Write(ctx, "registration.device_reissue", func(tx *database.Tx) error {
		e, err := b.lock(tx, id)
		if err != nil {
			return err
		}
		l, now := b.known(e.Label), b.clock.Now()
		if _, _, err := b.change(tx, now, e, eventReissue, unbound); err != nil {
			return err
		}
		if issuers, err = b.endCredentials(tx, now, actor, id, reason); err != nil {
			return err
		}
		b.tell(tx, now, feedapi.DeviceAdded, l, id, e.Service)
		code = Code{Device: id, Label: l.Name}
		if slices.Contains(l.Auth, AuthCode) {
			if code, err = b.addCode(tx, now, actor, id, l, NewCode{Life: b.codeLife}); err != nil {
				return err
			}
		}
		return b.append(tx, audit.Entry{Actor: actor, Action: "device_reissued", Object: id, Detail: map[string]string{"reason": reason}})
	})
	if err != nil {
		return Code{}, storage("reissue device", err)
	}
	b.changes.Announce()
	b.ca.PublishAfterRevocation(ctx, issuers...)
	return code, nil
}
