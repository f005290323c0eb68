// Start, and the minute's look: what is on disk and in the broker is checked against what was proven before anything is touched.

package bridge

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
)

// recover looks at what the run before left. It changes something only if the broker is wrong, or if a broker that is
// down could not start with what is on disk.
func (b *Bridge) recover(ctx context.Context) {
	good, err := b.store.goodBundle()
	if err != nil {
		b.log.Error("the last proven set is gone, beginning anew", "error", err)
		return
	}
	if good == nil {
		return
	}
	set, err := b.readGood(good)
	if err != nil {
		b.log.Error("the last proven set cannot be read, beginning anew", "error", err)
		return
	}
	b.current = set
	b.metrics.proven(set)
	b.metrics.kicksPending.Set(float64(len(b.store.Kicks)))
	disk, err := b.broker.Published()
	if err != nil {
		b.log.Error("broker's files", "error", err)
		return
	}
	probes, err := b.canaries.probes(set)
	if err != nil {
		b.log.Warn("broker not proven at start", "error", err)
		probes = nil
	}
	outcomes := b.prove(ctx, set, probes)
	switch {
	case allRight(outcomes):
		b.held = true
		return
	case (probes == nil || allDown(outcomes)) && loadable(disk.Bundle) == nil:
		return
	}
	b.log.Error("restoring the last proven set", "seq", b.store.Verified, "disk", loadable(disk.Bundle))
	if err := b.broker.Publish(Material{Bundle: good}); err != nil {
		b.log.Error("restore", "error", err)
		return
	}
	if outcomes, err = b.reloadAndProve(ctx, set, probes); err != nil {
		b.log.Error("restore", "error", err)
		return
	}
	b.held = allRight(outcomes)
}

// inspect proves the broker without a change. Whatever it finds is put right by apply, which begins with the files.
func (b *Bridge) inspect(ctx context.Context) {
	if b.current == nil || b.set == nil {
		return
	}
	fresh, err := b.canaries.ensure(ctx, b.feed, b.set, true)
	if err != nil {
		b.log.Warn("canary not renewed", "error", err)
	}
	b.stale = b.stale || fresh
	if b.loaded == nil {
		return
	}
	disk, err := b.broker.Published()
	if err != nil || !b.loaded.equal(disk) {
		b.log.Error("the broker's files are not as they were written", "error", err)
		b.doubt()
		return
	}
	probes, err := b.canaries.probes(b.current)
	if err != nil {
		b.log.Warn("broker not proven", "error", err)
		return
	}
	if outcomes := b.prove(ctx, b.current, probes); ctx.Err() == nil && !allRight(outcomes) {
		b.doubt()
	}
}

// doubt makes apply put everything in place anew, and holds back kicks until then.
func (b *Bridge) doubt() { b.loaded, b.held = nil, false }

// loadable tells whether a broker can start with a bundle: every PEM block is whole, and there is a CRL.
func loadable(bundle []byte) error {
	set, err := parseBundle(bundle, nil)
	if err == nil && len(set.Issuers) == 0 {
		err = errors.New("no CRL")
	}
	return err
}

// readGood is parseBundle with what the state knows besides.
func (b *Bridge) readGood(bundle []byte) (*Set, error) {
	set, err := parseBundle(bundle, b.store.Mark)
	if err == nil {
		set.Seq = b.store.Verified
		for n := range set.Issuers {
			set.Issuers[n].Seq = cmp.Or(set.Issuers[n].Seq, set.Seq)
		}
	}
	return set, err
}

// parseBundle reads what Set.Bundle wrote. What a bundle does not say comes from mark, which may be nil.
func parseBundle(data []byte, mark *Mark) (*Set, error) {
	set := &Set{}
	if mark != nil {
		set.LeftOut = mark.LeftOut
	}
	var others []*x509.Certificate
	for {
		var block *pem.Block
		if len(bytes.TrimSpace(data)) == 0 {
			break
		}
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("something that is not PEM")
		}
		switch block.Type {
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, err
			}
			if bytes.Equal(c.RawSubject, c.RawIssuer) {
				set.Anchors = append(set.Anchors, c)
			}
			others = append(others, c)
		case "X509 CRL":
			crl, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return nil, err
			}
			i, err := issuerOf(crl, others)
			if err != nil {
				return nil, err
			}
			if same := set.byKey(i.KeyID); same != nil { // one of several, in the order of their shards
				same.CRLs = append(same.CRLs, i.CRLs...)
			} else {
				set.Issuers = append(set.Issuers, *i)
			}
		default:
			return nil, fmt.Errorf("a block %q", block.Type)
		}
	}
	for n := range set.Issuers {
		if i := &set.Issuers[n]; mark != nil {
			i.Name, i.Seq = mark.Issuers[i.KeyID], mark.CRLs[markKey(i.KeyID, 0, len(i.CRLs))].Seq
		}
	}
	if len(set.Anchors) == 0 {
		return nil, fmt.Errorf("no anchor: %w", os.ErrNotExist)
	}
	return set, nil
}

func issuerOf(crl *x509.RevocationList, certificates []*x509.Certificate) (*Issuer, error) {
	for _, c := range certificates {
		if bytes.Equal(c.SubjectKeyId, crl.AuthorityKeyId) && crl.CheckSignatureFrom(c) == nil {
			return &Issuer{KeyID: hex.EncodeToString(c.SubjectKeyId), Certificate: c, Chain: chainOf(c, certificates),
				CRLs: []CRL{{crl, fingerprint(crl.Raw)}}}, nil
		}
	}
	return nil, fmt.Errorf("a CRL number %v of no certificate in the bundle", crl.Number)
}

// chainOf finds the certificates between c and its root.
func chainOf(c *x509.Certificate, certificates []*x509.Certificate) []*x509.Certificate {
	var chain []*x509.Certificate
	for range certificates {
		n := slices.IndexFunc(certificates, func(above *x509.Certificate) bool { return c.CheckSignatureFrom(above) == nil })
		if n < 0 || bytes.Equal(certificates[n].RawSubject, certificates[n].RawIssuer) {
			break
		}
		c = certificates[n]
		chain = append(chain, c)
	}
	return chain
}
