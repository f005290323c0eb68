// What others see of the CAs.

package ca

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
)

// Info describes a CA.
type Info struct {
	Name        string
	Subject     string // RFC 4514
	Parent      string // name of the CA that signed it; "" for a root and for an external parent
	State       string
	Key         string // key spec
	Use         string // root, broker, birth, management, or "" until a label binds it
	PublicURL   string // base of the addresses in its certificates
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // issuers, up to and including the root
	Replaces    string              // name of the CA that it takes over from, or ""
	ReplacedBy  string              // name of the CA that takes over from it, or ""
	Crosses     []*x509.Certificate // of a root that replaces another one: the cross certificates between the two
	KeyURI      string              // where its key is
	KeyOnline   bool
	CRLValidity time.Duration
	CRLInterval time.Duration
	Shards      int       // of its CRL; 1 = one CRL of all
	CRLNumber   int64     // of the newest published CRL; 0 = none
	ThisUpdate  time.Time // of several shards the oldest
	NextUpdate  time.Time // of several shards the soonest
	CRLEntries  int       // of all shards
}

// List returns all CAs, by name.
func (a *Authorities) List(ctx context.Context) ([]Info, error) {
	if err := a.current(ctx); err != nil {
		return nil, err
	}
	a.mu.RLock()
	names := make([]string, 0, len(a.live))
	for name := range a.live {
		names = append(names, name)
	}
	a.mu.RUnlock()
	slices.Sort(names)
	list := make([]Info, 0, len(names))
	for _, name := range names {
		info, err := a.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	return list, nil
}

// Get returns one CA.
func (a *Authorities) Get(ctx context.Context, name string) (Info, error) {
	au, err := a.authority(ctx, name)
	if err != nil {
		return Info{}, err
	}
	r := &au.row
	info := Info{
		Name: r.Name, Subject: r.Subject, Parent: r.Parent, State: r.State, Key: r.KeySpec, Use: r.Use, PublicURL: r.PublicURL, Certificate: au.certificate, Chain: au.chain,
		CRLValidity: time.Duration(r.CRLValidity) * time.Millisecond, CRLInterval: time.Duration(r.CRLInterval) * time.Millisecond,
	}
	info.KeyURI = keystore.Shown(r.KeyURI)
	info.KeyOnline = a.store.Exists(r.KeyURI)
	info.Replaces, info.Crosses = r.Replaces, au.crosses
	if next := a.successor(name); next != nil {
		info.ReplacedBy = next.row.Name
	}
	info.Shards = au.shards()
	crls, err := a.newestCRLs(ctx, name)
	if err != nil {
		return Info{}, err
	}
	for i, crl := range crls {
		if i == 0 {
			info.ThisUpdate, info.NextUpdate = moment(crl.ThisUpdate), moment(crl.NextUpdate)
		}
		info.CRLNumber, info.CRLEntries = max(info.CRLNumber, crl.Number), info.CRLEntries+int(crl.Entries)
		info.ThisUpdate, info.NextUpdate = earlier(info.ThisUpdate, moment(crl.ThisUpdate)), earlier(info.NextUpdate, moment(crl.NextUpdate))
	}
	return info, nil
}
