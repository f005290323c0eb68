// The certificates that a broker is proven with: for each issuing CA one that must be accepted and one, revoked
// the moment it was made, that must be refused. Their keys are the bridge's own; their names are reserved and stand in no ACL.

package bridge

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/internal/feedapi"
)

const (
	canaryPrefix   = reservedPrefix + "canary-"
	canaryMargin   = time.Minute // before NotAfter a canary is not used any more
	canaryPatience = time.Hour   // a revoked canary that no CRL lists by then is replaced
)

// canary is one certificate with its key, as kept in STATE/canaries.json.
type canary struct {
	KeyID       string    `json:"key_id"` // of the issuing CA
	Revoked     bool      `json:"revoked"`
	Key         string    `json:"key"`         // PEM, PKCS #8
	Certificate string    `json:"certificate"` // PEM
	Chain       string    `json:"chain"`       // PEM
	MadeAt      time.Time `json:"made_at"`

	pair *tls.Certificate
}

// canaries is the collection. Only the loop uses it.
type canaries struct {
	path    string
	clock   *clock.Clock
	items   []canary
	foreign *tls.Certificate
}

func openCanaries(dir string, clk *clock.Clock) (*canaries, error) {
	c := &canaries{path: filepath.Join(dir, "canaries.json"), clock: clk}
	var err error
	if c.foreign, err = foreignCertificate(clk.Now()); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &c.items); err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	for i := range c.items {
		if err := c.items[i].load(); err != nil {
			return nil, fmt.Errorf("%s: %w", c.path, err)
		}
	}
	return c, nil
}

func (k *canary) load() error {
	pair, err := tls.X509KeyPair([]byte(k.Certificate+k.Chain), []byte(k.Key))
	k.pair = &pair
	return err
}

// good returns the newest canary of the issuing CA that a broker must accept; nil if there is none.
func (c *canaries) good(i *Issuer) *canary {
	return c.newest(i, func(k *canary) bool { return !k.Revoked && !i.Revoked(k.pair.Leaf.SerialNumber) })
}

// revoked returns the newest canary that the CRL of the issuing CA lists.
func (c *canaries) revoked(i *Issuer) *canary {
	return c.newest(i, func(k *canary) bool { return k.Revoked && i.Revoked(k.pair.Leaf.SerialNumber) })
}

func (c *canaries) newest(i *Issuer, fits func(*canary) bool) *canary {
	var best *canary
	for n := range c.items {
		k := &c.items[n]
		if k.KeyID == i.KeyID && k.pair.Leaf.NotAfter.After(c.clock.Now().Add(canaryMargin)) && fits(k) &&
			(best == nil || k.MadeAt.After(best.MadeAt)) {
			best = k
		}
	}
	return best
}

// wanted tells which canaries to ask for so that i can be proven now and, with renew, for a third of their life more.
func (c *canaries) wanted(i *Issuer, renew bool) (good, revoked bool) {
	now := c.clock.Now()
	due := func(k *canary) bool {
		leaf := k.pair.Leaf
		return renew && now.After(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore)/3*2))
	}
	g := c.good(i)
	good = g == nil || due(g)
	waiting := c.newest(i, func(k *canary) bool {
		return k.Revoked && !i.Revoked(k.pair.Leaf.SerialNumber) && now.Sub(k.MadeAt) < canaryPatience
	})
	r := c.revoked(i)
	revoked = (r == nil || due(r)) && waiting == nil
	return good, revoked
}

// ensure asks the server for what is wanted for each issuing CA. It reports whether a revoked canary is new: then only the
// next CRL lists it.
func (c *canaries) ensure(ctx context.Context, feed *Feed, set *Set, renew bool) (fresh bool, err error) {
	for n := range set.Issuers {
		i := &set.Issuers[n]
		good, revoked := c.wanted(i, renew)
		if good {
			err = errors.Join(err, c.request(ctx, feed, i, false))
		}
		if revoked {
			e := c.request(ctx, feed, i, true)
			fresh = fresh || e == nil
			err = errors.Join(err, e)
		}
	}
	return fresh, err
}

func (c *canaries) request(ctx context.Context, feed *Feed, i *Issuer, revoke bool) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: canaryPrefix + "request"}}, key)
	if err != nil {
		return err
	}
	answer, err := feed.Canary(ctx, feedapi.CanaryRequest{
		Issuer: i.Name,
		CSR:    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		Revoke: revoke,
	})
	if err != nil {
		return fmt.Errorf("canary of %s: %w", i.Name, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	k := canary{
		KeyID: i.KeyID, Revoked: revoke, Certificate: answer.Certificate, Chain: answer.Chain, MadeAt: c.clock.Now(),
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
	if err := k.load(); err != nil {
		return fmt.Errorf("canary of %s: %w", i.Name, err)
	}
	if err := k.check(i); err != nil {
		return fmt.Errorf("canary of %s: %w", i.Name, err)
	}
	return c.add(k, i)
}

// check makes sure that a broker's answer to k tells something about i.
func (k *canary) check(i *Issuer) error {
	if err := k.pair.Leaf.CheckSignatureFrom(i.Certificate); err != nil {
		return err
	}
	if !strings.HasPrefix(strings.ToLower(k.pair.Leaf.Subject.CommonName), canaryPrefix) {
		return fmt.Errorf("its name %q is not a canary's", k.pair.Leaf.Subject.CommonName)
	}
	return nil
}

// add keeps k and forgets what it takes the place of: expired ones, and all but the newest few of its kind.
func (c *canaries) add(k canary, i *Issuer) error {
	items := slices.Clone(c.items)
	items = slices.DeleteFunc(items, func(old canary) bool {
		replaced := old.KeyID == k.KeyID && old.Revoked == k.Revoked && !k.Revoked
		return replaced || old.pair.Leaf.NotAfter.Before(c.clock.Now())
	})
	items = append(items, k)
	data, err := json.MarshalIndent(items, "", " ")
	if err != nil {
		return err
	}
	err = fault.Step("bridge.canary", func() error { return atomicfile.Write(c.path, append(data, '\n'), 0o600) })
	if err != nil {
		return err
	}
	c.items = items
	return nil
}

// probes are the four connections for each issuing CA that tell whether a broker holds set. A CA that cannot be proven is passed
// over; if that is so of all, nothing can be, and the error is a *Refusal.
func (c *canaries) probes(set *Set) ([]Probe, error) {
	probes := []Probe{
		{Name: "foreign", Certificate: c.foreign, Want: Refused},
		{Name: "none", Want: Refused},
	}
	var first *Refusal
	some := false
	for n := range set.Issuers {
		i := &set.Issuers[n]
		if r := c.lacks(i); r != nil {
			first = cmp.Or(first, r)
			continue
		}
		some = true
		probes = append(probes, c.probesOf(i)...)
	}
	if !some {
		return nil, first
	}
	return probes, nil
}

// lacks says why an issuing CA cannot be proven; nil if it can.
func (c *canaries) lacks(i *Issuer) *Refusal {
	if c.good(i) == nil {
		return refuse(CodeCanaryMissing, "%s", i.Name)
	}
	if c.revoked(i) == nil {
		return refuse(CodeCanaryUnlisted, "%s: CRL number %d", i.Name, i.number())
	}
	return nil
}

// probesOf: once its CRL has run out, a broker refuses all of a CA, for that reason and not for the revocation.
func (c *canaries) probesOf(i *Issuer) []Probe {
	revoked := Probe{Name: "revoked:" + i.Name, Certificate: c.revoked(i).pair, Want: Refused}
	if i.nextUpdate().Before(c.clock.Now().Add(canaryMargin)) {
		return []Probe{revoked}
	}
	revoked.Alert = alertRevoked
	return []Probe{{Name: "good:" + i.Name, Certificate: c.good(i).pair, Want: Accepted}, revoked}
}

// foreignCertificate is of a CA that nobody knows: itself.
func foreignCertificate(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: canaryPrefix + "foreign"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
