// CRLs: numbered by the database, complete, and published in the order of their numbers (INV-7).

package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/internal/feedapi"
)

// crlBackdate makes a new CRL acceptable to a broker whose clock runs behind.
const crlBackdate = 5 * time.Minute

// crlsKept is how many CRLs of a CA stay fetchable by their hash.
const crlsKept = 20

// CRL is a published CRL.
type CRL struct {
	Authority  string
	Number     int64
	ThisUpdate time.Time
	NextUpdate time.Time
	IssuedAt   time.Time
	Entries    int
	SHA256     string // of DER, hex
	DER        []byte
}

type crlRow struct {
	Authority  string `db:"authority"`
	Shard      int64  `db:"shard"`
	Number     int64  `db:"number"`
	ThisUpdate int64  `db:"this_update"`
	NextUpdate int64  `db:"next_update"`
	IssuedAt   int64  `db:"issued_at"`
	Entries    int64  `db:"entries"`
	SHA256     string `db:"sha256"`
	DER        []byte `db:"der"`
}

const (
	crlSummary = "authority, shard, number, this_update, next_update, issued_at, entries, sha256"
	crlColumns = crlSummary + ", der"
)

func (r *crlRow) crl() CRL {
	return CRL{
		Authority: r.Authority, Number: r.Number, ThisUpdate: moment(r.ThisUpdate), NextUpdate: moment(r.NextUpdate), IssuedAt: moment(r.IssuedAt),
		Entries: int(r.Entries), SHA256: r.SHA256, DER: r.DER,
	}
}

// CurrentCRL returns the newest published CRL of a CA.
func (a *Authorities) CurrentCRL(ctx context.Context, name string) (CRL, error) {
	return a.oneCRL(ctx, fmt.Sprintf("CA %q has no CRL", name), "authority = ? ORDER BY number DESC LIMIT 1", name)
}

// CRLBySHA256 returns a CRL by the hash of its bytes; the newest ones are kept.
func (a *Authorities) CRLBySHA256(ctx context.Context, sum string) (CRL, error) {
	return a.oneCRL(ctx, "there is no CRL of that hash", "sha256 = ?", sum)
}

func (a *Authorities) oneCRL(ctx context.Context, missing, condition string, arg string) (CRL, error) {
	var r crlRow
	err := a.db.Get(ctx, &r, "SELECT "+crlColumns+" FROM crls WHERE "+condition, arg)
	if isNoRows(err) {
		return CRL{}, refuse(NotFound, "unknown_crl", "%s", missing)
	}
	if err != nil {
		return CRL{}, unavailable("read CRL", err)
	}
	return r.crl(), nil
}

// SetCRL changes how long a CA's CRLs are valid and how often they are reissued; the next one is issued at once.
func (a *Authorities) SetCRL(ctx context.Context, actor, name string, validity, interval time.Duration) (Info, error) {
	if err := checkCRLTimes(validity, interval); err != nil {
		return Info{}, err
	}
	err := a.db.Write(ctx, "ca.crl_times", func(tx *database.Tx) error {
		rows, err := tx.Exec("UPDATE authorities SET crl_validity = ?, crl_interval = ? WHERE name = ?", validity.Milliseconds(), interval.Milliseconds(), name)
		if err != nil {
			return err
		}
		if rows == 0 {
			return refuse(NotFound, "unknown_ca", "there is no CA %q", name)
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		return a.append(tx, audit.Entry{Actor: actor, Action: "crl_times_set", Object: name, Detail: map[string]string{"validity": validity.String(), "interval": interval.String()}})
	})
	if err != nil {
		return Info{}, passThrough("set CRL times", err)
	}
	if _, err := a.IssueCRL(ctx, actor, name); err != nil {
		return Info{}, err
	}
	return a.Get(ctx, name)
}

// publisher makes one CRL at a time for each CA: revocations that come while one is being made share the next.
type publisher struct {
	mu      sync.Mutex
	running map[string]*publication // by CA
	poke    chan struct{}
}

type publication struct {
	done chan struct{}
	next *publication // asked for while this one was under way
	crl  CRL
	err  error
}

// IssueCRL publishes a CRL that lists everything revoked before the call, and returns it.
func (a *Authorities) IssueCRL(ctx context.Context, actor, name string) (CRL, error) {
	p := &a.publisher
	p.mu.Lock()
	running := p.running[name]
	mine := &publication{done: make(chan struct{})}
	switch {
	case running == nil:
		p.running[name] = mine
		go a.publish(context.WithoutCancel(ctx), actor, name, mine)
	case running.next == nil:
		running.next = mine
	default:
		mine = running.next
	}
	p.mu.Unlock()
	select {
	case <-mine.done:
		return mine.crl, mine.err
	case <-ctx.Done():
		return CRL{}, ctx.Err()
	}
}

func (a *Authorities) publish(ctx context.Context, actor, name string, job *publication) {
	for job != nil {
		job.crl, job.err = a.makeCRL(ctx, actor, name)
		a.publisher.mu.Lock()
		next := job.next
		if next == nil {
			delete(a.publisher.running, name)
		} else {
			a.publisher.running[name] = next
		}
		a.publisher.mu.Unlock()
		close(job.done)
		job = next
	}
}

// PublishAfterRevocation issues the CRLs of the CAs named. A failure does not undo the revocation, which counts already: it is logged, and the schedule
// tries again.
func (a *Authorities) PublishAfterRevocation(ctx context.Context, names ...string) {
	for _, name := range names {
		if _, err := a.IssueCRL(ctx, "server", name); err != nil {
			a.log.Error("crl not issued after a revocation", "ca", name, "error", err)
			select {
			case a.publisher.poke <- struct{}{}:
			default:
			}
		}
	}
}

func (a *Authorities) makeCRL(ctx context.Context, actor, name string) (CRL, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return CRL{}, err
	}
	if au.certificate == nil {
		return CRL{}, refuse(Unavailable, "ca_waiting", "CA %q waits for its certificate", name)
	}
	if done, err := a.signedLastCRL(ctx, au); done || err != nil {
		crl, readErr := a.CurrentCRL(ctx, name)
		return crl, errors.Join(err, readErr)
	}
	if err := a.checkClock(ctx); err != nil {
		return CRL{}, err
	}
	key, err := a.signer(au)
	if err != nil {
		return CRL{}, err
	}
	var number int64
	err = a.db.Write(ctx, "ca.crl_number", func(tx *database.Tx) error {
		if _, err := tx.Exec("UPDATE authorities SET crl_number = crl_number + 1 WHERE name = ?", name); err != nil {
			return err
		}
		return tx.Get(&number, "SELECT crl_number FROM authorities WHERE name = ?", name)
	})
	if err != nil {
		return CRL{}, unavailable("reserve CRL number", err)
	}
	// The records are read after the number is taken: whoever publishes a higher number has seen at least what was revoked before this call.
	for settled := false; !settled; {
		row, basis, err := a.signCRL(ctx, au, key, number)
		if err != nil {
			return CRL{}, err
		}
		if settled, err = a.storeCRL(ctx, actor, au, row, basis); err != nil {
			return CRL{}, err
		}
	}
	a.changes.Announce()
	return a.CurrentCRL(ctx, name)
}

// signCRL makes a CRL that continues the newest published one, whose number is basis.
func (a *Authorities) signCRL(ctx context.Context, au *authority, key crypto.Signer, number int64) (row crlRow, basis int64, err error) {
	template, basis, err := a.crlTemplate(ctx, au, number)
	if err != nil {
		return crlRow{}, 0, err
	}
	var der []byte
	err = fault.Step("ca.crl_sign", func() (err error) {
		der, err = x509.CreateRevocationList(rand.Reader, template, au.certificate, key)
		return err
	})
	if err != nil {
		a.forgetKey(au.row.KeyURI)
		return crlRow{}, 0, &Error{Kind: Unavailable, Rule: "ca_key_unavailable", Detail: fmt.Sprintf("the key of CA %q cannot be used", au.row.Name), Err: err}
	}
	sum := sha256.Sum256(der)
	return crlRow{
		Authority: au.row.Name, Number: number, ThisUpdate: template.ThisUpdate.UnixMilli(), NextUpdate: template.NextUpdate.UnixMilli(), IssuedAt: a.clock.Now().UnixMilli(),
		Entries: int64(len(template.RevokedCertificateEntries)), SHA256: hex.EncodeToString(sum[:]), DER: der,
	}, basis, nil
}

func (a *Authorities) crlTemplate(ctx context.Context, au *authority, number int64) (template *x509.RevocationList, basis int64, err error) {
	now := a.clock.Now()
	thisUpdate := now.Add(-crlBackdate).Truncate(time.Second)
	var last crlRow
	err = a.db.Get(ctx, &last, "SELECT "+crlSummary+" FROM crls WHERE authority = ? ORDER BY number DESC LIMIT 1", au.row.Name)
	if err != nil && !isNoRows(err) {
		return nil, 0, unavailable("read last CRL", err)
	}
	if moment(last.ThisUpdate).After(now) {
		return nil, 0, &Error{Kind: Unavailable, Rule: "clock_behind", Detail: "the server's clock is behind its own records", Err: fmt.Errorf("last CRL of %s: %s", au.row.Name, moment(last.ThisUpdate))}
	}
	if previous := moment(last.ThisUpdate); previous.After(thisUpdate) {
		thisUpdate = previous
	}
	var revoked []struct {
		Serial    string `db:"serial"`
		Reason    string `db:"reason"`
		RevokedAt int64  `db:"revoked_at"`
	}
	// An expired certificate stays until one CRL after its expiry: whatever ended after the last CRL's thisUpdate is listed once more.
	err = a.db.Select(ctx, &revoked, "SELECT serial, reason, revoked_at FROM certificates WHERE issuer = ? AND revoked_at > 0 AND not_after >= ? ORDER BY revoked_at, serial", au.row.Name, last.ThisUpdate)
	if err != nil {
		return nil, 0, unavailable("list revoked certificates", err)
	}
	entries := make([]x509.RevocationListEntry, len(revoked))
	for i, r := range revoked {
		serial, _ := new(big.Int).SetString(r.Serial, 16)
		entries[i] = x509.RevocationListEntry{SerialNumber: serial, RevocationTime: moment(r.RevokedAt), ReasonCode: reasons[r.Reason]}
	}
	algorithm, _, err := signatureAlgorithm(au.certificate.PublicKey)
	if err != nil {
		return nil, 0, err
	}
	return &x509.RevocationList{
		SignatureAlgorithm: algorithm, Number: big.NewInt(number), ThisUpdate: thisUpdate, RevokedCertificateEntries: entries,
		NextUpdate: au.crlEnds(now),
	}, last.Number, nil
}

// storeCRL publishes a CRL. It is settled without it when another server has published a higher number, which then holds all of this one; when
// another server has published a lower number since basis, it is not: this one may lack what that one lists, and has to be made anew.
func (a *Authorities) storeCRL(ctx context.Context, actor string, au *authority, r crlRow, basis int64) (settled bool, err error) {
	err = a.db.Write(ctx, "ca.crl", func(tx *database.Tx) error {
		newest, err := lockNewestCRL(tx, r.Authority)
		settled = newest == basis || newest > r.Number
		if err != nil || newest != basis || newest > r.Number {
			return err
		}
		if _, err := tx.Exec("INSERT INTO crls ("+crlColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", r.Authority, r.Shard, r.Number, r.ThisUpdate, r.NextUpdate, r.IssuedAt, r.Entries, r.SHA256, r.DER); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM crls WHERE authority = ? AND number <= ?", r.Authority, r.Number-crlsKept); err != nil {
			return err
		}
		if au.row.Use == profile.UseBroker {
			a.changes.Append(tx, feedapi.Change{At: a.clock.Now(), Kind: feedapi.TrustSetChanged})
		}
		return a.append(tx, audit.Entry{Actor: actor, Action: "crl_issued", Object: r.Authority, Detail: map[string]string{
			"number": fmt.Sprint(r.Number), "entries": fmt.Sprint(r.Entries), "sha256": r.SHA256,
		}})
	})
	return settled, unavailable("store CRL", err)
}

// lockNewestCRL returns the number of the newest CRL of a CA, which stays the newest until the end of the transaction.
func lockNewestCRL(tx *database.Tx, name string) (number int64, err error) {
	query := "SELECT crl_number FROM authorities WHERE name = ?"
	if tx.Dialect() == database.Postgres {
		query += " FOR UPDATE"
	}
	if err := tx.Get(&number, query, name); err != nil {
		return 0, err
	}
	err = tx.Get(&number, "SELECT COALESCE(MAX(number), 0) FROM crls WHERE authority = ?", name)
	return number, err
}
