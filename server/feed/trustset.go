// The trust set: the issuing CAs of devices, the roots above them and their CRLs, as one unit.

package feed

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/feedapi"
)

// States of a CA whose certificates a broker accepts. A standby CA is in already, so that brokers know it when it becomes active.
var trusted = []string{"standby", "active", "retiring"}

func (f *Feed) getTrustSet(w http.ResponseWriter, r *http.Request, _ string) error {
	wait, err := waitOf(w, r)
	if err != nil {
		return err
	}
	known, seq := r.Header.Get("If-None-Match"), int64(0)
	err = f.await(r.Context(), wait, func(ctx context.Context) (bool, error) {
		seq, err = f.changes.TrustSetSeq(ctx)
		return known != quote(seq), err
	})
	if err != nil {
		return err
	}
	w.Header().Set("ETag", quote(seq))
	if known == quote(seq) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	set, err := f.trustSet(r.Context(), seq)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, set)
	return nil
}

func quote(seq int64) string { return strconv.Quote(strconv.FormatInt(seq, 10)) }

// trustSet reads the set. seq was read before it, so a set can be newer than its number but never older.
func (f *Feed) trustSet(ctx context.Context, seq int64) (feedapi.TrustSet, error) {
	infos, err := f.cfg.CA.List(ctx)
	if err != nil {
		return feedapi.TrustSet{}, err
	}
	set := feedapi.TrustSet{Seq: seq, Anchors: []string{}, Issuers: []feedapi.Issuer{}, CRLs: []feedapi.CRL{}}
	for _, info := range infos {
		if info.Use != "broker" || info.Certificate == nil || !slices.Contains(trusted, info.State) {
			continue
		}
		crls, err := f.cfg.CA.CRLs(ctx, info.Name)
		if err != nil {
			return feedapi.TrustSet{}, err
		}
		if len(crls) != info.Shards { // brokers cannot check its devices and refuse them; the others must not suffer from that
			f.cfg.Log.Warn("CA without a CRL left out of the trust set", "ca", info.Name, "crls", len(crls), "shards", info.Shards)
			continue
		}
		issuer := feedapi.Issuer{Name: info.Name, KeyID: hex.EncodeToString(info.Certificate.SubjectKeyId), Certificate: encode(info.Certificate), Chain: []string{}}
		for _, above := range info.Chain {
			if !bytes.Equal(above.RawSubject, above.RawIssuer) {
				issuer.Chain = append(issuer.Chain, encode(above))
			} else if root := encode(above); !slices.Contains(set.Anchors, root) {
				set.Anchors = append(set.Anchors, root)
			}
		}
		if err := f.addRoots(ctx, &set, info.Name); err != nil {
			return feedapi.TrustSet{}, err
		}
		set.Issuers = append(set.Issuers, issuer)
		for _, crl := range crls {
			announced := feedapi.CRL{
				Issuer: info.Name, KeyID: issuer.KeyID, Shard: crl.Shard, Shards: info.Shards, Number: crl.Number, ThisUpdate: crl.ThisUpdate, NextUpdate: crl.NextUpdate,
				Entries: crl.Entries, SHA256: crl.SHA256,
			}
			if info.Shards > 1 {
				announced.Address = info.CRLAddress(crl.Shard)
			}
			set.CRLs = append(set.CRLs, announced)
		}
	}
	return set, nil
}

// addRoots adds the roots that are about to take over from one of the set, or have, and what vouches for them.
func (f *Feed) addRoots(ctx context.Context, set *feedapi.TrustSet, issuer string) error {
	trust, err := f.cfg.CA.Trust(ctx, issuer)
	if err != nil {
		return err
	}
	for _, root := range trust.Roots {
		if text := encode(root); !slices.Contains(set.Anchors, text) {
			set.Anchors = append(set.Anchors, text)
		}
	}
	for _, cross := range trust.Crosses {
		if text := encode(cross); !slices.Contains(set.Crosses, text) {
			set.Crosses = append(set.Crosses, text)
		}
	}
	return nil
}

func isNotFound(err error) bool {
	var e *ca.Error
	return errors.As(err, &e) && e.Kind == ca.NotFound
}

func encode(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func (f *Feed) getCRL(w http.ResponseWriter, r *http.Request, _ string) error {
	crl, err := f.cfg.CA.PublishedBySHA256(r.Context(), strings.ToLower(chi.URLParam(r, "sha256")))
	if isNotFound(err) {
		return refuse(http.StatusNotFound, "not_found", "no such CRL")
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/pkix-crl")
	w.Header().Set("Content-Length", strconv.FormatInt(crl.Size, 10))
	_, err = io.Copy(w, crl.Reader())
	if err != nil {
		f.cfg.Log.Warn("CRL not sent whole", "ca", crl.Authority, "number", crl.Number, "error", err) // its length tells the bridge
	}
	return nil
}
