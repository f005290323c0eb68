// The machine's TPM: keys that it makes and wraps itself, in files below the data directory that are of no use to any other machine.

package keystore

import (
	"context"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/tpmkms"
)

func init() {
	openers["tpmkms"] = func(ctx context.Context, options apiv1.Options) (apiv1.KeyManager, error) {
		return tpmkms.New(ctx, options)
	}
}
