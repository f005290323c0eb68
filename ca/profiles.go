// Certificate profiles in the database: versioned by content, so that a certificate's record tells exactly which rules it was made by.

package ca

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// Profile returns the newest version of a profile.
func (a *Authorities) Profile(ctx context.Context, name string) (*profile.Profile, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	p := a.named[name]
	if p == nil {
		return nil, refuse(NotFound, "unknown_profile", "there is no certificate profile %q", name)
	}
	return p, nil
}

// Profiles returns the newest version of each profile, by name.
func (a *Authorities) Profiles(ctx context.Context) (map[string]*profile.Profile, error) {
	if err := a.current(ctx); err != nil {
		return nil, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	list := make(map[string]*profile.Profile, len(a.named))
	for name, p := range a.named {
		list[name] = p
	}
	return list, nil
}

// AddProfile stores a profile, as a new version if the name exists. The use of an existing name never changes. A file that is the newest
// version already changes nothing.
func (a *Authorities) AddProfile(ctx context.Context, actor string, source []byte) (*profile.Profile, error) {
	p, err := profile.Parse(source)
	if err != nil {
		return nil, &Error{Kind: Invalid, Rule: "profile", Detail: err.Error()}
	}
	err = a.db.Write(ctx, "ca.profile", func(tx *database.Tx) error {
		var newest struct {
			Version int64  `db:"version"`
			YAML    string `db:"yaml"`
			Hash    string `db:"hash"`
		}
		err := tx.Get(&newest, "SELECT version, yaml, hash FROM profiles WHERE name = ? ORDER BY version DESC LIMIT 1", p.Name())
		if err != nil && !isNoRows(err) {
			return err
		}
		if newest.Hash == p.Hash() {
			return nil
		}
		if newest.Version > 0 {
			old, err := profile.Parse([]byte(newest.YAML))
			if err == nil && old.Use() != p.Use() {
				return refuse(Conflict, "profile_use", "profile %q is for use %s; another use needs another name", p.Name(), old.Use())
			}
		}
		if _, err := tx.Exec("INSERT INTO profiles (name, version, hash, yaml, created_at) VALUES (?, ?, ?, ?, ?)",
			p.Name(), newest.Version+1, p.Hash(), p.YAML(), a.clock.Now().UnixMilli()); err != nil {
			return err
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		return a.append(tx, audit.Entry{Actor: actor, Action: "profile_added", Object: p.Name(), Detail: map[string]string{"version": fmt.Sprint(newest.Version + 1), "hash": p.Hash()}})
	})
	if err != nil {
		return nil, passThrough("store profile", err)
	}
	err = a.current(ctx)
	return p, err
}

// ProfileVersion is one version of a profile. Old ones stay: certificates were made by them.
type ProfileVersion struct {
	*profile.Profile
	Version int64
	AddedAt time.Time
}

type profileRow struct {
	Version   int64  `db:"version"`
	YAML      string `db:"yaml"`
	CreatedAt int64  `db:"created_at"`
}

func (r *profileRow) version() (ProfileVersion, error) {
	p, err := profile.Parse([]byte(r.YAML))
	if err != nil {
		return ProfileVersion{}, fmt.Errorf("stored %w", err)
	}
	return ProfileVersion{p, r.Version, moment(r.CreatedAt)}, nil
}

// ProfileVersions lists all versions of a profile, the newest first.
func (a *Authorities) ProfileVersions(ctx context.Context, name string) ([]ProfileVersion, error) {
	var rows []profileRow
	if err := a.db.Select(ctx, &rows, "SELECT version, yaml, created_at FROM profiles WHERE name = ? ORDER BY version DESC", name); err != nil {
		return nil, unavailable("read profiles", err)
	}
	if len(rows) == 0 {
		return nil, refuse(NotFound, "unknown_profile", "there is no certificate profile %q", name)
	}
	list := make([]ProfileVersion, len(rows))
	for i := range rows {
		var err error
		if list[i], err = rows[i].version(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// ProfileVersion returns the newest version of a profile whose hash begins with hash; any version's hash does for "".
func (a *Authorities) ProfileVersion(ctx context.Context, name, hash string) (ProfileVersion, error) {
	if !hashForm.MatchString(hash) {
		return ProfileVersion{}, refuse(Invalid, "profile_hash", "want the hash of a profile, or its beginning, in hex")
	}
	var r profileRow
	err := a.db.Get(ctx, &r, "SELECT version, yaml, created_at FROM profiles WHERE name = ? AND hash LIKE ? ORDER BY version DESC LIMIT 1", name, hash+"%")
	if isNoRows(err) && hash == "" {
		return ProfileVersion{}, refuse(NotFound, "unknown_profile", "there is no certificate profile %q", name)
	}
	if isNoRows(err) {
		return ProfileVersion{}, refuse(NotFound, "unknown_profile", "there is no version of certificate profile %q whose hash begins with %s", name, hash)
	}
	if err != nil {
		return ProfileVersion{}, unavailable("read profiles", err)
	}
	return r.version()
}

var hashForm = regexp.MustCompile(`^[0-9a-f]{0,64}$`)

func (a *Authorities) readProfiles(ctx context.Context) (map[string]*profile.Profile, error) {
	var sources []string
	err := a.db.Select(ctx, &sources, "SELECT yaml FROM profiles p WHERE version = (SELECT MAX(version) FROM profiles q WHERE q.name = p.name)")
	if err != nil {
		return nil, unavailable("read profiles", err)
	}
	named := map[string]*profile.Profile{}
	for _, source := range sources {
		p, err := profile.Parse([]byte(source))
		if err != nil {
			return nil, fmt.Errorf("stored %w", err)
		}
		named[p.Name()] = p
	}
	return named, nil
}
