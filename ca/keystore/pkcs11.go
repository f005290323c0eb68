//go:build cgo

// PKCS#11: hardware security modules, smart cards, SoftHSM.

package keystore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"
	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/pkcs11"
	"go.step.sm/crypto/kms/uri"
)

func init() {
	openers["pkcs11"] = func(ctx context.Context, options apiv1.Options) (apiv1.KeyManager, error) {
		if u, err := uri.Parse(options.URI); err == nil && strings.Contains(u.Get("module-path"), "/") { // else the loader looks for it
			if _, err := os.Stat(u.Get("module-path")); err != nil {
				return nil, fmt.Errorf("module-path: %w", err) // the library only says that it failed to open the module
			}
		}
		return pkcs11.New(ctx, options)
	}
	isPINRefused = func(err error) bool {
		var code p11.Error
		return errors.As(err, &code) && slices.Contains([]p11.Error{p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE}, code)
	}
}
