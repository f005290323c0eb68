// The one gap that is allowed, the filters of an export, and signed heads.

package audit_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/storage"
)

// After a stated restore the numbers go on far away and the hashes where they were; a head from between is missed, with the reason.
func TestRestoredLogIsWhole(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx := context.Background()
		write(t, db, noon, "one", "two", "three")
		kept, err := audit.Current(ctx, db)
		if err != nil {
			t.Fatal(err)
		}
		write(t, db, noon, "lost")
		lost, err := audit.Current(ctx, db)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, db, "DELETE FROM audit WHERE seq = 4", fmt.Sprintf("UPDATE audit_head SET seq = 999, hash = '%s'", kept.Hash))
		err = db.Write(ctx, "test.restore", func(tx *database.Tx) error {
			return audit.Append(tx, noon, audit.Entry{Actor: "test", Action: audit.Restored, Object: "installation"})
		})
		if err != nil {
			t.Fatal(err)
		}
		write(t, db, noon, "after")
		if head, err := audit.Verify(ctx, db, &kept); err != nil || head.Seq != 1001 {
			t.Errorf("%v, %v", head, err)
		}
		if _, err := audit.Verify(ctx, db, &lost); !errors.Is(err, audit.ErrBroken) || !strings.Contains(err.Error(), "a backup was restored") {
			t.Errorf("against a head of the lost entries: %v", err)
		}
		for head, want := range map[audit.Head]bool{kept: true, lost: false, {}: true} {
			if got, err := audit.Contains(ctx, db, head); err != nil || got != want {
				t.Errorf("contains %v: %v, %v", head, got, err)
			}
		}
	})
}

func TestExportSelects(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		write(t, db, noon, "one", "two")
		write(t, db, noon.Add(time.Hour), "two", "three")
		for want, f := range map[string]audit.Filter{
			"1 2 3 4": {}, "3 4": {Since: noon.Add(time.Hour)}, "1 2": {Until: noon.Add(time.Hour)}, "2 3": {Object: "two"},
			"3": {Object: "two", Since: noon.Add(time.Second)}, "": {Action: "other"}, "4": {Action: "tested", Object: "three"},
		} {
			var out bytes.Buffer
			if err := audit.Export(context.Background(), db, &out, f); err != nil {
				t.Fatal(err)
			}
			var got []string
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			for _, line := range lines[:len(lines)-1] {
				seq, _, _ := strings.Cut(strings.TrimPrefix(line, `{"seq":`), ",")
				got = append(got, seq)
			}
			if strings.Join(got, " ") != want || !strings.HasPrefix(lines[len(lines)-1], `{"head":{"epoch":1,"seq":4,`) {
				t.Errorf("%+v: %v\n%s", f, got, out.String())
			}
		}
	})
}

func TestCheckpoints(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var content []byte
	for n := range int64(3) {
		c, err := audit.Sign(audit.Head{Epoch: 1, Seq: 10 + n, Hash: fmt.Sprint("hash-", n)}, noon.Add(time.Duration(n)*24*time.Hour), key)
		if err != nil {
			t.Fatal(err)
		}
		line, err := c.Line()
		if err != nil {
			t.Fatal(err)
		}
		content = append(content, line...)
	}
	list, err := audit.ReadCheckpoints(content)
	if err != nil {
		t.Fatal(err)
	}
	if newest, err := audit.VerifyCheckpoints(list, key.Public()); err != nil || newest.Seq != 12 || !newest.SignedAt().Equal(noon.Add(48*time.Hour)) {
		t.Errorf("%v, %v", newest, err)
	}
	byHand(t, list[2], key)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.VerifyCheckpoints(list, other.Public()); !errors.Is(err, audit.ErrBroken) {
		t.Errorf("another key: %v", err)
	}
	for name, edit := range map[string]func(l []audit.Checkpoint){
		"epoch":     func(l []audit.Checkpoint) { l[1].Epoch = 2 },
		"seq":       func(l []audit.Checkpoint) { l[1].Seq++ },
		"hash":      func(l []audit.Checkpoint) { l[1].Hash = "another" },
		"time":      func(l []audit.Checkpoint) { l[1].At = l[2].At },
		"signature": func(l []audit.Checkpoint) { l[1].Signature = l[2].Signature },
		"order":     func(l []audit.Checkpoint) { l[1], l[2] = l[2], l[1] },
	} {
		changed, err := audit.ReadCheckpoints(content)
		if err != nil {
			t.Fatal(err)
		}
		edit(changed)
		if _, err := audit.VerifyCheckpoints(changed, key.Public()); !errors.Is(err, audit.ErrBroken) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	for _, bad := range []string{"\n", "{}\n", "no\n", `{"seq":1}` + "\n"} {
		if _, err := audit.ReadCheckpoints(append(bytes.Clone(content), bad...)); err == nil {
			t.Errorf("%q passes for a checkpoint", bad)
		}
	}
	if _, err := audit.VerifyCheckpoints(nil, key.Public()); err == nil {
		t.Error("no checkpoint passes for verified ones")
	}
}

// byHand verifies with openssl what docs/audit.md says is signed.
func byHand(t *testing.T, c audit.Checkpoint, key *ecdsa.PrivateKey) {
	t.Helper()
	harness.RequirePrograms(t, "openssl")
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"key.pem": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "signature": c.Signature,
		"message": []byte("natal audit checkpoint v1\nepoch 1\nseq 12\nhash hash-2\nat 2027-03-03T12:00:00Z\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := harness.Command{Path: harness.Program(t, "openssl"), Dir: dir, Args: []string{"dgst", "-sha256", "-verify", "key.pem", "-signature", "signature", "message"}}.Run(t)
	if r.Code != 0 || !strings.Contains(r.Stdout, "Verified OK") {
		t.Errorf("openssl: %s", r.Output())
	}
}
