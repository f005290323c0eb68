//go:build awskms

// Keys of Amazon's cloud.

package keystore

import (
	"context"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/awskms"
)

func init() {
	openers["awskms"] = func(ctx context.Context, options apiv1.Options) (apiv1.KeyManager, error) {
		return awskms.New(ctx, options)
	}
}
