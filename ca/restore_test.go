package ca_test

import (
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

// A certificate that was about to be signed when the backup was made, and was held after it: in the restored records it is about to be signed
// again, and must not come out of that valid.
func TestRestoreOfAHoldOnWhatWasIntended(t *testing.T) {
	t.Parallel()
	for reason, device := range map[string]bool{"certificateHold": false, "keyCompromise": true} {
		i := installation.New(t, storage.Open(t, database.SQLite))
		c := issue(t, i, "devices", "dev-1")
		if _, err := i.CA.Revoke(t.Context(), "test", c.Serial, reason); err != nil {
			t.Fatal(err)
		}
		newest, _ := current(t, i, "devices")
		published, err := i.CA.ReadPublished(t.Context(), newest.DER)
		if err != nil {
			t.Fatal(err)
		}
		var out ca.Reapplied
		err = i.DB.Write(t.Context(), "test.restate", func(tx *database.Tx) error {
			if _, err := tx.Exec("UPDATE certificates SET state = 'intended', reason = '', revoked_at = 0, der = NULL, issued_at = 0 WHERE serial = ?", c.Serial); err != nil {
				return err
			}
			var err error
			out, err = i.CA.RestateInTx(tx, i.Clock.Clock().Now(), "test", 1<<41, []ca.Published{published})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		status, err := i.CA.OCSPStatus(t.Context(), "devices", parse(t, c.DER).SerialNumber)
		if err != nil || status.State != ocsp.Revoked || out.Known != 1 || (len(out.Devices) == 1) != device {
			t.Errorf("%s: %v, %+v, %v", reason, status.State, out, err)
		}
	}
}
