// Labels: RFC 7030 section 3.2.2's additional path segments, each with its CA, profile and ways to authenticate.

package registration

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// Default is the name of the path without a label.
const Default = "default"

// Ways to authenticate that a label may allow for a first enrollment. Re-enrollment by the operational certificate is always allowed.
const (
	AuthCode   = "code"
	AuthBirth  = "birth"
	AuthBridge = "bridge" // a bridge's operational certificate, for a further certificate of its own id
)

// Label is one enrollment point.
type Label struct {
	Name    string
	CA      string
	Profile string
	Auth    []string
	Version int64
}

var labelForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// operations can be no labels (RFC 7030 section 3.2.2).
var operations = []string{"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"}

type labelRow struct {
	Name    string `db:"name"`
	CA      string `db:"authority"`
	Profile string `db:"profile"`
	Auth    string `db:"auth"`
	Version int64  `db:"version"`
}

func (b *Book) readLabels(ctx context.Context) (map[string]Label, error) {
	var rows []labelRow
	if err := b.db.Select(ctx, &rows, "SELECT name, authority, profile, auth, version FROM labels"); err != nil {
		return nil, storage("read labels", err)
	}
	labels := map[string]Label{}
	for _, r := range rows {
		l := Label{Name: r.Name, CA: r.CA, Profile: r.Profile, Version: r.Version}
		if err := json.Unmarshal([]byte(r.Auth), &l.Auth); err != nil {
			return nil, fmt.Errorf("label %s: %w", r.Name, err)
		}
		labels[r.Name] = l
	}
	return labels, nil
}

// Label returns a label; UnknownLabel when there is none.
func (b *Book) Label(ctx context.Context, name string) (Label, error) {
	c, err := b.current(ctx)
	if err != nil {
		return Label{}, err
	}
	l, ok := c.labels[name]
	if !ok {
		return Label{}, refuse(UnknownLabel, "unknown_label", "there is no label %q", name)
	}
	return l, nil
}

// known returns a label from memory, for use inside a transaction; its Name alone is set if it is gone.
func (b *Book) known(name string) Label {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if l, ok := b.cached.labels[name]; ok {
		return l
	}
	return Label{Name: name}
}

// Labels returns all labels, by name.
func (b *Book) Labels(ctx context.Context) ([]Label, error) {
	c, err := b.current(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Label, 0, len(c.labels))
	for _, l := range c.labels {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b Label) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// AddLabel makes a label. Empty fields take those of the default label.
func (b *Book) AddLabel(ctx context.Context, actor string, l Label) (Label, error) {
	if !labelForm.MatchString(l.Name) || slices.Contains(operations, strings.ToLower(l.Name)) {
		return Label{}, refuse(Invalid, "label_name", "a label matches %s and is no EST operation", labelForm)
	}
	if base, err := b.Label(ctx, Default); err == nil {
		l = l.filledFrom(base)
	}
	return b.putLabel(ctx, actor, "label_added", l, true)
}

// SetLabel changes a label; empty fields stay as they are.
func (b *Book) SetLabel(ctx context.Context, actor string, l Label) (Label, error) {
	old, err := b.Label(ctx, l.Name)
	if err != nil {
		return Label{}, err
	}
	if l.Version != 0 && l.Version != old.Version {
		return Label{}, refuse(Conflict, "label_changed", "label %q was changed by somebody else meanwhile", l.Name)
	}
	l = l.filledFrom(old)
	l.Version = old.Version
	return b.putLabel(ctx, actor, "label_set", l, false)
}

func (l Label) filledFrom(base Label) Label {
	if l.CA == "" {
		l.CA = base.CA
	}
	if l.Profile == "" {
		l.Profile = base.Profile
	}
	if l.Auth == nil {
		l.Auth = base.Auth
	}
	return l
}

func (b *Book) putLabel(ctx context.Context, actor, action string, l Label, add bool) (Label, error) {
	for _, way := range l.Auth {
		if !slices.Contains([]string{AuthCode, AuthBirth, AuthBridge}, way) {
			return Label{}, refuse(Invalid, "label_auth", "%q is not code, birth or bridge", way)
		}
	}
	if _, err := b.ca.Get(ctx, l.CA); err != nil {
		return Label{}, err
	}
	p, err := b.ca.Profile(ctx, l.Profile)
	if err != nil {
		return Label{}, err
	}
	if !b.ca.IssuedBy(p, l.CA) {
		return Label{}, refuse(Invalid, "issuer", "CA %q is none of the issuers of profile %s", l.CA, l.Profile)
	}
	auth, err := json.Marshal(l.Auth)
	if err != nil {
		return Label{}, err
	}
	now := b.clock.Now().UnixMilli()
	err = b.db.Write(ctx, "registration.label", func(tx *database.Tx) error {
		if err := b.ca.BindUse(tx, l.CA, p.Use()); err != nil {
			return err
		}
		if first := slices.Contains(l.Auth, AuthCode) || slices.Contains(l.Auth, AuthBirth); first && !p.ClientAuth() {
			return refuse(Invalid, "label_client_auth", "profile %s is without clientAuth: a device could enroll with it once and never renew", l.Profile)
		}
		if err := b.keepUse(tx, l.Name, p.Use(), add); err != nil {
			return err
		}
		if add {
			_, err := tx.Exec("INSERT INTO labels (name, authority, profile, auth, version, created_at, updated_at) VALUES (?, ?, ?, ?, 1, ?, ?)", l.Name, l.CA, l.Profile, string(auth), now, now)
			if database.IsUnique(err) {
				return refuse(Conflict, "label_exists", "label %q exists", l.Name)
			}
			if err != nil {
				return err
			}
		} else {
			rows, err := tx.Exec("UPDATE labels SET authority = ?, profile = ?, auth = ?, version = version + 1, updated_at = ? WHERE name = ? AND version = ?", l.CA, l.Profile, string(auth), now, l.Name, l.Version)
			if err != nil {
				return err
			}
			if rows == 0 {
				return refuse(Conflict, "label_changed", "label %q was changed by somebody else meanwhile", l.Name)
			}
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		return b.append(tx, audit.Entry{Actor: actor, Action: action, Object: l.Name, Detail: map[string]string{"ca": l.CA, "profile": l.Profile, "auth": strings.Join(l.Auth, ",")}})
	})
	if err != nil {
		return Label{}, storage("store label", err)
	}
	b.changes.Announce()
	return b.Label(ctx, l.Name)
}

// MoveLabels points every label of the CA from to the CA to, in the transaction in which that one takes over. It returns their names.
func (b *Book) MoveLabels(tx *database.Tx, now time.Time, actor, from, to string) ([]string, error) {
	var rows []labelRow
	if err := tx.Select(&rows, "SELECT name, authority, profile, auth, version FROM labels WHERE authority = ? ORDER BY name", from); err != nil {
		return nil, err
	}
	var names []string
	for _, r := range rows {
		if _, err := tx.Exec("UPDATE labels SET authority = ?, version = version + 1, updated_at = ? WHERE name = ? AND authority = ?", to, now.UnixMilli(), r.Name, from); err != nil {
			return nil, err
		}
		var auth []string
		if err := json.Unmarshal([]byte(r.Auth), &auth); err != nil {
			return nil, err
		}
		err := b.append(tx, audit.Entry{Actor: actor, Action: "label_set", Object: r.Name, Detail: map[string]string{"ca": to, "profile": r.Profile, "auth": strings.Join(auth, ",")}})
		if err != nil {
			return nil, err
		}
		names = append(names, r.Name)
	}
	return names, nil
}

// keepUse refuses another use for a label that has end entities: brokers would not learn that their certificates are of another kind now.
func (b *Book) keepUse(tx *database.Tx, name, use string, add bool) error {
	if add {
		return nil
	}
	old, err := b.ca.Profile(context.Background(), b.known(name).Profile) // from memory
	if err != nil || old.Use() == use {
		return nil
	}
	var used int64
	if err := tx.Get(&used, "SELECT COUNT(*) FROM end_entities WHERE label = ?", name); err != nil {
		return err
	}
	if used > 0 {
		return refuse(Conflict, "label_use", "label %q has %d end entities with certificates for use %s; use %s needs another label", name, used, old.Use(), use)
	}
	return nil
}

// RemoveLabel removes a label that no end entity belongs to.
func (b *Book) RemoveLabel(ctx context.Context, actor, name string) error {
	if name == Default {
		return refuse(Conflict, "label_default", "the default label stays")
	}
	err := b.db.Write(ctx, "registration.label_remove", func(tx *database.Tx) error {
		var used int64
		if err := tx.Get(&used, "SELECT COUNT(*) FROM end_entities WHERE label = ?", name); err != nil {
			return err
		}
		if used > 0 {
			return refuse(Conflict, "label_used", "label %q has %d end entities", name, used)
		}
		rows, err := tx.Exec("DELETE FROM labels WHERE name = ?", name)
		if err != nil {
			return err
		}
		if rows == 0 {
			return refuse(NotFound, "unknown_label", "there is no label %q", name)
		}
		if _, err := tx.Exec("DELETE FROM birth_cas WHERE label = ?", name); err != nil {
			return err
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		return b.append(tx, audit.Entry{Actor: actor, Action: "label_removed", Object: name})
	})
	return storage("remove label", err)
}

// inBroker tells whether the certificates of a label reach the brokers' trust set.
func (b *Book) inBroker(ctx context.Context, l Label) (bool, error) {
	p, err := b.ca.Profile(ctx, l.Profile)
	if err != nil {
		return false, err
	}
	return p.Use() == profile.UseBroker, nil
}
