//go:build cgo

// PKCS#11: hardware security modules, smart cards, SoftHSM.

package keystore

import (
	"context"
	"errors"
	"slices"

	p11 "github.com/miekg/pkcs11"
	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/pkcs11"
)

func init() {
	openers["pkcs11"] = func(ctx context.Context, options apiv1.Options) (apiv1.KeyManager, error) {
		return pkcs11.New(ctx, options)
	}
	isPINRefused = func(err error) bool {
		var code p11.Error
		return errors.As(err, &code) && slices.Contains([]p11.Error{p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE}, code)
	}
}
