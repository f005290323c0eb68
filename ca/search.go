// Search among all certificates that were ever issued. Each form reads along an index and stops at the end of a page, so that it takes
// as long among a million as among ten.

package ca

import (
	"context"
	"slices"
	"strings"
	"time"
)

// Filter selects certificates; zero fields select all. Label and Issuer have no index of their own: they narrow what the others find.
type Filter struct {
	Device       string
	DevicePrefix string // beginning of the device's id; in the order of the ids
	Serial       string // beginning of the serial number, hex
	Label        string
	Issuer       string // name of the CA
	Expired      bool   // only issued ones that have ended
	State        string
	Profile      string
	ExpireBefore time.Time // only issued ones that end before, and have not ended
	After        string    // serial of the last one of the page before
	Limit        int       // default and most: 1000
}

// Certificates lists records: what is searched by its end or by a profile, the next to end first; otherwise in the order of serial numbers, within
// a state by profile first.
func (a *Authorities) Certificates(ctx context.Context, f Filter) ([]Certificate, error) {
	s := search{order: "serial"}
	if f.State != "" && !slices.Contains(states, f.State) {
		return nil, refuse(Invalid, "state", "%q is none of %s", f.State, strings.Join(states, ", "))
	}
	switch {
	case f.Device != "":
		s.add("device = ?", f.Device)
	case f.DevicePrefix != "":
		s.add("device >= ? AND device < ?", f.DevicePrefix, f.DevicePrefix+afterIDs)
		s.order = "device, serial"
	case f.Serial != "":
		prefix := strings.TrimPrefix(strings.ReplaceAll(strings.ToLower(f.Serial), ":", ""), "0x")
		if strings.Trim(prefix, "0123456789abcdef") != "" {
			return nil, refuse(Invalid, "serial", "%q is not the beginning of a serial number in hex", f.Serial)
		}
		s.add("serial >= ? AND serial < ?", prefix, prefix+"g")
	case f.State != "" && f.State != Issued:
		s.order = "profile, serial"
	case f.Profile != "" || !f.ExpireBefore.IsZero() || f.Expired:
		s.order = "not_after, serial"
	}
	if f.Profile != "" {
		s.add("profile = ?", f.Profile)
	}
	if f.State != "" {
		s.state(f.State)
	}
	if !f.ExpireBefore.IsZero() {
		s.add("state = 'issued' AND not_after < ?", f.ExpireBefore.UnixMilli())
		s.add("not_after > ?", a.clock.Now().UnixMilli())
	}
	if f.Expired {
		s.add("state = 'issued' AND not_after <= ?", a.clock.Now().UnixMilli())
	}
	if f.Label != "" {
		s.add("label = ?", f.Label)
	}
	if f.Issuer != "" {
		s.add("issuer = ?", f.Issuer)
	}
	if err := a.continueAfter(ctx, &s, f.After); err != nil {
		return nil, err
	}
	if f.Limit <= 0 || f.Limit > 1000 {
		f.Limit = 1000
	}
	var rows []certificateRow
	if err := a.db.Select(ctx, &rows, "SELECT "+certificateColumns+" FROM certificates WHERE "+strings.Join(s.where, " AND ")+" ORDER BY "+s.order+" LIMIT ?", append(s.args, f.Limit)...); err != nil {
		return nil, unavailable("list certificates", err)
	}
	list := make([]Certificate, len(rows))
	for i := range rows {
		list[i] = rows[i].certificate()
	}
	return list, nil
}

// states are all that a certificate can be in.
var states = []string{Intended, Issued, Held, Revoked, Abandoned}

// afterIDs stands behind every character of an id.
const afterIDs = "\x7f"

type search struct {
	where []string
	args  []any
	order string
}

func (s *search) add(condition string, values ...any) {
	s.where, s.args = append(s.where, condition), append(s.args, values...)
}

// continueAfter skips what the pages before have shown: up to the certificate with the serial number after.
func (a *Authorities) continueAfter(ctx context.Context, s *search, after string) error {
	if s.order == "serial" {
		s.add("serial > ?", after)
		return nil
	}
	if after == "" {
		s.add("serial > ''")
		return nil
	}
	last, err := a.Certificate(ctx, after)
	if isKind(err, NotFound) {
		return refuse(Invalid, "after", "there is no certificate %s", after)
	}
	if err != nil {
		return err
	}
	switch s.order {
	case "device, serial":
		s.add("(device, serial) > (?, ?)", last.Device, last.Serial)
	case "profile, serial":
		s.add("(profile, serial) > (?, ?)", last.Profile, last.Serial)
	default:
		s.add("(not_after, serial) > (?, ?)", last.NotAfter.UnixMilli(), last.Serial)
	}
	return nil
}

// state selects a state in the words that SQLite needs to use an index of a part of the table: literally, and with the index's own condition.
func (s *search) state(state string) {
	s.add("state = '" + state + "'")
	if state != Issued {
		s.add("state <> 'issued'")
	}
}
