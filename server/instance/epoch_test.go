//go:build testhooks

// A database that was put back is refused, a crash at any moment is not, and a checkpoint is made once a day.

package instance

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/fault"
)

func addDevice(t *testing.T, o Options, id string) {
	t.Helper()
	i, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.CreateCode(t.Context(), "test", id, "default", time.Hour, nil); err != nil {
		t.Error(err)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

func TestOlderDatabaseIsRefused(t *testing.T) {
	o, _ := options(t)
	mustInit(t, o)
	old := mustRead(t, o.Dir.database())
	addDevice(t, o, "SN-1")
	newest := mustRead(t, o.Dir.database())
	put := func(content []byte) {
		t.Helper()
		for _, suffix := range []string{"-wal", "-shm"} {
			os.Remove(o.Dir.database() + suffix)
		}
		if err := os.WriteFile(o.Dir.database(), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(old)
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrReplaced) || !strings.Contains(err.Error(), "est-server restore --in-place --data "+string(o.Dir)) {
		t.Fatalf("an older copy: %v", err)
	}
	put(newest)
	addDevice(t, o, "SN-2")

	// The copy as it went on by itself: as many entries, and others.
	put(old)
	memory := mustRead(t, o.Dir.epoch())
	if err := os.Remove(o.Dir.epoch()); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"SN-3", "SN-4", "SN-5"} {
		addDevice(t, o, id)
	}
	if err := os.WriteFile(o.Dir.epoch(), memory, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrReplaced) {
		t.Errorf("another history of the same length: %v", err)
	}
}

// A running server notices too.
func TestDatabaseReplacedWhileServing(t *testing.T) {
	o, _ := options(t)
	mustInit(t, o)
	i, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if err := o.Dir.remember(memory{Epoch: 1, Seq: 1 << 30, Hash: "one that is not there"}); err != nil {
		t.Fatal(err)
	}
	if err := i.KeepRecord(t.Context()); !errors.Is(err, ErrReplaced) {
		t.Errorf("%v", err)
	}
}

// Whatever becomes of the file, the database that goes on is opened again.
func TestRememberedHeadIsNeverAhead(t *testing.T) {
	defer fault.Set(nil)
	o, _ := options(t)
	mustInit(t, o)
	for n, mode := range []fault.Mode{fault.NotDone, fault.Lost} {
		fault.Set(func(name string) fault.Mode {
			if name == "instance.epoch" {
				return mode
			}
			return fault.None
		})
		addDevice(t, o, []string{"SN-1", "SN-2"}[n])
		fault.Set(nil)
		addDevice(t, o, []string{"SN-3", "SN-4"}[n])
	}
	// A crash between the commit and the file.
	i := mustOpen(t, o)
	before := mustRead(t, o.Dir.epoch())
	if _, err := i.Book.CreateCode(t.Context(), "test", "SN-5", "default", time.Hour, nil); err != nil {
		t.Fatal(err)
	}
	if err := i.DB.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, mustRead(t, o.Dir.epoch())) {
		t.Fatal("the file was written")
	}
	addDevice(t, o, "SN-6")
}

func TestCheckpointOnceADay(t *testing.T) {
	defer fault.Set(nil)
	o, _ := options(t)
	mustInit(t, o)
	i := mustOpen(t, o)
	manual := clock.NewManual(time.Now())
	i.Clock = manual.Clock()
	lines := func() []audit.Checkpoint {
		t.Helper()
		list, err := audit.ReadCheckpoints(mustRead(t, o.Dir.Checkpoints()))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	change := func(id string) {
		t.Helper()
		if _, err := i.Book.CreateCode(t.Context(), "test", id, "default", time.Hour, nil); err != nil {
			t.Fatal(err)
		}
	}
	for n, mode := range []fault.Mode{fault.NotDone, fault.Lost, fault.None, fault.None} {
		fault.Set(func(name string) fault.Mode {
			if name == "instance.checkpoint" {
				return mode
			}
			return fault.None
		})
		if err := i.Checkpoint(t.Context()); (err != nil) != (n == 0 || n == 1) {
			t.Errorf("%d: %v", n, err)
		}
	}
	if n := len(lines()); n != 1 {
		t.Fatalf("%d checkpoints, want 1", n)
	}
	change("SN-1")
	manual.Advance(23 * time.Hour)
	for _, id := range []string{"SN-2", "SN-3"} {
		if err := i.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		change(id)
		manual.Advance(2 * time.Hour)
	}
	list := lines()
	block, _ := pem.Decode(mustRead(t, o.Dir.AuditKey()))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %d checkpoints", err, len(list))
	}
	newest, err := audit.VerifyCheckpoints(list, key)
	if err != nil {
		t.Fatal(err)
	}
	head := newest.Head()
	if _, err := audit.Verify(t.Context(), i.DB, &head); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(o.Dir.Checkpoints()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
