// What backends are opened with: which of them are in the binary is a matter of build tags and cgo.

package keystore

import (
	"context"

	"go.step.sm/crypto/kms/apiv1"
)

// openers is filled by the files of the kinds that were built in.
var openers = map[string]func(context.Context, apiv1.Options) (apiv1.KeyManager, error){}

// isPINRefused tells whether a login failed because of the PIN.
var isPINRefused = func(error) bool { return false }
