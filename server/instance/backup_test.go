//go:build testhooks

// A backup holds what a new machine needs, comes back whole or not at all, and after it no number is used twice.

package instance

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

var ctx = context.Background()

// enroll makes a device with a code and returns its certificate.
func enroll(t *testing.T, i *Instance, id string) ca.Certificate {
	t.Helper()
	code, err := i.Book.CreateCode(ctx, "test", id, "default", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	return enrollWith(t, i, id, code.Code)
}

func enrollWith(t *testing.T, i *Instance, id, code string) ca.Certificate {
	t.Helper()
	l, err := i.Book.Label(ctx, "default")
	if err != nil {
		t.Fatal(err)
	}
	r, err := i.Book.CheckCode(ctx, l, id, code)
	if err != nil {
		t.Fatal(err)
	}
	c, err := i.Book.Enroll(ctx, r, l, installation.CSR(t, installation.Key(t), id, nil), false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func backUp(t *testing.T, i *Instance) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := i.WriteBackup(ctx, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// elsewhere is o on a new machine: another directory, the same passphrase.
func elsewhere(t *testing.T, o Options) Options {
	t.Helper()
	o.Dir = Dir(t.TempDir())
	return o
}

// numbers are the highest that an installation has given out.
type numbers struct {
	audit, change, revocation int64
	crls                      map[string]int64
}

func numbersOf(t *testing.T, i *Instance) numbers {
	t.Helper()
	n := numbers{crls: map[string]int64{}}
	head, err := audit.Current(ctx, i.DB)
	if err != nil {
		t.Fatal(err)
	}
	n.audit = head.Seq
	for name, into := range map[string]*int64{"changes": &n.change, "revocations": &n.revocation} {
		if err := i.DB.Get(ctx, into, "SELECT value FROM counters WHERE name = ?", name); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := i.CA.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		n.crls[info.Name] = info.CRLNumber
	}
	return n
}

// wantBeyond: whatever is given out from now on was never given out before.
func (n numbers) wantBeyond(t *testing.T, before numbers) {
	t.Helper()
	const jump = 1 << 40
	if n.audit < before.audit+jump || n.change < before.change+jump || n.revocation < before.revocation+jump-1 || n.audit > 1<<53 {
		t.Errorf("audit %d after %d, changes %d after %d, revocations %d after %d", n.audit, before.audit, n.change, before.change, n.revocation, before.revocation)
	}
	for name, number := range before.crls {
		if n.crls[name] < number+jump {
			t.Errorf("CRL %d of %s after %d", n.crls[name], name, number)
		}
	}
}

func TestBackupAndRestore(t *testing.T) {
	o, manual := options(t)
	mustInit(t, o)
	i := mustOpen(t, o)
	wrapped := filepath.Join("keys", "tpm", "devices.tpmobj") // what a TPM needs besides itself
	if err := errors.Join(makePrivate(o.Dir.Path("keys", "tpm")), os.WriteFile(o.Dir.Path(wrapped), []byte("wrapped"), 0o600)); err != nil {
		t.Fatal(err)
	}
	kept, revoked, held := enroll(t, i, "kept"), enroll(t, i, "revoked"), enroll(t, i, "held")
	open, err := i.Book.CreateCode(ctx, "test", "waiting", "default", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	archive := backUp(t, i)
	if m, err := CheckBackup(ctx, bytes.NewReader(archive), t.TempDir()); err != nil || m.Database != database.SQLite || m.Epoch != 1 {
		t.Fatalf("%+v, %v", m, err)
	}

	// What the backup does not know.
	enrollWith(t, i, "waiting", open.Code)
	unknown := enroll(t, i, "unknown")
	for serial, reason := range map[string]string{revoked.Serial: "keyCompromise", held.Serial: "certificateHold", unknown.Serial: "keyCompromise"} {
		if _, err := i.CA.Revoke(ctx, "test", serial, reason); err != nil {
			t.Fatal(err)
		}
	}
	newest, err := i.CA.CurrentCRL(ctx, "devices")
	if err != nil {
		t.Fatal(err)
	}
	before := numbersOf(t, i)
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}

	manual.Advance(time.Hour)
	n := elsewhere(t, o)
	if _, err := n.Dir.Unpack(bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, n); !errors.Is(err, ErrReplaced) || !strings.Contains(err.Error(), "restore --in-place") {
		t.Fatalf("before the statement: %v", err)
	}
	if content, err := os.ReadFile(n.Dir.Path(wrapped)); err != nil || string(content) != "wrapped" {
		t.Errorf("%s: %q, %v", wrapped, content, err)
	}
	for _, name := range []string{"passphrase", "lock", "admin.sock", "est.db-wal"} {
		if _, err := os.Stat(n.Dir.Path(name)); err == nil && name != "lock" {
			t.Errorf("the backup holds %s", name)
		}
	}
	stated, err := Restate(ctx, n, Statement{Actor: "test", Text: "fire", CRLs: [][]byte{newest.DER}})
	if err != nil {
		t.Fatal(err)
	}
	if stated.Epoch != 2 || stated.CodesLeft != 1 || stated.Known != 2 || stated.Unknown != 1 || !slices.Equal(stated.Ended(), []string{"revoked"}) {
		t.Errorf("%+v", stated)
	}
	back := mustOpen(t, n)
	after := numbersOf(t, back)
	after.wantBeyond(t, before)
	if _, err := audit.Verify(ctx, back.DB, nil); err != nil {
		t.Error(err)
	}
	l, err := back.Book.Label(ctx, "default")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := back.Book.CheckCode(ctx, l, "waiting", open.Code); err == nil { // C51
		t.Error("a code that was used after the backup serves again")
	}
	crl, err := back.CA.CurrentCRL(ctx, "devices")
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(crl.DER)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, e := range list.RevokedCertificateEntries {
		listed[ca.SerialHex(e.SerialNumber)] = e.ReasonCode
	}
	if len(listed) != 3 || listed[revoked.Serial] != 1 || listed[held.Serial] != 6 || listed[unknown.Serial] != 1 {
		t.Errorf("on the new CRL: %v", listed)
	}
	for serial, want := range map[string]string{kept.Serial: ca.Issued, revoked.Serial: ca.Revoked, held.Serial: ca.Held, unknown.Serial: ca.Revoked} {
		if c, err := back.CA.Certificate(ctx, serial); err != nil || c.State != want {
			t.Errorf("%s: %s, %v, want %s", c.Device, c.State, err, want)
		}
	}
	if d, err := back.Book.Device(ctx, "revoked"); err != nil || d.State != registration.StateRevoked {
		t.Errorf("%+v, %v", d, err)
	}
	enroll(t, back, "fresh")
	beforeSecond := numbersOf(t, back)
	if err := back.Close(); err != nil {
		t.Fatal(err)
	}

	// The same backup once more, when the restored installation is lost too.
	manual.Advance(time.Second)
	again := elsewhere(t, o)
	if _, err := again.Dir.Unpack(bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	if _, err := Restate(ctx, again, Statement{Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	third := numbersOf(t, mustOpen(t, again))
	if third.audit <= beforeSecond.audit || third.change <= beforeSecond.change || third.crls["devices"] <= beforeSecond.crls["devices"] {
		t.Errorf("a second restore repeats numbers: %+v after %+v", third, beforeSecond)
	}
}

// A copied-back database on either kind of storage: refused, stated, served.
func TestRestateInPlace(t *testing.T) {
	t.Parallel()
	url := storage.URL(t, database.Postgres)
	o, manual := options(t)
	shared := plan
	shared.DatabaseURLFile = file(t, url+"\n")
	i, err := Init(ctx, o, shared)
	if err != nil {
		t.Fatal(err)
	}
	enroll(t, i, "kept")
	archive := backUp(t, i)
	m, err := CheckBackup(ctx, bytes.NewReader(archive), t.TempDir())
	if err != nil || m.Database != database.Postgres {
		t.Fatalf("%+v, %v", m, err)
	}
	before := numbersOf(t, i)
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	// The end of the log cut off stands for a dump that was put back.
	db := storage.OpenURL(t, url)
	err = db.Write(ctx, "test.put_back", func(tx *database.Tx) error {
		_, err := tx.Exec("DELETE FROM audit WHERE seq = (SELECT MAX(seq) FROM audit)")
		if err == nil {
			_, err = tx.Exec("UPDATE audit_head SET seq = seq - 1, hash = (SELECT hash FROM audit ORDER BY seq DESC LIMIT 1)")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, o); !errors.Is(err, ErrReplaced) {
		t.Fatalf("opened: %v", err)
	}
	manual.Advance(time.Minute)
	if _, err := Restate(ctx, o, Statement{Actor: "test", KeepCodes: true}); err != nil {
		t.Fatal(err)
	}
	back := mustOpen(t, o)
	numbersOf(t, back).wantBeyond(t, before)
	if _, err := audit.Verify(ctx, back.DB, nil); err != nil {
		t.Error(err)
	}
	enroll(t, back, "fresh")
}

func TestDamagedBackupIsRefused(t *testing.T) {
	o, _ := options(t)
	mustInit(t, o)
	archive := backUp(t, mustOpen(t, o))
	for name, damage := range map[string]func(b []byte) []byte{
		"cut off":          func(b []byte) []byte { return b[:len(b)/2] },
		"empty":            func(b []byte) []byte { return nil },
		"a bit of a key":   func(b []byte) []byte { b[bytes.Index(b, []byte("ENCRYPTED PRIVATE KEY"))+60] ^= 1; return b },
		"a bit of the end": func(b []byte) []byte { b[bytes.LastIndex(b, []byte("certificates"))] ^= 1; return b },
		"a name in its tar": func(b []byte) []byte {
			return bytes.Replace(b, []byte("keys/devices.pem\x00"), []byte("keys/devices.pex\x00"), 1)
		},
		"a name that leads away": func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("trust.pem"), []byte("../st.pem")) },
		"another format":         func(b []byte) []byte { return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2`), 1) },
	} {
		broken := damage(bytes.Clone(archive))
		if _, err := CheckBackup(ctx, bytes.NewReader(broken), t.TempDir()); err == nil {
			t.Errorf("%s: passes", name)
		}
		n := elsewhere(t, o)
		if _, err := n.Dir.Unpack(bytes.NewReader(broken)); err == nil {
			t.Errorf("%s: is put back", name)
		}
		if _, err := Open(ctx, n); err == nil {
			t.Errorf("%s: is opened", name)
		}
	}
}

// Whatever step fails, nothing can be served before the restore is stated, and then it is stated once more or whole.
func TestBackupAndRestoreAtEveryStep(t *testing.T) {
	defer fault.Set(nil)
	o, _ := options(t)
	mustInit(t, o)
	i := mustOpen(t, o)
	failing := func(step string, mode fault.Mode) {
		fault.Set(func(name string) fault.Mode {
			if name == step {
				return mode
			}
			return fault.None
		})
	}
	for _, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
		failing("instance.snapshot", mode)
		if err := i.WriteBackup(ctx, io.Discard); err == nil {
			t.Error("a backup without its database")
		}
		fault.Set(nil)
	}
	if left, err := os.ReadDir(string(o.Dir)); err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), backupWork) }) {
		t.Errorf("left over: %v, %v", left, err)
	}
	archive := backUp(t, i)
	for _, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
		for _, step := range []string{"instance.unpack", "instance.unpack_config", "instance.epoch"} {
			n := elsewhere(t, o)
			failing(step, mode)
			if _, err := n.Dir.Unpack(bytes.NewReader(archive)); err == nil {
				t.Errorf("%s: no error", step)
			}
			fault.Set(nil)
			if _, err := Open(ctx, n); err == nil {
				t.Errorf("%s: opened", step)
			}
		}
		for _, step := range []string{"instance.restate", "instance.epoch"} {
			n := elsewhere(t, o)
			if _, err := n.Dir.Unpack(bytes.NewReader(archive)); err != nil {
				t.Fatal(err)
			}
			failing(step, mode)
			if _, err := Restate(ctx, n, Statement{Actor: "test"}); err == nil {
				t.Errorf("%s: no error", step)
			}
			fault.Set(nil)
			if _, err := Open(ctx, n); err == nil && (step != "instance.epoch" || mode != fault.Lost) {
				t.Errorf("%s: opened", step)
			}
			if _, err := Restate(ctx, n, Statement{Actor: "test"}); err != nil {
				t.Errorf("%s, once more: %v", step, err)
			}
			mustOpen(t, n)
		}
	}
}
