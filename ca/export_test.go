// What the tests of the schedule drive step by step.

package ca

import (
	"context"
	"crypto"
	"errors"
	"time"
)

// IssueDueCRLs is one round of the schedule, one CA after another.
func (a *Authorities) IssueDueCRLs(ctx context.Context) (next time.Time, err error) {
	next = a.clock.Now().Add(lookEvery)
	list, err := a.List(ctx)
	for _, info := range list {
		at, failed := a.issueDueCRLs(ctx, info)
		next, err = earlier(next, at), errors.Join(err, failed)
	}
	return next, err
}

// WrapKey makes a CA sign with what wrap makes of its key, which is open from then on.
func (a *Authorities) WrapKey(ctx context.Context, name string, wrap func(crypto.Signer) crypto.Signer) error {
	au, err := a.authority(ctx, name)
	if err != nil {
		return err
	}
	key, err := a.signer(au)
	if err == nil {
		a.keyring.at(au.row.KeyURI).key = wrap(key)
	}
	return err
}
