// OCSP signers: a CA's own key is not spent on answers. Each CA has a signer with a key beside its own and a short-lived certificate that it
// issues to it like any other, renewed at two thirds of its life.
//
// A server finds the certificate of its signer by the signer's key. So servers with a store of their own have a signer each, servers that share a
// store share one, and whichever of them renews it first renews it for all.

package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/ocsp"
)

const (
	// OCSPProfile is the profile of the signers' certificates.
	OCSPProfile = "ocsp-signer"
	signerSpec  = "ec:P-256"
	signerLook  = time.Second // how often a new CA is looked for
	signerCheck = time.Minute // how often a signer is compared with its record
)

// ocspDesk is where one CA's answers are signed.
type ocspDesk struct {
	issuer *ocsp.Issuer

	mu     sync.Mutex
	signer *ocsp.Signer
	key    crypto.Signer // of the signer, once it is open
	next   time.Time     // when to look after it again
}

func (d *ocspDesk) current() *ocsp.Signer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.signer
}

// forget drops a signer whose key failed; the next round opens it again.
func (d *ocspDesk) forget(failed *ocsp.Signer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.signer == failed {
		d.signer, d.key, d.next = nil, nil, time.Time{}
	}
}

// RunOCSPSigners looks after the signers of all CAs until ctx ends.
func (a *Authorities) RunOCSPSigners(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := a.RenewOCSPSigners(ctx); err != nil {
			a.log.Error("ocsp signers", "error", err)
		}
		a.clock.SleepUntil(ctx, a.clock.Now().Add(signerLook))
	}
	return nil
}

// RenewOCSPSigners is one round: every CA that answers gets the signer that it lacks, or a new certificate for the one it has. It returns the
// failures; a signer that could not be renewed goes on until its end.
func (a *Authorities) RenewOCSPSigners(ctx context.Context) error {
	if err := a.current(ctx); err != nil {
		return err
	}
	a.mu.RLock()
	all := make([]*authority, 0, len(a.live))
	for _, au := range a.live {
		all = append(all, au)
	}
	a.mu.RUnlock()
	slices.SortFunc(all, func(x, y *authority) int { return strings.Compare(x.row.Name, y.row.Name) })
	var failures []error
	for _, au := range all {
		if !au.answersOCSP() || ctx.Err() != nil {
			continue
		}
		if err := a.lookAfter(ctx, au); err != nil {
			failures = append(failures, fmt.Errorf("signer of CA %s: %w", au.row.Name, err))
		}
	}
	return errors.Join(failures...)
}

func (a *Authorities) lookAfter(ctx context.Context, au *authority) error {
	desk, err := a.ocsp.desk(au)
	if err != nil {
		return err
	}
	now := a.clock.Now()
	desk.mu.Lock()
	key, due := desk.key, !now.Before(desk.next) || desk.next.Sub(now) > retryAfter+signerCheck
	desk.mu.Unlock()
	if !due {
		return nil
	}
	signer, key, err := a.findSigner(ctx, au, desk, key)
	desk.mu.Lock()
	defer desk.mu.Unlock()
	desk.key, desk.next = key, now.Add(signerCheck)
	if signer != nil || err == nil {
		desk.signer = signer
	}
	if err != nil {
		desk.next = now.Add(retryAfter)
	}
	return err
}

// findSigner returns the signer to use from now on. With an error there may be one too: it goes on until it is renewed. Without either, the CA's key is
// away and there is nothing left to answer with.
func (a *Authorities) findSigner(ctx context.Context, au *authority, desk *ocspDesk, key crypto.Signer) (_ *ocsp.Signer, _ crypto.Signer, err error) {
	online := a.store.Exists(au.row.KeyURI)
	var found *Certificate
	if key != nil {
		if found, err = a.signerRecord(ctx, au, key); err != nil {
			return nil, key, err
		}
		if found.ended() {
			desk.forget(desk.current()) // whether or not there is another one to follow it
			key = nil
		}
	}
	if key == nil {
		if key, found, err = a.signerKey(ctx, au, online); key == nil {
			return nil, nil, err
		}
	}
	now := a.clock.Now()
	var signer *ocsp.Signer
	if found != nil && !now.After(found.NotAfter) {
		if signer, err = newSigner(key, found.DER, au); err != nil {
			return nil, key, err
		}
		if now.Before(found.NotBefore.Add(found.NotAfter.Sub(found.NotBefore) * 2 / 3)) {
			return signer, key, nil
		}
	}
	if !online {
		return signer, key, nil
	}
	issued, err := a.Issue(ctx, signerRequest(au.row.Name, key.Public(), "server", "ocsp"))
	if err != nil {
		return signer, key, err
	}
	renewed, err := newSigner(key, issued.DER, au)
	if err != nil {
		return signer, key, err
	}
	a.log.Info("OCSP signer certificate issued", "ca", au.row.Name, "serial", issued.Serial, "not_after", issued.NotAfter)
	return renewed, key, nil
}

// maxSignerKeys is how many keys a CA's signers may have had.
const maxSignerKeys = 1000

// signerKey opens the first key beside the CA's whose certificate was not revoked, with its record, or makes one. A token keeps the key of a
// revoked signer and never gives its name to another: the second one is called ocsp-NAME~2, and so on. No CA's name holds a tilde.
func (a *Authorities) signerKey(ctx context.Context, au *authority, online bool) (crypto.Signer, *Certificate, error) {
	for n := 1; n <= maxSignerKeys; n++ {
		name := ocspPrefix + au.row.Name
		if n > 1 {
			name += "~" + strconv.Itoa(n)
		}
		uri, err := keystore.Sibling(au.row.KeyURI, name)
		if err != nil {
			return nil, nil, err
		}
		key, err := a.store.Open(uri)
		if errors.Is(err, keystore.ErrNotHere) {
			if !online {
				return nil, nil, nil
			}
			key, _, err = a.store.Create(uri, signerSpec)
		}
		if errors.Is(err, keystore.ErrExists) { // another server was faster
			key, err = a.store.Open(uri)
		}
		if err != nil {
			return nil, nil, err
		}
		if found, err := a.signerRecord(ctx, au, key); err != nil || !found.ended() {
			return key, found, err
		}
	}
	return nil, nil, fmt.Errorf("%d keys of its signers are revoked", maxSignerKeys)
}

// ended: the certificate of a signer was revoked. Neither it nor its key is used again.
func (c *Certificate) ended() bool { return c != nil && c.State != Issued }

func newSigner(key crypto.Signer, der []byte, au *authority) (*ocsp.Signer, error) {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return ocsp.NewSigner(key, certificate, au.certificate)
}

// signerRecord is the newest certificate of the CA for this key, or nil; one that was revoked goes before any other.
func (a *Authorities) signerRecord(ctx context.Context, au *authority, key crypto.Signer) (*Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	var r certificateRow
	err = a.db.Get(ctx, &r, "SELECT "+certificateColumns+" FROM certificates WHERE spki_sha256 = ? AND issuer = ? AND profile = ? AND state IN ('issued', 'held', 'revoked') "+
		"ORDER BY CASE WHEN state = 'issued' THEN 1 ELSE 0 END, not_after DESC LIMIT 1", SPKISHA256(spki), au.row.Name, OCSPProfile)
	if isNoRows(err) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("look for the signer's certificate", err)
	}
	found := r.certificate()
	return &found, nil
}

// signerRequest asks for a signer's certificate. Its name is one that no device can have.
func signerRequest(name string, public crypto.PublicKey, actor, requester string) Request {
	const prefix, longest = "natal-ocsp-", 64 // RFC 5280 appendix A: ub-common-name
	return Request{
		CA: name, Profile: OCSPProfile, Device: prefix + name[:min(len(name), longest-len(prefix))], PublicKey: public,
		RequesterKind: RequesterServer, Requester: requester, Actor: actor, Upkeep: true,
	}
}

// SignOCSP signs the request of an OCSP signer that lives elsewhere, as on a validation authority. The request names nothing: only its key counts. It
// returns the certificate and the CA's, PEM.
func (a *Authorities) SignOCSP(ctx context.Context, actor, name string, csrPEM []byte) (Certificate, *x509.Certificate, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return Certificate{}, nil, err
	}
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return Certificate{}, nil, err
	}
	issued, err := a.Issue(ctx, signerRequest(name, csr.PublicKey, actor, "csr:"+SPKISHA256(csr.RawSubjectPublicKeyInfo)))
	return issued, au.certificate, err
}

// OCSPSigners tells until when the certificates of the signers are valid that answer here, by CA. One whose CA has its key elsewhere is left out: nobody
// can renew it here.
func (a *Authorities) OCSPSigners() map[string]time.Time {
	a.ocsp.mu.Lock()
	desks := maps.Clone(a.ocsp.desks)
	a.ocsp.mu.Unlock() // whether a token answers may take seconds, and answers of other CAs need the lock
	ends := map[string]time.Time{}
	for name, desk := range desks {
		a.mu.RLock()
		au := a.live[name]
		a.mu.RUnlock()
		if signer := desk.current(); signer != nil && au != nil && au.answersOCSP() && a.store.Exists(au.row.KeyURI) {
			ends[name] = signer.Certificate.NotAfter
		}
	}
	return ends
}
