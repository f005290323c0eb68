// Opening an instance: everything is checked and opened before anything is served.

package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/registration"
)

// DatabaseURL is the environment variable that names the database; it goes before database.url_file.
const DatabaseURL = "NATAL_DATABASE_URL"

// Options say how to open an instance.
type Options struct {
	Dir            Dir
	ConfigFile     string // default: DIR/config.yaml
	PassphraseFile string // default: as the configuration says, else DIR/passphrase
	Clock          *clock.Clock
	Log            *slog.Logger
}

// Instance is an opened instance. Close it.
type Instance struct {
	Dir      Dir
	Settings config.Settings
	DB       *database.DB
	CA       *ca.Authorities
	Book     *registration.Book
	Clock    *clock.Clock
	Log      *slog.Logger

	passphrase []byte
	memoryMu   sync.Mutex // held while DIR/epoch.json is brought up to date
}

// ReadSettings reads the configuration of a complete instance.
func (d Dir) ReadSettings(file string) (config.Settings, error) {
	if err := d.requireReady(); err != nil {
		return config.Settings{}, err
	}
	if file == "" {
		file = d.Config()
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return config.Settings{}, err
	}
	settings, err := config.Parse(content)
	if err != nil {
		return config.Settings{}, fmt.Errorf("%s: %w", file, err)
	}
	return settings, nil
}

// Open opens a complete instance. The caller holds the directory's lock. A database that is an older copy is refused (ErrReplaced).
func Open(ctx context.Context, o Options) (*Instance, error) {
	i, err := openUnchecked(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := i.checkHead(ctx); err != nil {
		return nil, errors.Join(err, i.DB.Close())
	}
	return i, nil
}

func openUnchecked(ctx context.Context, o Options) (*Instance, error) {
	for _, sub := range []string{"", "keys", "ca", "admin", "audit"} {
		if err := atomicfile.RemoveLeftovers(o.Dir.Path(sub)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if err := o.Dir.removeBackupWork(); err != nil {
		return nil, err
	}
	settings, err := o.Dir.ReadSettings(o.ConfigFile)
	if err != nil {
		return nil, err
	}
	passphrase, err := o.Dir.readPassphrase(o.PassphraseFile, settings.PassphraseFile)
	if err != nil {
		return nil, err
	}
	codeKey, err := loadSecret(o.Dir.codeKey(), passphrase)
	if err != nil {
		return nil, err
	}
	if err := o.Dir.makeAuditKey(passphrase); err != nil {
		return nil, err
	}
	return open(ctx, o, settings, passphrase, codeKey, database.OpenExisting)
}

func open(ctx context.Context, o Options, settings config.Settings, passphrase, codeKey []byte, openDatabase func(context.Context, string) (*database.DB, error)) (*Instance, error) {
	address, err := o.Dir.databaseAddress(settings.DatabaseURLFile)
	if err != nil {
		return nil, err
	}
	db, err := openDatabase(ctx, address)
	if err != nil {
		return nil, err
	}
	i := &Instance{Dir: o.Dir, Settings: settings, DB: db, Clock: o.Clock, Log: o.Log, passphrase: passphrase}
	i.CA, err = ca.Open(ctx, ca.Config{DB: db, Clock: o.Clock, Dir: string(o.Dir), Passphrase: passphrase, KeyStore: settings.KeyStore, Log: o.Log})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	i.Book, err = registration.Open(ctx, registration.Config{DB: db, Clock: o.Clock, CA: i.CA, CodeKey: codeKey, CodeLife: settings.CodeExpires, Reserved: settings.ReservedIDs, Log: o.Log,
		ServerNames: func(ctx context.Context) []string { return serverNames(ctx, settings.Hosts) }})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return i, nil
}

// Close remembers how far the audit log has come, and closes the keys and the database.
func (i *Instance) Close() error {
	i.keepLastHead()
	i.CA.Close()
	return i.DB.Close()
}

// databaseAddress is what database.Open wants. An address may hold a password, so it comes from a file or the environment and is not shown.
func (d Dir) databaseAddress(file string) (string, error) {
	if url := os.Getenv(DatabaseURL); url != "" {
		return url, nil
	}
	if file == "" {
		return "sqlite:" + d.database(), nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("database.url_file: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}
