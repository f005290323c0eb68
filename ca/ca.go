// Package ca is the certification authority: it issues, revokes and publishes CRLs, by the rules of its profiles.
//
// It knows no HTTP, no EST and no label. Who may have what is decided above it (server/registration), which hands
// over an authenticated identity, a request and a claim; the claim runs inside the transaction that records the
// certificate, so that a used code and the certificate made from it stand or fall together.
//
// A certificate comes into being in three steps (issue.go): one transaction records the claim, the exact bytes to be
// signed (state "intended") and the audit entry; the key signs those bytes; a second transaction stores the result
// (state "issued"). Only then is there an answer. What a crash leaves "intended" is finished by Sweep or by the
// requester's repeat.
//
// Files:
//
//	ca.go                     Authorities, what is in memory
//	keys.go keywatch.go       from a CA to its key; whether it can be used
//	authority.go subject.go   a CA's life: create, bind, offline; names
//	foreign.go external.go    CSRs out and in, import
//	rollover.go crosses.go    one CA after another; the certificates that link two roots
//	retire.go                 the end of a CA
//	info.go                   what others see
//	issue.go complete.go      certificates: recorded; signed and stored
//	sign.go                   TBS bytes and signature
//	reuse.go single.go        one key, one device; one certificate at a time
//	explain.go shape.go       what would become of a request; what CA certificates look like
//	certificate.go            the records
//	revoke.go revocations.go  revocation, and its log
//	crl.go schedule.go        CRLs
//	profiles.go errors.go
package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/lint"
	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/changes"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
)

// Config is what Open needs. All fields are required, except Passphrase where no key is opened, and KeyStore.
type Config struct {
	DB         *database.DB
	Clock      *clock.Clock
	Dir        string // data directory; key URIs are relative to it
	Passphrase []byte // opens and encrypts the keys
	KeyStore   string // URI of a key beside which new CAs get theirs; "": files
	Log        *slog.Logger
}

// Authorities is the book of all CAs of an installation. It is safe for concurrent use, by several servers on one database too.
type Authorities struct {
	db      *database.DB
	clock   *clock.Clock
	store   *keystore.Store
	log     *slog.Logger
	linter  *lint.Linter
	changes *changes.Log

	mu      sync.RWMutex
	version int64 // of the configuration that the maps show; 0 = none yet
	live    map[string]*authority
	issuers map[string]bool // encoded subjects of the CAs
	named   map[string]*profile.Profile

	createMu sync.Mutex // held by Create

	keyStore string
	keyring  keyring
	keyWatch keyWatch

	clockWatch clockWatch
	publisher  publisher
	ocsp       responders
	contents   contents
}

// authority is a CA as it was read from the database. It never changes.
type authority struct {
	row         authorityRow
	certificate *x509.Certificate   // nil while waiting
	chain       []*x509.Certificate // issuer first, up to and including the root; empty for a root
	crosses     []*x509.Certificate // of a root that replaces another one: OldWithNew, NewWithOld
	public      crypto.PublicKey    // of its key
}

// Open reads the CAs and profiles.
func Open(ctx context.Context, config Config) (*Authorities, error) {
	linter, err := lint.New()
	if err != nil {
		return nil, err
	}
	a := &Authorities{
		db: config.DB, clock: config.Clock, store: keystore.New(config.Dir, config.Passphrase), log: config.Log,
		linter: linter, changes: changes.New(config.DB), keyStore: config.KeyStore,
	}
	a.publisher.running, a.publisher.sets = map[string]*publication{}, map[string]*revokedSet{}
	a.contents.known, a.contents.load = map[crlKey]*content{}, map[crlKey]*sync.Mutex{}
	a.keyWatch = keyWatch{failures: map[string]error{}, files: map[string]time.Time{}, looking: map[string]bool{}, back: make(chan string, 16)}
	a.publisher.poke = make(chan struct{}, 1)
	a.ocsp.responder, a.ocsp.desks = ocsp.NewResponder(config.Clock, config.Log), map[string]*ocspDesk{}
	if err := a.current(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// Changes is the log that the feed serves; whoever adds to it calls its Announce after the commit.
func (a *Authorities) Changes() *changes.Log { return a.changes }

// current brings the maps up to date with the database, which another server may have changed.
func (a *Authorities) current(ctx context.Context) error {
	version, err := a.db.Configuration(ctx)
	if err != nil {
		return unavailable("database", err)
	}
	a.mu.RLock()
	fresh := a.version >= version && a.live != nil
	a.mu.RUnlock()
	if fresh {
		return nil
	}
	return a.reload(ctx)
}

func (a *Authorities) reload(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var version int64
	if err := a.db.Get(ctx, &version, "SELECT value FROM counters WHERE name = 'configuration'"); err != nil {
		return unavailable("database", err)
	}
	var rows []authorityRow
	if err := a.db.Select(ctx, &rows, "SELECT "+authorityColumns+" FROM authorities"); err != nil {
		return unavailable("database", err)
	}
	live, issuers := map[string]*authority{}, map[string]bool{}
	for _, r := range rows {
		au, err := newAuthority(r)
		if err != nil {
			return fmt.Errorf("CA %s: %w", r.Name, err)
		}
		live[r.Name] = au
		if au.certificate != nil {
			issuers[string(au.certificate.RawSubject)] = true
		}
	}
	named, err := a.readProfiles(ctx)
	if err != nil {
		return err
	}
	a.version, a.live, a.issuers, a.named = version, live, issuers, named
	return nil
}

func (a *Authorities) authority(ctx context.Context, name string) (*authority, error) {
	if err := a.current(ctx); err != nil {
		return nil, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	au := a.live[name]
	if au == nil {
		return nil, &Error{Kind: NotFound, Rule: "unknown_ca", Detail: fmt.Sprintf("there is no CA %q", name)}
	}
	return au, nil
}

func (a *Authorities) append(tx *database.Tx, e audit.Entry) error {
	return audit.Append(tx, a.clock.Now(), e)
}
