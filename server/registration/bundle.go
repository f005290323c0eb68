// Bundles: key and certificate made here, for devices that cannot make a key. The key exists in memory until it was handed over, once; nothing of it
// is stored, so a bundle that was lost is made good by a reissue and nothing else.

package registration

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// KindBundle is the kind of requester of a certificate whose key was made here.
const KindBundle = "bundle"

// Bundle is a certificate with its key.
type Bundle struct {
	Certificate ca.Certificate
	Key         crypto.Signer
}

// IssueBundle makes a key of the kind keySpec ("": the first one of the label's profile) and its certificate for a device that has not enrolled; one
// that does not exist is added; format is what the caller makes of it, pem or p12. label "" is the device's own, or the default one. It succeeds once in a device's life; the key is nowhere but in the result.
//
// Kinds: Conflict (the device has enrolled, or its bundle was delivered), NotFound, Invalid, and those of ca.Issue.
func (b *Book) IssueBundle(ctx context.Context, actor, id, label, keySpec, format string) (Bundle, error) {
	e, l, err := b.bundleFor(ctx, id, label)
	if err != nil {
		return Bundle{}, err
	}
	p, err := b.ca.Profile(ctx, l.Profile)
	if err != nil {
		return Bundle{}, err
	}
	if offered := p.Bundles(); !slices.Contains(offered, format) {
		if offered == nil {
			offered = []string{"none"}
		}
		return Bundle{}, refuse(Invalid, "bundle_format", "profile %s offers no bundle as %q but %s", l.Profile, format, strings.Join(offered, ", "))
	}
	if keySpec == "" {
		keySpec = p.KeySpecs()[0]
	}
	if !slices.Contains(p.KeySpecs(), keySpec) {
		return Bundle{}, refuse(Invalid, "key_type", "%q is not one of profile %s: %s", keySpec, l.Profile, strings.Join(p.KeySpecs(), ", "))
	}
	key, err := makeKey(keySpec)
	if err != nil {
		return Bundle{}, err
	}
	bundle := Bundle{Key: key}
	added := false
	bundle.Certificate, err = b.ca.Issue(ctx, ca.Request{
		CA: l.CA, Profile: l.Profile, Label: l.Name, Device: id, Registered: e.SANs, PublicKey: key.Public(), RequesterKind: KindBundle, Requester: actor, Actor: actor,
		Generation: e.Generation, ClaimKey: "bundle/" + id + "/" + generation(e.Generation),
		Claim: func(tx *database.Tx, now time.Time, intended ca.ID) (*ca.ID, error) {
			var err error
			added, err = b.claimBundle(tx, now, actor, e, l, intended, keySpec)
			return nil, err
		},
	})
	if added {
		b.changes.Announce()
	}
	if err != nil {
		return Bundle{}, err
	}
	return bundle, nil
}

// bundleFor is the end entity as it is or will be, and its label; it refuses at once what the claim would refuse after a key was made.
func (b *Book) bundleFor(ctx context.Context, id, label string) (EndEntity, Label, error) {
	e, err := b.Device(ctx, id)
	switch {
	case isKind(err, NotFound):
		if label == "" {
			label = Default
		}
		e = EndEntity{ID: id, Label: label, Generation: 1}
		if err := b.CheckID(id); err != nil {
			return e, Label{}, err
		}
	case err != nil:
		return e, Label{}, err
	case label != "" && label != e.Label:
		return e, Label{}, refuse(Conflict, "device_label", "device %q belongs to label %q", id, e.Label)
	default:
		if err := mayBundle(e); err != nil {
			return e, Label{}, err
		}
	}
	l, err := b.Label(ctx, e.Label)
	return e, l, err
}

// mayBundle refuses a device that has had its certificate.
func mayBundle(e EndEntity) error {
	if e.BoundKind == KindBundle && e.State == StateGenerated && e.SuspendedAt.IsZero() {
		return refuse(Conflict, "bundle_delivered", "the bundle of device %q was delivered on %s and its key is stored nowhere: device reissue %s, then make another", e.ID, e.UpdatedAt.Format(time.RFC3339), e.ID)
	}
	_, err := next(e, eventEnroll)
	return err
}

// claimBundle uses up the device's right to a first certificate; the codes that waited for it end with it.
func (b *Book) claimBundle(tx *database.Tx, now time.Time, actor string, seen EndEntity, l Label, intended ca.ID, keySpec string) (added bool, err error) {
	e, err := b.lock(tx, seen.ID)
	if isKind(err, NotFound) {
		if err := b.addEntity(tx, actor, l, NewDevice{ID: seen.ID}); err != nil {
			return false, err
		}
		added = true
		e, err = b.lock(tx, seen.ID)
	}
	if err != nil {
		return false, err
	}
	if e.Label != l.Name || e.Generation != seen.Generation {
		return false, refuse(Conflict, "device_changed", "device %q was changed by somebody else meanwhile", e.ID)
	}
	if err := mayBundle(e); err != nil {
		return false, err
	}
	if _, _, err := b.change(tx, now, e, eventEnroll, func(e *EndEntity) { e.BoundKind, e.BoundTo = KindBundle, intended.Serial }); err != nil {
		return false, err
	}
	if _, err := tx.Exec("UPDATE enrollment_codes SET state = 'revoked' WHERE device = ? AND state = 'active'", e.ID); err != nil {
		return false, err
	}
	return added, b.append(tx, audit.Entry{Actor: actor, Action: "bundle_delivered", Object: e.ID, Detail: map[string]string{"issuer": intended.Issuer, "serial": intended.Serial, "key": keySpec}})
}

// makeKey makes a key by its name in profiles.
func makeKey(spec string) (crypto.Signer, error) {
	curves := map[string]elliptic.Curve{"ec:P-256": elliptic.P256(), "ec:P-384": elliptic.P384(), "ec:P-521": elliptic.P521()}
	if curve := curves[spec]; curve != nil {
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	if spec == "ed25519" {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	size, err := strconv.Atoi(strings.TrimPrefix(spec, "rsa:"))
	if err != nil || !strings.HasPrefix(spec, "rsa:") {
		return nil, fmt.Errorf("no key of kind %q can be made", spec)
	}
	return rsa.GenerateKey(rand.Reader, size)
}
