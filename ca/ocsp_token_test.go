//go:build cgo

// A signer whose key is in a token, where no key is ever replaced.

package ca_test

import (
	"context"
	"crypto"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

func TestOCSPSignerRevokedInToken(t *testing.T) {
	harness.RequirePrograms(t, "softhsm2-util", "pkcs11-tool")
	ctx := context.Background()
	hsm := harness.NewHSM(t, t.TempDir())
	t.Setenv("SOFTHSM2_CONF", hsm.Conf)
	hsm.InitToken(t, "ocsp")
	pin := testpki.WriteFile(t, filepath.Join(t.TempDir(), "pin"), []byte(harness.PIN))
	i := installation.New(t, storage.Open(t, database.SQLite))
	t.Cleanup(i.CA.Close)
	_, err := i.CA.Create(ctx, "test", ca.CreateRequest{
		Name: "captive", Parent: "root", Use: "broker", PublicURL: "http://pki.example.com:8080", KeyURI: hsm.URI("ocsp", "captive", pin),
	})
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, issue(t, i, "captive", "dev-1").DER)
	seen := map[string]bool{}
	for n := range 3 {
		signers(t, i)
		response, answer := askOCSP(t, i, "captive", leaf)
		if answer == nil {
			t.Fatalf("signer %d: %s", n+1, response.Outcome)
		}
		signer := answer.Certificate
		if key := string(signer.RawSubjectPublicKeyInfo); seen[key] {
			t.Fatalf("signer %d has the key of a revoked one", n+1)
		} else {
			seen[key] = true
		}
		again := installation.Open(t, i.DB, i.Dir, i.Clock) // after a restart
		signers(t, again)
		if _, other := askOCSP(t, again, "captive", leaf); other == nil || !signer.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(other.Certificate.PublicKey) {
			t.Errorf("after a restart another key than signer %d's", n+1)
		}
		again.CA.Close()
		if _, err := i.CA.Revoke(ctx, "test", ca.SerialHex(signer.SerialNumber), "keyCompromise"); err != nil {
			t.Fatal(err)
		}
		i.Clock.Advance(2 * time.Minute)
	}
	signers(t, i)
	objects := hsm.Tool(t, "ocsp", "--list-objects", "--type", "privkey")
	for _, label := range []string{"ocsp-captive\n", "ocsp-captive~2\n", "ocsp-captive~4\n"} {
		if !strings.Contains(objects, "label:      "+label) {
			t.Errorf("no key %q in\n%s", label, objects)
		}
	}
}
