package mirror

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

// site is an installation that publishes, and a reader of what it publishes.
type site struct {
	*installation.Installation
	dir       string
	publisher *Publisher
	reader    *Reader
}

func newSite(t *testing.T, dialect string) *site {
	t.Helper()
	s := &site{Installation: installation.New(t, storage.Open(t, dialect)), dir: t.TempDir()}
	if err := s.CA.RenewOCSPSigners(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.publisher = s.newPublisher()
	s.reader = s.newReader(t)
	return s
}

func (s *site) newPublisher() *Publisher {
	return &Publisher{CA: s.CA, Dir: s.dir, Clock: s.Clock.Clock(), Log: slog.New(slog.DiscardHandler)}
}

func (s *site) newReader(t *testing.T) *Reader {
	t.Helper()
	info, err := s.CA.Get(t.Context(), "devices")
	if err != nil {
		t.Fatal(err)
	}
	return NewReader(s.dir, "devices", info.Certificate, 5*time.Minute)
}

func (s *site) publish(t *testing.T) {
	t.Helper()
	if err := s.publisher.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// want compares what the reader says with what the CA says, and both with what is meant.
func (s *site) want(t *testing.T, serial string, state ocsp.State) {
	t.Helper()
	if err := s.reader.Update(); err != nil {
		t.Fatal(err)
	}
	number, _ := new(big.Int).SetString(serial, 16)
	got, err := s.reader.Status(number, s.Clock.Clock().Now())
	if err != nil {
		t.Fatal(err)
	}
	there, err := s.CA.OCSPStatus(t.Context(), "devices", number)
	if err != nil || got != there || got.State != state {
		t.Errorf("%s: the mirror says %+v, the CA %+v (%v), want %v", serial, got, there, err, state)
	}
}

func TestMirrorFollowsTheRecords(t *testing.T) {
	t.Parallel()
	for _, dialect := range []string{database.SQLite, database.Postgres} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			s := newSite(t, dialect)
			first := s.EnrollByCode(t, "SN-1", installation.Key(t))
			s.publish(t)
			s.want(t, first.Serial, ocsp.Good)
			second := s.EnrollByCode(t, "SN-2", installation.Key(t))
			s.want(t, strings.Repeat("1", 34), ocsp.Unknown)
			s.publish(t)
			s.want(t, second.Serial, ocsp.Good)
			for _, reason := range []string{"certificateHold", "", "keyCompromise"} {
				var err error
				state := ocsp.Revoked
				if reason == "" {
					_, err = s.CA.Unhold(ctx, "test", first.Serial)
					state = ocsp.Good
				} else {
					_, err = s.CA.Revoke(ctx, "test", first.Serial, reason)
				}
				if err != nil {
					t.Fatal(err)
				}
				s.publish(t)
				s.want(t, first.Serial, state)
			}
			// Both sides are started again: nothing is lost, nothing made anew.
			before := s.publisher.books["devices"].head
			s.publisher, s.reader = s.newPublisher(), s.newReader(t)
			s.publish(t)
			if after := s.publisher.books["devices"].head; after.Generation != before.Generation || after.Segments != before.Segments {
				t.Errorf("after a restart: %+v, before: %+v", after, before)
			}
			s.want(t, first.Serial, ocsp.Revoked)
			s.want(t, second.Serial, ocsp.Good)
			third := s.EnrollByCode(t, "SN-3", installation.Key(t))
			s.publish(t)
			s.want(t, third.Serial, ocsp.Good)
			// A new generation holds the same; what ended is not good.
			b := s.publisher.books["devices"]
			if err := b.begin(b.table.compact(s.Clock.Clock().Now()), s.publisher.read); err != nil {
				t.Fatal(err)
			}
			s.publish(t)
			s.want(t, first.Serial, ocsp.Revoked)
			s.want(t, third.Serial, ocsp.Good)
			s.Clock.Advance(third.NotAfter.Sub(s.Clock.Clock().Now()) + time.Second)
			if err := s.CA.RenewOCSPSigners(ctx); err != nil {
				t.Fatal(err)
			}
			s.publish(t)
			s.want(t, first.Serial, ocsp.Revoked)
			s.want(t, third.Serial, ocsp.Unknown)
			s.checkPublicFiles(t)
		})
	}
}

func (s *site) checkPublicFiles(t *testing.T) {
	t.Helper()
	der, err := os.ReadFile(filepath.Join(s.dir, "ca", "devices.der"))
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(s.dir, "crl", "devices.crl"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(content)
	if err != nil || list.CheckSignatureFrom(issuer) != nil || len(list.RevokedCertificateEntries) != 1 {
		t.Errorf("the CRL: %v", err)
	}
}

// A reader goes on with what it has for a while, and then says that it does not know.
func TestMirrorIsNotBelievedWhenOld(t *testing.T) {
	t.Parallel()
	s := newSite(t, database.SQLite)
	c := s.EnrollByCode(t, "SN-1", installation.Key(t))
	number, _ := new(big.Int).SetString(c.Serial, 16)
	now := s.Clock.Clock().Now
	if _, err := s.reader.Status(number, now()); err == nil {
		t.Error("an answer before anything was read")
	}
	s.publish(t)
	s.want(t, c.Serial, ocsp.Good)
	s.Clock.Advance(4 * time.Minute)
	s.want(t, c.Serial, ocsp.Good)
	s.Clock.Advance(2 * time.Minute)
	if _, err := s.reader.Status(number, now()); err == nil {
		t.Error("what is 6 minutes old is believed")
	}
	s.publish(t) // nothing has changed but the time
	s.want(t, c.Serial, ocsp.Good)
	s.Clock.Advance(-10 * time.Minute)
	if _, err := s.reader.Status(number, now()); err == nil {
		t.Error("what is from 10 minutes ahead is believed")
	}
}

// Whoever can write to the mirror, or carries it badly, cannot change a state.
func TestMirrorRefusesWhatIsNotTheCAs(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, database.SQLite)
	c := s.EnrollByCode(t, "SN-1", installation.Key(t))
	s.publish(t)
	status := filepath.Join(s.dir, "status", "devices")
	earlier, err := os.ReadFile(filepath.Join(status, headFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CA.Revoke(ctx, "test", c.Serial, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	s.publish(t)
	head := s.publisher.books["devices"].head
	segment, snapshot := filepath.Join(status, head.segmentFile(head.Segments)), filepath.Join(status, head.snapshotFile())
	raw, err := hex.DecodeString(c.Serial)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(path string, change func([]byte) []byte) func() {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(bytes.Clone(content)), 0o644); err != nil {
			t.Fatal(err)
		}
		return func() { os.WriteFile(path, content, 0o644) }
	}
	for name, damage := range map[string]func() (undo func()){
		"good instead of revoked": func() func() {
			return edit(segment, func(c []byte) []byte {
				at := bytes.Index(c, raw)
				c[at+serialOctets] = good
				return c
			})
		},
		"a record left out": func() func() { return edit(segment, func(c []byte) []byte { return c[:32] }) },
		"a cut segment":     func() func() { return edit(segment, func(c []byte) []byte { return c[:40] }) },
		"another snapshot":  func() func() { return edit(snapshot, func(c []byte) []byte { return c[recordOctets:] }) },
		"an empty head":     func() func() { return edit(filepath.Join(status, headFile), func([]byte) []byte { return nil }) },
		"a head of another CA": func() func() {
			other, err := os.ReadFile(filepath.Join(s.dir, "status", "management", headFile))
			if err != nil {
				t.Fatal(err)
			}
			return edit(filepath.Join(status, headFile), func([]byte) []byte { return other })
		},
		"a head that claims to be newer": func() func() {
			return edit(filepath.Join(status, headFile), func(c []byte) []byte {
				var signed signedHead
				if err := json.Unmarshal(c, &signed); err != nil {
					t.Fatal(err)
				}
				signed.Payload = bytes.Replace(signed.Payload, []byte(`"published_at":"2027`), []byte(`"published_at":"2028`), 1)
				out, err := json.Marshal(signed)
				if err != nil {
					t.Fatal(err)
				}
				return out
			})
		},
	} {
		undo := damage()
		reader := s.newReader(t)
		if err := reader.Update(); err == nil {
			t.Errorf("%s: taken", name)
		}
		number, _ := new(big.Int).SetString(c.Serial, 16)
		if got, err := reader.Status(number, s.Clock.Clock().Now()); err == nil {
			t.Errorf("%s: it says %v", name, got.State)
		}
		undo()
	}
	s.want(t, c.Serial, ocsp.Revoked)
	if err := os.WriteFile(filepath.Join(status, headFile), earlier, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.reader.Update(); err == nil {
		t.Error("an older head was taken after a newer one")
	}
	number, _ := new(big.Int).SetString(c.Serial, 16)
	if got, err := s.reader.Status(number, s.Clock.Clock().Now()); err != nil || got.State != ocsp.Revoked {
		t.Errorf("after an older head: %v, %v", got.State, err)
	}
	// The publisher does not go on from what is not its own either.
	if err := os.WriteFile(snapshot, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.publisher, s.reader = s.newPublisher(), s.newReader(t)
	s.Clock.Advance(time.Second)
	s.publish(t)
	s.want(t, c.Serial, ocsp.Revoked)
}

// What is no file, or is too long, is neither waited for nor read.
func TestMirrorReadsOnlyFiles(t *testing.T) {
	t.Parallel()
	s := newSite(t, database.SQLite)
	s.publish(t)
	head := filepath.Join(s.dir, "status", "devices", headFile)
	for name, put := range map[string]func() error{
		"a pipe":         func() error { return syscall.Mkfifo(head, 0o644) },
		"a device":       func() error { return os.Symlink("/dev/zero", head) },
		"a large file":   func() error { return os.WriteFile(head, bytes.Repeat([]byte(" "), maxHead+1), 0o644) },
		"a directory":    func() error { return os.Mkdir(head, 0o755) },
		"nothing at all": func() error { return nil },
	} {
		if err := errors.Join(os.RemoveAll(head), put()); err != nil {
			t.Fatal(err)
		}
		if err := s.newReader(t).Update(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// The key of a revoked signer says nothing more to a reader that knows of the revocation.
func TestMirrorOfARevokedSigner(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, database.SQLite)
	s.publish(t)
	if err := s.reader.Update(); err != nil {
		t.Fatal(err)
	}
	_, signer, err := s.CA.SignStatus(ctx, "devices", signedText)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CA.Revoke(ctx, "test", ca.SerialHex(certificate.SerialNumber), "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	s.publish(t) // signed by it still
	for _, reader := range []*Reader{s.reader, s.newReader(t)} {
		if err := reader.Update(); !errors.Is(err, errSignerRevoked) {
			t.Errorf("a head of a revoked signer: %v", err)
		}
	}
	s.Clock.Advance(2 * time.Minute)
	if err := s.CA.RenewOCSPSigners(ctx); err != nil {
		t.Fatal(err)
	}
	s.publish(t)
	s.want(t, ca.SerialHex(certificate.SerialNumber), ocsp.Revoked)
}

// The publisher's directory was put back from an old copy: it says the same as the records again, and readers go on.
func TestMirrorPutBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, database.SQLite)
	first, second := s.EnrollByCode(t, "SN-1", installation.Key(t)), s.EnrollByCode(t, "SN-2", installation.Key(t))
	s.publish(t)
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []ca.Certificate{first, second} { // two segments that will be one
		if _, err := s.CA.Revoke(ctx, "test", c.Serial, "keyCompromise"); err != nil {
			t.Fatal(err)
		}
		s.Clock.Advance(time.Second)
		s.publish(t)
		s.want(t, c.Serial, ocsp.Revoked)
	}
	if err := errors.Join(os.RemoveAll(s.dir), os.CopyFS(s.dir, os.DirFS(copied))); err != nil {
		t.Fatal(err)
	}
	s.publisher = s.newPublisher()
	s.Clock.Advance(time.Second)
	s.publish(t)
	s.want(t, first.Serial, ocsp.Revoked)
	third := s.EnrollByCode(t, "SN-3", installation.Key(t))
	s.publish(t)
	s.want(t, second.Serial, ocsp.Revoked)
	s.want(t, third.Serial, ocsp.Good)
}

// A CRL that cannot be read keeps no CA's states back.
func TestMirrorWithoutOneCRL(t *testing.T) {
	t.Parallel()
	s := newSite(t, database.SQLite)
	c := s.EnrollByCode(t, "SN-1", installation.Key(t))
	err := s.DB.Write(t.Context(), "test.damage", func(tx *database.Tx) error {
		_, err := tx.Exec("UPDATE crls SET der = 'no CRL' WHERE authority = 'management'")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	damaged := installation.Open(t, s.DB, s.Dir, s.Clock) // one that has not the CRL in memory
	if err := damaged.CA.RenewOCSPSigners(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.publisher.CA = damaged.CA
	if err := s.publisher.Publish(t.Context()); !errors.Is(err, errFiles) {
		t.Errorf("a damaged CRL was published: %v", err)
	}
	s.want(t, c.Serial, ocsp.Good)
	if _, err := s.CA.Revoke(t.Context(), "test", c.Serial, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	s.publisher.books = nil // as Run does after a failure
	if err := s.publisher.Publish(t.Context()); !errors.Is(err, errFiles) {
		t.Errorf("a damaged CRL was published: %v", err)
	}
	s.want(t, c.Serial, ocsp.Revoked)
	if _, err := os.Stat(filepath.Join(s.dir, "crl", "root.crl")); err != nil {
		t.Error(err)
	}
}

func TestTableCompacts(t *testing.T) {
	t.Parallel()
	record := func(n int, state ocsp.State, end time.Time) []byte {
		return encode(nil, ca.RecordedStatus{Serial: ca.SerialHex(big.NewInt(int64(n))), Status: ocsp.Status{State: state}, NotAfter: end.Unix()})
	}
	now := installation.Start
	soon, ago := now.Add(time.Hour), now.Add(-30*24*time.Hour)
	var snapshot []byte
	for n := 0; n < 100; n += 2 {
		snapshot = append(snapshot, record(n, ocsp.Good, soon)...)
	}
	table := newTable(snapshot)
	for n := 1; n < 100; n += 7 {
		table.apply(record(n, ocsp.Revoked, soon))
	}
	table.apply(record(4, ocsp.Unknown, soon))
	table.apply(record(6, ocsp.Revoked, ago))
	again := newTable(table.compact(now))
	for n := range 101 {
		var key [serialOctets]byte
		key[16] = byte(n)
		want, _ := table.find(key)
		got, found := again.find(key)
		if n == 4 || n == 6 {
			if found {
				t.Errorf("%d is still there", n)
			}
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d: %x, before %x", n, got, want)
		}
	}
}
