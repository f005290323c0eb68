// After a restore: codes that may have been used since the backup, and devices that were put out since.

package registration

import (
	"errors"
	"maps"
	"slices"

	"github.com/natal-pki/natal/internal/database"
)

// CountOpenCodes is how many codes could be used, inside a transaction.
func CountOpenCodes(tx *database.Tx) (n int64, err error) {
	return n, tx.Get(&n, "SELECT COUNT(*) FROM enrollment_codes WHERE state = 'active'")
}

// EndOpenCodes ends every unused code: which of them were used after the backup was made, nobody knows any more, and a used code must not serve
// again.
func EndOpenCodes(tx *database.Tx) error {
	_, err := tx.Exec("UPDATE enrollment_codes SET state = 'revoked' WHERE state = 'active'")
	return err
}

// RevokeAfterRestoreInTx revokes the devices that a CRL newer than the backup tells of (reasons by device id). One that was removed, or is none of the
// book's, is left as it is.
func (b *Book) RevokeAfterRestoreInTx(tx *database.Tx, actor string, devices map[string]string) error {
	for _, id := range slices.Sorted(maps.Keys(devices)) {
		var refusal *Error
		if _, err := b.endInTx(tx, actor, id, eventRevoke, "device_revoked", devices[id]); err != nil && !errors.As(err, &refusal) {
			return err
		}
	}
	return nil
}
