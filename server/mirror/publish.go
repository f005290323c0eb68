// The CA's side: it writes what changed as soon as it sees it, and a head every few seconds in any case, so that a reader can tell silence from a cut line.

package mirror

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/clock"
)

const (
	lookEvery    = 250 * time.Millisecond
	headEvery    = 10 * time.Second
	afterFailure = 5 * time.Second

	// A new generation is begun when the segments are many or long, so that a reader that comes late has not much more to read than a snapshot.
	maxSegments = 1000
	minChanges  = 10_000

	// With more entries of the audit log to catch up on, a new snapshot is the shorter way.
	maxBehind = 100_000
)

// Publisher writes the mirror of an installation. One at a time writes to a directory.
type Publisher struct {
	CA    *ca.Authorities
	Dir   string
	Clock *clock.Clock
	Log   *slog.Logger

	books map[string]*book
	read  ca.StatusCursor // of the audit log
	crls  map[string]string
}

// book is what is published of one CA.
type book struct {
	dir      string
	head     head
	table    *table
	changes  int // records in segments
	unsigned bool
}

// Run publishes until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		wait := lookEvery
		if err := p.Publish(ctx); err != nil && ctx.Err() == nil {
			p.Log.Error("mirror not published", "dir", p.Dir, "error", err)
			wait = afterFailure
			if !errors.Is(err, errNotSigned) {
				p.books = nil // what is on disk is read anew
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// Publish is one round. It is cheap when nothing has changed.
func (p *Publisher) Publish(ctx context.Context) error {
	var failures []error
	if err := p.follow(ctx); errors.Is(err, errFiles) {
		failures = append(failures, err)
	} else if err != nil {
		return err
	}
	infos, err := p.CA.List(ctx)
	if err != nil {
		return err
	}
	now := p.Clock.Now()
	for _, info := range infos {
		b := p.books[info.Name]
		if b == nil {
			continue
		}
		if b.unsigned || now.Sub(b.head.PublishedAt) >= headEvery || now.Before(b.head.PublishedAt) {
			failures = append(failures, p.sign(ctx, info.Name, b, now))
		}
	}
	return errors.Join(failures...)
}

// follow reads what changed and writes it, heads excepted.
func (p *Publisher) follow(ctx context.Context) error {
	now, err := p.CA.StatusNow(ctx)
	if err != nil {
		return err
	}
	if p.books == nil || now.Epoch != p.read.Epoch {
		if err := p.begin(ctx, now); err != nil {
			return err
		}
	} else if now == p.read {
		return nil
	}
	for more := now != p.read; more; {
		var changed []ca.RecordedStatus
		if changed, p.read, more, err = p.CA.StatusChanges(ctx, p.read); err != nil {
			return err
		}
		records := map[string][]byte{}
		for _, s := range changed {
			records[s.Issuer] = encode(records[s.Issuer], s)
		}
		for name, b := range p.books {
			if b.head.Cursor == p.read {
				continue
			}
			if err := b.add(records[name], p.read, p.Clock.Now()); err != nil {
				return fmt.Errorf("CA %s: %w", name, err)
			}
		}
	}
	return p.publicFiles(ctx)
}

// begin goes on from what is on disk, or makes it anew: after a restore, or when it cannot be trusted.
func (p *Publisher) begin(ctx context.Context, now ca.StatusCursor) error {
	infos, err := p.CA.List(ctx)
	if err != nil {
		return err
	}
	books, read := map[string]*book{}, now
	for _, info := range infos {
		if info.Certificate == nil {
			continue
		}
		b := &book{dir: filepath.Join(p.Dir, "status", info.Name)}
		if err := os.MkdirAll(b.dir, 0o755); err != nil {
			return err
		}
		if err := atomicfile.RemoveLeftovers(b.dir); err != nil {
			return err
		}
		content, err := readFile(filepath.Join(b.dir, headFile), maxHead)
		if err == nil {
			if b.head, _, err = openHead(content, info.Name, info.Certificate); err == nil {
				b.table, err = b.head.load(b.dir)
			}
		}
		if err != nil || b.head.Cursor.Epoch != now.Epoch || b.head.Cursor.Seq > now.Seq || now.Seq-b.head.Cursor.Seq > maxBehind {
			if err := b.build(ctx, p.CA, info.Name, now, p.Clock.Now()); err != nil {
				return fmt.Errorf("CA %s: %w", info.Name, err)
			}
		} else {
			b.changes = len(b.table.changed)
		}
		if b.head.Cursor.Seq < read.Seq {
			read = b.head.Cursor
		}
		books[info.Name] = b
	}
	p.books, p.read, p.crls = books, read, map[string]string{}
	return nil
}

// build makes a snapshot of all certificates.
func (b *book) build(ctx context.Context, authorities *ca.Authorities, name string, cursor ca.StatusCursor, now time.Time) error {
	var snapshot []byte
	err := authorities.Statuses(ctx, name, now.Add(-kept).Unix(), func(s ca.RecordedStatus) error {
		snapshot = encode(snapshot, s)
		return nil
	})
	if err != nil {
		return err
	}
	b.head.Sequence, b.head.Generation = max(b.head.Sequence, now.UnixMilli()), max(b.head.Generation, now.Unix())
	return b.begin(snapshot, cursor)
}

// begin starts a generation with a snapshot, and removes the files of the one before the last.
func (b *book) begin(snapshot []byte, cursor ca.StatusCursor) error {
	last := b.head.Generation
	b.head.Generation++
	b.head.Cursor, b.head.Segments, b.head.Records = cursor, 0, len(snapshot)/recordOctets
	b.head.Snapshot = sum(snapshot)
	b.head.NewestDigest = b.head.Snapshot
	if err := atomicfile.Write(filepath.Join(b.dir, b.head.snapshotFile()), snapshot, 0o644); err != nil {
		return err
	}
	b.table, b.changes, b.unsigned = newTable(snapshot), 0, true
	return b.removeBefore(last)
}

var generationFile = regexp.MustCompile(`^([0-9]+)(?:\.snapshot|-[0-9]+\.segment)$`)

func (b *book) removeBefore(generation int64) error {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		m := generationFile.FindStringSubmatch(entry.Name())
		if m == nil {
			continue
		}
		if n, err := strconv.ParseInt(m[1], 10, 64); err != nil || n >= generation {
			continue
		}
		if err := os.Remove(filepath.Join(b.dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// add writes records as the next segment, or begins a new generation.
func (b *book) add(records []byte, cursor ca.StatusCursor, now time.Time) error {
	if len(records) == 0 {
		b.head.Cursor = cursor
		return nil
	}
	b.table.apply(records)
	b.changes += len(records) / recordOctets
	if b.head.Segments >= maxSegments || b.changes > max(minChanges, b.head.Records/4) {
		return b.begin(b.table.compact(now), cursor)
	}
	before, err := hex.DecodeString(b.head.NewestDigest)
	if err != nil {
		return err
	}
	content := append(before, records...)
	if err := atomicfile.Write(filepath.Join(b.dir, b.head.segmentFile(b.head.Segments+1)), content, 0o644); err != nil {
		return err
	}
	b.head.Segments++
	b.head.NewestDigest, b.head.Cursor, b.unsigned = sum(content), cursor, true
	return nil
}

// errNotSigned: the clock or the key is not right now. What is written so far is.
var errNotSigned = errors.New("the head is not signed")

// sign writes the head. A CA that answers no more, or has no signer now, publishes none: its readers find the last one too old.
func (p *Publisher) sign(ctx context.Context, name string, b *book, now time.Time) error {
	next := b.head
	next.Format, next.CA, next.PublishedAt = format, name, now
	next.Sequence = max(next.Sequence+1, now.UnixMilli()) // so that readers go on after the directory was put back from a copy
	payload, err := json.Marshal(next)
	if err != nil {
		return err
	}
	signed := signedHead{Payload: payload}
	signed.Signature, signed.Certificate, err = p.CA.SignStatus(ctx, name, signedText+string(payload))
	var typed *ca.Error
	if errors.As(err, &typed) && (typed.Rule == "no_signer" || typed.Rule == "ca_not_active") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("CA %s: %w: %w", name, errNotSigned, err)
	}
	content, err := json.Marshal(signed)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(b.dir, headFile), append(content, '\n'), 0o644); err != nil {
		return err
	}
	b.head, b.unsigned = next, false
	return nil
}

// errFiles: a certificate or CRL is not written. The states are none the worse for it, nor are other CAs.
var errFiles = errors.New("not all files are written")

// publicFiles writes the certificates and CRLs that are not on disk yet.
func (p *Publisher) publicFiles(ctx context.Context) error {
	infos, err := p.CA.List(ctx)
	if err != nil {
		return err
	}
	var failures []error
	for _, info := range infos {
		if info.Certificate == nil {
			continue
		}
		if p.books[info.Name] == nil { // a new CA, or one whose certificate has just come
			p.books = nil
			return nil
		}
		err := p.keep(filepath.Join("ca", info.Name+".der"), sum(info.Certificate.Raw), func() ([]byte, error) { return info.Certificate.Raw, nil })
		if err = errors.Join(err, p.keepCRLs(ctx, info)); err != nil {
			failures = append(failures, fmt.Errorf("CA %s: %w: %w", info.Name, errFiles, err))
		}
	}
	return errors.Join(failures...)
}

func (p *Publisher) keepCRLs(ctx context.Context, info ca.Info) error {
	shards, err := p.CA.Shards(ctx, info.Name)
	if err != nil {
		return err
	}
	newest, err := p.CA.CRLs(ctx, info.Name)
	if err != nil {
		return err
	}
	for _, crl := range newest {
		path := filepath.Join("crl", info.Name+".crl")
		if shards > 1 {
			path = filepath.Join("crl", info.Name, fmt.Sprintf("%d.crl", crl.Shard))
		}
		err := p.keep(path, fmt.Sprint(crl.Number), func() ([]byte, error) {
			published, err := p.CA.Published(ctx, info.Name, crl.Shard)
			if err != nil {
				return nil, err
			}
			return io.ReadAll(published.Reader())
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// keep writes a file unless its version was written before.
func (p *Publisher) keep(path, version string, content func() ([]byte, error)) error {
	if p.crls[path] == version {
		return nil
	}
	data, err := content()
	if err != nil {
		return err
	}
	full := filepath.Join(p.Dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	if err := atomicfile.Write(full, data, 0o644); err != nil {
		return err
	}
	p.crls[path] = version
	return nil
}
