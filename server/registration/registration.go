// Package registration is the registration authority's book: which labels there are, which end entities, what may prove to be one
// (enrollment codes, birth CAs), and what each has already used up.
//
// It decides who may have a certificate; ca decides what the certificate looks like. Between them stands the
// claim (enroll.go): the part of the decision that must be taken in the very transaction that records the certificate.
//
// Files: registration.go (Book, cache), label.go, device.go (end entities), code.go, birth.go (birth CAs), check.go (from a credential to a
// Requester), enroll.go (from a Requester to a certificate), refusal.go.
package registration

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/changes"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
)

const (
	// RedeliveryWindow is how long a repeat with the same credential and the same key gets the same certificate again.
	RedeliveryWindow = 24 * time.Hour
	// RenewalOverlap is how long a renewed certificate may still re-enroll, if its successor does not authenticate before.
	RenewalOverlap = 7 * 24 * time.Hour
)

// Config is what Open needs. All fields are required, except Reserved.
type Config struct {
	DB       *database.DB
	Clock    *clock.Clock
	CA       *ca.Authorities
	CodeKey  []byte        // at least 32 random bytes: enrollment codes are stored as HMACs under it
	CodeLife time.Duration // how long a code waits for its device unless said otherwise; 0: DefaultCodeLife
	Reserved []string      // ids that no end entity may have, beside those that begin with "natal-"
	Log      *slog.Logger

	ServerNames func(ctx context.Context) []string // what the EST server is called; nil: nothing
}

// Book is the registration authority's book. It is safe for concurrent use.
type Book struct {
	db       *database.DB
	clock    *clock.Clock
	ca       *ca.Authorities
	changes  *changes.Log
	codeKey  []byte
	codeLife time.Duration
	reserved map[string]bool
	log      *slog.Logger

	serverNames func(ctx context.Context) []string

	mu     sync.RWMutex
	cached *configuration
}

// configuration is what changes seldom and is asked at each request.
type configuration struct {
	version int64
	labels  map[string]Label
	birth   map[string]*birthTrust
}

type birthTrust struct {
	list []BirthCA
	pool *x509.CertPool
}

// Open reads the labels and birth CAs.
func Open(ctx context.Context, config Config) (*Book, error) {
	if len(config.CodeKey) < 32 {
		return nil, errors.New("registration: the code key needs at least 32 bytes")
	}
	b := &Book{
		db: config.DB, clock: config.Clock, ca: config.CA, changes: config.CA.Changes(), codeKey: config.CodeKey,
		codeLife: config.CodeLife, reserved: map[string]bool{}, log: config.Log, serverNames: config.ServerNames,
	}
	if b.codeLife == 0 {
		b.codeLife = DefaultCodeLife
	}
	for _, name := range config.Reserved {
		b.reserved[strings.ToLower(name)] = true
	}
	_, err := b.current(ctx)
	return b, err
}

// current returns the configuration, read anew if it changed in the database.
func (b *Book) current(ctx context.Context) (*configuration, error) {
	version, err := b.db.Configuration(ctx)
	if err != nil {
		return nil, storage("read configuration", err)
	}
	b.mu.RLock()
	c := b.cached
	b.mu.RUnlock()
	if c != nil && c.version >= version {
		return c, nil
	}
	c = &configuration{version: version}
	if c.labels, err = b.readLabels(ctx); err != nil {
		return nil, err
	}
	if c.birth, err = b.readBirthCAs(ctx); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cached == nil || b.cached.version <= version {
		b.cached = c
	}
	return c, nil
}

var idForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// reservedPrefix begins the names of the product's own parts: canaries, the EST server.
const reservedPrefix = "natal-"

// CheckID refuses what cannot be an end entity's id. The id is the CN, the broker's user name and the name in the broker's ACL.
func (b *Book) CheckID(id string) error {
	if !idForm.MatchString(id) {
		return refuse(Invalid, "device_id", "an id matches %s", idForm)
	}
	if folded := strings.ToLower(id); strings.HasPrefix(folded, reservedPrefix) || b.reserved[folded] {
		return refuse(Invalid, "device_id_reserved", "the id %q is reserved", id)
	}
	return nil
}

func (b *Book) append(tx *database.Tx, e audit.Entry) error {
	return audit.Append(tx, b.clock.Now(), e)
}

func isNoRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// Kind sorts errors by what the caller can do about them.
type Kind string

// Kinds of Error.
const (
	NotAuthenticated Kind = "not_authenticated" // uniform on the wire: which credential failed and why is for log and audit
	NotAuthorized    Kind = "not_authorized"    // authenticated, but not for this
	UnknownLabel     Kind = "unknown_label"
	NotFound         Kind = "not_found"
	Conflict         Kind = "conflict" // the object is not in a state for this; nothing was changed
	Invalid          Kind = "invalid"
)

// Error is every error that this package means for its caller.
type Error struct {
	Kind   Kind
	Reason string // stable word: in answers, logs, metrics and audit
	Detail string // one line, safe to show
	Err    error  // for the log
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Reason, e.Detail, e.Err)
	}
	return e.Reason + ": " + e.Detail
}

func (e *Error) Unwrap() error { return e.Err }

// Domain marks Error as an error that crosses a transaction unchanged.
func (e *Error) Domain() {}

func refuse(kind Kind, reason, format string, args ...any) *Error {
	return &Error{Kind: kind, Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// notAuthenticated is the one answer to every credential that does not count; why is for the log.
func notAuthenticated(format string, why ...any) *Error {
	return &Error{Kind: NotAuthenticated, Reason: "not_authenticated", Detail: "the credentials are not accepted", Err: fmt.Errorf(format, why...)}
}

// storage wraps a failure of the database as ca does, so that both are answered alike; domain errors pass unchanged.
func storage(what string, err error) error {
	if err == nil {
		return nil
	}
	var domain interface{ Domain() }
	if errors.As(err, &domain) {
		return err
	}
	return &ca.Error{Kind: ca.Unavailable, Rule: "storage", Detail: "the server cannot store or read its records", Err: fmt.Errorf("%s: %w", what, err)}
}
