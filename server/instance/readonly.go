// An instance for a process that only reads: it takes no lock, opens no key, migrates nothing and cannot write.

package instance

import (
	"context"
	"errors"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
)

// OpenReadOnly opens the records of a complete instance. Of o.Dir it needs config.yaml and, with SQLite, est.db.
func OpenReadOnly(ctx context.Context, o Options) (*database.DB, *ca.Authorities, error) {
	settings, err := o.Dir.ReadSettings(o.ConfigFile)
	if err != nil {
		return nil, nil, err
	}
	address, err := o.Dir.databaseAddress(settings.DatabaseURLFile)
	if err != nil {
		return nil, nil, err
	}
	db, err := database.OpenReadOnly(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	authorities, err := ca.Open(ctx, ca.Config{DB: db, Clock: o.Clock, Dir: string(o.Dir), Log: o.Log})
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, authorities, nil
}
