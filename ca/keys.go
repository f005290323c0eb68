// From a CA to its key.

package ca

import (
	"crypto"
	"errors"
	"fmt"

	"github.com/natal-pki/natal/ca/keystore"
)

// signer opens the CA's key, or returns the one that is open.
func (a *Authorities) signer(au *authority) (crypto.Signer, error) {
	a.keyMu.Lock()
	defer a.keyMu.Unlock()
	if key := a.keys[au.row.KeyURI]; key != nil {
		return key, nil
	}
	key, err := a.store.Open(au.row.KeyURI)
	if errors.Is(err, keystore.ErrNotHere) {
		return nil, &Error{Kind: Unavailable, Rule: "ca_key_offline", Detail: fmt.Sprintf("the key of CA %q is offline", au.row.Name), Err: err}
	}
	if err != nil {
		return nil, &Error{Kind: Unavailable, Rule: "ca_key_unavailable", Detail: fmt.Sprintf("the key of CA %q cannot be used", au.row.Name), Err: err}
	}
	if au.row.Use != UseRoot { // a root's key is used seldom and taken away by removing its file: it is never kept in memory
		a.keys[au.row.KeyURI] = key
	}
	return key, nil
}

func (a *Authorities) forgetKey(uri string) {
	a.keyMu.Lock()
	defer a.keyMu.Unlock()
	delete(a.keys, uri)
}
