//go:build azurekms

// Keys of Microsoft's cloud.

package keystore

import (
	"context"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/azurekms"
)

func init() {
	openers["azurekms"] = func(ctx context.Context, options apiv1.Options) (apiv1.KeyManager, error) {
		return azurekms.New(ctx, options)
	}
}
