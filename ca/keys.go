// From a CA to its key: opened when it is needed, and what is then known of it.

package ca

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/profile"
)

// Rules of errors about keys.
const (
	ruleKeyOffline     = "ca_key_offline"     // its file was taken away
	ruleKeyUnavailable = "ca_key_unavailable" // it cannot be used
	ruleKeyBusy        = "ca_key_busy"        // more is asked of it than it can do
	ruleKeyExists      = "ca_key_exists"
	ruleKeyCaptive     = "ca_key_captive"
)

// keyring holds the files that are open. Each has a lock of its own: reading one takes a tenth of a second, during which no other CA waits.
type keyring struct {
	mu   sync.Mutex
	keys map[string]*openKey // by URI
}

type openKey struct {
	mu  sync.Mutex
	key crypto.Signer
}

func (r *keyring) at(uri string) *openKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.keys[uri]
	if k == nil {
		k = &openKey{}
		if r.keys == nil {
			r.keys = map[string]*openKey{}
		}
		r.keys[uri] = k
	}
	return k
}

// forgetKey makes the next signature open the key anew.
func (a *Authorities) forgetKey(uri string) {
	a.keyring.mu.Lock()
	defer a.keyring.mu.Unlock()
	delete(a.keyring.keys, uri)
}

// signer opens the CA's key, or returns the one that is open. What it finds out counts as the state of the key.
func (a *Authorities) signer(au *authority) (crypto.Signer, error) {
	key, err := a.openKey(au)
	if err == nil && au.public != nil && !sameKey(key.Public(), au.public) {
		a.forgetKey(au.row.KeyURI)
		err = errors.New("it is not the key that the CA was made with")
	}
	a.keyWatch.settle(a, au, err)
	if err != nil {
		return nil, keyError(au, err)
	}
	return key, nil
}

func (a *Authorities) openKey(au *authority) (crypto.Signer, error) {
	uri := au.row.KeyURI
	if !keystore.IsFile(uri) || au.row.Use == UseRoot { // a root's key is used seldom and taken away by removing its file: it is never kept in memory
		return a.store.Open(uri)
	}
	k := a.keyring.at(uri)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.key != nil {
		return k.key, nil
	}
	var err error
	k.key, err = a.store.Open(uri)
	if err != nil {
		k.key = nil
	}
	return k.key, err
}

// ready is signer for a signature that is only wanted if it can be had soon.
func (a *Authorities) ready(au *authority) error {
	key, err := a.signer(au)
	if err != nil {
		return err
	}
	if keystore.IsBusy(key) {
		return keyError(au, keystore.ErrBusy)
	}
	return nil
}

// signFailed is the error of a signature that came to nothing.
func (a *Authorities) signFailed(au *authority, err error) *Error {
	a.forgetKey(au.row.KeyURI)
	a.keyWatch.settle(a, au, err)
	return keyError(au, err)
}

func keyError(au *authority, err error) *Error {
	e := &Error{Kind: Unavailable, Rule: ruleKeyUnavailable, Detail: fmt.Sprintf("the key of CA %q cannot be used", au.row.Name), Err: err}
	switch {
	case errors.Is(err, keystore.ErrNotHere) && keystore.IsFile(au.row.KeyURI):
		e.Rule, e.Detail = ruleKeyOffline, fmt.Sprintf("the key of CA %q is offline", au.row.Name)
	case errors.Is(err, keystore.ErrBusy):
		e.Rule, e.Detail = ruleKeyBusy, fmt.Sprintf("too many signatures wait for the key of CA %q", au.row.Name)
	}
	return e
}

// makeKey makes the key of a new CA, or finds the one that is said to exist. It is where the request says, or its predecessor's is, or all are.
func (a *Authorities) makeKey(req CreateRequest, beside string) (key crypto.Signer, spec, uri string, err error) {
	uri, spec = req.KeyURI, req.Key
	if uri == "" {
		uri = beside
	} else if keystore.IsFile(uri) {
		return nil, "", "", refuse(Invalid, "ca_key_uri", "a key in a file is always keys/NAME.pem of the data directory: leave the URI out")
	}
	if uri == "" {
		uri = "file:keys/" + req.Name + ".pem"
		if a.keyStore != "" {
			if uri, err = keystore.Sibling(a.keyStore, req.Name); err != nil {
				return nil, "", "", refuse(Invalid, "ca_key_uri", "%v", err)
			}
		}
	}
	if err := keystore.CheckURI(uri); err != nil {
		return nil, "", "", refuse(Invalid, "ca_key_uri", "%v", err)
	}
	if req.KeyExists {
		key, spec, err = a.existingKey(req, uri)
		return key, spec, uri, err
	}
	key, uri, err = a.store.Create(uri, req.Key)
	if errors.Is(err, keystore.ErrExists) {
		return nil, "", "", refuse(Conflict, ruleKeyExists, "there is a key %q already; to use it, say that it exists (--existing)", req.Name)
	}
	if err != nil {
		return nil, "", "", &Error{Kind: Unavailable, Rule: ruleKeyUnavailable, Detail: "the key cannot be made: " + oneLine(err), Err: err}
	}
	return key, spec, uri, nil
}

// existingKey is a key made elsewhere, in a key ceremony; no other CA may have it.
func (a *Authorities) existingKey(req CreateRequest, uri string) (crypto.Signer, string, error) {
	if keystore.IsFile(uri) {
		return nil, "", refuse(Invalid, "ca_key_uri", "only a key in a token, TPM or cloud service can exist before its CA")
	}
	key, err := a.store.Open(uri)
	if err != nil {
		return nil, "", &Error{Kind: Unavailable, Rule: ruleKeyUnavailable, Detail: "the key cannot be used: " + oneLine(err), Err: err}
	}
	spec, err := profile.KeySpec(key.Public())
	if err != nil || !slices.Contains(keystore.Specs, spec) {
		return nil, "", refuse(Invalid, "ca_key", "the key is %s, not one of %s", spec, strings.Join(keystore.Specs, ", "))
	}
	if req.Key != "" && req.Key != spec {
		return nil, "", refuse(Conflict, "ca_key", "the key is %s, not %s", spec, req.Key)
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	for name, au := range a.live {
		if sameKey(au.public, key.Public()) {
			return nil, "", refuse(Conflict, ruleKeyExists, "CA %q has this key", name)
		}
	}
	return key, spec, nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// Close ends the sessions with tokens.
func (a *Authorities) Close() { a.store.Close() }
