// Rollover: a new CA beside the old one. It stands by, trusted already, until everybody who has to trust it is known to; then it takes over
// in one transaction, and the old one retires as its certificates end (retire.go).

package ca

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// RolloverRequest describes the CA that is to take over from another one. What is empty is as in the old CA.
type RolloverRequest struct {
	CA       string // the old one
	Name     string // default: NAME-2, or the next number that is free
	Subject  string // default: the old CN with that number; it must be another one
	Key      string
	Parent   string // default: the old parent, or what has taken over from it
	External bool   // another PKI signs the new one
	Years    int
}

// Rollover makes the successor of a CA. Until Activate it stands by: it has a certificate and an empty CRL, is in every trust set and in
// /cacerts, and issues nothing. For a root it also makes the cross certificates, which takes both keys. What a crash left
// half done is finished by the same call.
func (a *Authorities) Rollover(ctx context.Context, actor string, req RolloverRequest) (Info, error) {
	old, err := a.authority(ctx, req.CA)
	if err != nil {
		return Info{}, err
	}
	if next := a.successor(req.CA); next != nil {
		return a.finishRollover(ctx, actor, next, req)
	}
	if old.row.State != Active && old.row.State != Revoked {
		return Info{}, refuse(Conflict, "ca_state", "CA %q is %s: only a CA that issues, or one that was revoked, is rolled over", req.CA, old.row.State)
	}
	create, err := a.newCA(old, req)
	if err != nil {
		return Info{}, err
	}
	return a.Create(ctx, actor, create)
}

// newCA is the request for a CA like old.
func (a *Authorities) newCA(old *authority, req RolloverRequest) (CreateRequest, error) {
	create := CreateRequest{
		Name: req.Name, Subject: req.Subject, Key: req.Key, Parent: req.Parent, External: req.External, Years: req.Years,
		PublicURL: old.row.PublicURL, Use: old.row.Use, CRLValidity: time.Duration(old.row.CRLValidity) * time.Millisecond, CRLInterval: time.Duration(old.row.CRLInterval) * time.Millisecond,
		replaces: old,
	}
	root := old.row.Use == UseRoot
	switch {
	case root && (req.Parent != "" || req.External):
		return create, refuse(Invalid, "ca_parent", "CA %q is a root: its successor signs itself", req.CA)
	case root && !a.store.Exists(old.row.KeyURI):
		return create, refuse(Unavailable, "ca_key_offline", "the key of CA %q is offline: to roll a root over takes the old key and the new one; put it back where it was (%s) for that time", req.CA, old.row.KeyURI)
	case root:
	case req.External || req.Parent != "":
	case old.row.Parent == "":
		create.External = true
	default:
		create.Parent = a.servingName(old.row.Parent)
	}
	if create.Key == "" {
		create.Key = old.row.KeySpec
	}
	if create.Name == "" {
		base, n := withoutNumber(req.CA, "-")
		for ; a.exists(base + "-" + strconv.Itoa(n)); n++ {
		}
		create.Name = base + "-" + strconv.Itoa(n)
	}
	if create.Subject == "" {
		subject, err := a.nextSubject(old.row.Subject)
		if err != nil {
			return create, refuse(Invalid, "ca_subject", "the subject %s of CA %q cannot be numbered: give one with --subject", old.row.Subject, req.CA)
		}
		create.Subject = subject
	}
	return create, nil
}

var numbered = regexp.MustCompile(`^(.*)[- ]([0-9]{1,4})$`)

// withoutNumber splits "devices-2" into "devices" and the next number, 3. A name without a number was the first.
func withoutNumber(name, separator string) (base string, next int) {
	m := numbered.FindStringSubmatch(name)
	if m == nil || !strings.HasPrefix(name[len(m[1]):], separator) {
		return name, 2
	}
	n, err := strconv.Atoi(m[2])
	if err != nil {
		return name, 2
	}
	return m[1], n + 1
}

// nextSubject is the first numbered form of a subject's CN that no CA has.
func (a *Authorities) nextSubject(old string) (string, error) {
	name, err := parseSubject(old)
	if err != nil {
		return "", err
	}
	base, n := withoutNumber(name.CommonName, " ")
	for ; ; n++ {
		cn := base + " " + strconv.Itoa(n)
		for i := range name.ExtraNames {
			if name.ExtraNames[i].Type.Equal(oidCommonName) {
				name.ExtraNames[i].Value = cn
			}
		}
		next := (pkix.Name{CommonName: cn, ExtraNames: name.ExtraNames}).String()
		if _, err := parseSubject(next); err != nil || a.checkSubject(&authority{}, next) == nil {
			return next, err
		}
	}
}

// checkSubject refuses a successor the name of a CA that exists. Brokers and devices look for an issuer and for its CRL by name first: with two keys
// under one name some of them would take the wrong one and refuse everybody.
func (a *Authorities) checkSubject(replaces *authority, subject string) error {
	if replaces == nil {
		return nil
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, au := range a.live {
		if au.row.Subject == subject && (au.row.State != Waiting || au.row.Name == replaces.row.Name) {
			return refuse(Conflict, "ca_subject", "CA %q has the subject %s: a successor needs one of its own, because issuers and CRLs are found by name", au.row.Name, subject)
		}
	}
	return nil
}

// replace makes the row that of a successor of old, whose key comes to be beside the old one.
func (r *authorityRow) replace(old *authority) error {
	if old == nil {
		return nil
	}
	r.Replaces, r.Shards = old.row.Name, old.row.Shards
	uri, err := keystore.Sibling(old.row.KeyURI, r.Name)
	if err == nil && keystore.IsFile(uri) != keystore.IsFile(old.row.KeyURI) {
		err = errors.New("the service names its keys itself")
	}
	if err != nil {
		return &Error{Kind: Unavailable, Rule: "ca_key_unavailable", Detail: "the key cannot be made beside that of CA " + strconv.Quote(old.row.Name), Err: err}
	}
	r.KeyURI = uri
	return nil
}

// finishRollover does what a crash kept an earlier call from doing.
func (a *Authorities) finishRollover(ctx context.Context, actor string, next *authority, req RolloverRequest) (Info, error) {
	name := next.row.Name
	if req.Name != "" && req.Name != name {
		return Info{}, refuse(Conflict, "ca_rolled_over", "CA %q has a successor already: %q", req.CA, name)
	}
	var pending []certificateRow
	err := a.db.Select(ctx, &pending, "SELECT "+certificateColumns+" FROM certificates WHERE state = 'intended' AND requester_kind = ? AND requester IN (?, ?)", requesterAuthority, name, crossOf+name)
	if err != nil {
		return Info{}, unavailable("read certificates", err)
	}
	info, err := a.Get(ctx, name)
	if err != nil {
		return Info{}, err
	}
	switch {
	case len(pending) > 0 || info.State == Standby && info.CRLNumber == 0:
	case info.State == Waiting:
		return Info{}, refuse(Conflict, "ca_rolled_over", "CA %q waits for its certificate: see ca csr and ca import", name)
	default:
		return Info{}, refuse(Conflict, "ca_rolled_over", "CA %q has a successor already: %q, which is %s", req.CA, name, info.State)
	}
	ctx = context.WithoutCancel(ctx)
	for i := range pending {
		if _, err := a.finish(ctx, ID{Issuer: pending[i].Issuer, Serial: pending[i].Serial}); err != nil {
			return Info{}, err
		}
	}
	if err := a.afterActivation(ctx, name); err != nil {
		return Info{}, err
	}
	return a.Get(ctx, name)
}

// Activation says how a CA that stands by takes over.
type Activation struct {
	Override string // why it does before every bridge has the new CA; "" if every one has
	Behind   string // which have not

	// MoveLabels points every label of the old CA to the new one, in the transaction of the activation, and returns their names.
	MoveLabels func(tx *database.Tx, now time.Time, actor, from, to string) ([]string, error)
}

// Activate lets a CA that stands by take over: it issues from now on, and the CA that it replaces retires. A request under way for the
// old CA gets its certificate from whichever of them issues at the moment of its record. To be called again does no harm.
func (a *Authorities) Activate(ctx context.Context, actor, name string, how Activation) (Info, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return Info{}, err
	}
	switch info, err := a.Get(ctx, name); {
	case err != nil:
		return Info{}, err
	case au.row.State == Active && au.row.Replaces != "":
		return info, nil
	case au.row.State != Standby:
		return Info{}, refuse(Conflict, "ca_state", "CA %q is %s: only one that stands by is activated", name, au.row.State)
	case info.CRLNumber == 0:
		return Info{}, refuse(Conflict, "ca_state", "CA %q has no CRL yet: finish with ca rollover %s", name, au.row.Replaces)
	case au.row.Use == UseRoot && len(au.crosses) < 2:
		return Info{}, refuse(Conflict, "ca_state", "CA %q lacks its cross certificates: finish with ca rollover %s", name, au.row.Replaces)
	}
	ctx = context.WithoutCancel(ctx)
	now := a.clock.Now()
	err = a.db.Write(ctx, "ca.activate", func(tx *database.Tx) error {
		rows, err := tx.Exec("UPDATE authorities SET state = 'active' WHERE name = ? AND state = 'standby'", name)
		if err != nil {
			return err
		}
		if rows == 0 {
			return refuse(Conflict, "ca_state", "CA %q does not stand by any more", name)
		}
		if _, err := tx.Exec("UPDATE authorities SET state = 'retiring' WHERE name = ? AND state = 'active'", au.row.Replaces); err != nil {
			return err
		}
		var labels []string
		if how.MoveLabels != nil {
			if labels, err = how.MoveLabels(tx, now, actor, au.row.Replaces, name); err != nil {
				return err
			}
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		a.changes.Append(tx, feedapi.Change{At: now, Kind: feedapi.TrustSetChanged})
		detail := map[string]string{"replaces": au.row.Replaces, "labels": strings.Join(labels, ",")}
		if how.Override != "" {
			detail["override"], detail["behind"] = how.Override, how.Behind
		}
		return a.append(tx, audit.Entry{Actor: actor, Action: "ca_activated", Object: name, Detail: detail})
	})
	if err != nil {
		return Info{}, passThrough("activate CA", err)
	}
	a.changes.Announce()
	return a.Get(ctx, name)
}

func (a *Authorities) exists(name string) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.live[name] != nil
}

// replaced is the CA that au takes over from, or nil.
func (a *Authorities) replaced(au *authority) *authority {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.live[au.row.Replaces]
}

// IssuedBy tells whether the profile names the CA among its issuers, or one that this CA takes over from: a rollover needs no new version of a profile.
func (a *Authorities) IssuedBy(p *profile.Profile, name string) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for range len(a.live) + 1 {
		au := a.live[name]
		switch {
		case p.IssuedBy(name):
			return true
		case au == nil || au.row.Replaces == "":
			return false
		}
		name = au.row.Replaces
	}
	return false
}

// successor is the CA that was made to take over from the one of that name, or nil. One that was revoked is none.
func (a *Authorities) successor(name string) *authority {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, au := range a.live {
		if au.row.Replaces == name && au.row.State != Revoked {
			return au
		}
	}
	return nil
}

// inPlaceOf is the CA that issues in au's place: itself, unless another has taken over.
func (a *Authorities) inPlaceOf(au *authority) *authority {
	if au.row.State == Active {
		return au
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if serving := a.serving(au.row.Name, len(a.live)); serving != nil {
		return serving
	}
	return au
}

// serving follows the line of successors to one that is active. The caller holds mu.
func (a *Authorities) serving(name string, limit int) *authority {
	if au := a.live[name]; au == nil || au.row.State == Active || limit == 0 {
		return au
	}
	for _, next := range a.live {
		if next.row.Replaces == name {
			if found := a.serving(next.row.Name, limit-1); found != nil && found.row.State == Active {
				return found
			}
		}
	}
	return nil
}

func (a *Authorities) servingName(name string) string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if au := a.serving(name, len(a.live)); au != nil {
		return au.row.Name
	}
	return name
}

// Serving returns the CA that issues in the place of name: itself, or what has taken over from it.
func (a *Authorities) Serving(ctx context.Context, name string) (Info, error) {
	if err := a.current(ctx); err != nil {
		return Info{}, err
	}
	return a.Get(ctx, a.servingName(name))
}

// line returns the CAs that name is linked with by replacement, itself included, and that are in force. The caller holds mu.
func (a *Authorities) line(name string) []*authority {
	members, grown := []string{name}, true
	for grown {
		grown = false
		for _, au := range a.live {
			inside, above := slices.Contains(members, au.row.Name), slices.Contains(members, au.row.Replaces)
			switch {
			case inside && au.row.Replaces != "" && !above:
				members, grown = append(members, au.row.Replaces), true
			case above && !inside:
				members, grown = append(members, au.row.Name), true
			}
		}
	}
	slices.Sort(members)
	var list []*authority
	for _, member := range members {
		if au := a.live[member]; au != nil && au.certificate != nil && au.inForce() {
			list = append(list, au)
		}
	}
	return list
}
