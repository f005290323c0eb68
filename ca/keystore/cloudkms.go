//go:build cloudkms

// Keys of Google's cloud.

package keystore

import (
	"context"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/cloudkms"
)

func init() {
	openers["cloudkms"] = func(ctx context.Context, options apiv1.Options) (apiv1.KeyManager, error) {
		return cloudkms.New(ctx, options)
	}
}
