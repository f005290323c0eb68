//go:build testhooks

// A CA whose key a token makes. SoftHSM2 reads its configuration once: all runs share a token, and each has a key of its own.

package fault_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

type tokens struct {
	hsm  *harness.HSM
	pin  string
	keys int
}

// newTokens returns nil where the tests were built without cgo, which PKCS#11 needs.
func newTokens(t *testing.T) *tokens {
	if keystore.CheckURI("pkcs11:token=x;object=x") != nil {
		return nil
	}
	dir := t.TempDir()
	k := &tokens{hsm: harness.NewHSM(t, dir), pin: testpki.WriteFile(t, filepath.Join(dir, "pin"), []byte(harness.PIN))}
	os.Setenv("SOFTHSM2_CONF", k.hsm.Conf)
	k.hsm.InitToken(t, "fault")
	return k
}

// create makes a CA with a key in the token. What a repeat finds made there is used when the operator says so.
func (k *tokens) create(w *world) attempt {
	k.keys++
	req := ca.CreateRequest{Name: "second", External: true, KeyURI: k.hsm.URI("fault", fmt.Sprint("key-", k.keys), k.pin)}
	w.t.Cleanup(w.CA.Close)
	return once(func() error {
		_, err := w.CA.Create(ctx, "test", req)
		var refused *ca.Error
		if errors.As(err, &refused) && refused.Rule == "ca_key_exists" {
			existing := req
			existing.KeyExists = true
			_, err = w.CA.Create(ctx, "test", existing)
		}
		return err
	}, func() bool {
		info, err := w.CA.Get(ctx, "second")
		return err == nil && info.State == ca.Waiting && info.KeyOnline
	})
}
