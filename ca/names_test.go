// Names that a CA cannot have.

package ca_test

import (
	"context"
	"errors"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

// A CA's key file must never take the place of another secret of the installation.
func TestReservedNames(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	for _, name := range []string{"codes", "Codes", "est-server", "../root", "", "a/b", "devices"} {
		_, err := i.CA.Create(context.Background(), "test", ca.CreateRequest{Name: name, Parent: "root"})
		var refused *ca.Error
		if !errors.As(err, &refused) || (refused.Rule != "ca_name" && refused.Rule != "ca_exists") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
