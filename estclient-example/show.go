// show: what is on flash, for people and for scripts.

package main

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/natal-pki/natal/client"
)

type shown struct {
	Device      string        `json:"device"`
	Subject     string        `json:"subject"`
	Issuer      string        `json:"issuer"`
	Serial      string        `json:"serial"`
	NotBefore   time.Time     `json:"not_before"`
	NotAfter    time.Time     `json:"not_after"`
	RenewAt     time.Time     `json:"renew_at"`
	State       string        `json:"state"` // valid, expired or not_yet_valid
	Proven      bool          `json:"proven"`
	Key         string        `json:"key"`
	Fingerprint string        `json:"fingerprint"`
	Bundle      string        `json:"bundle"`
	Chain       []shownIssuer `json:"chain"`
	Trust       []shownIssuer `json:"trust"`
}

type shownIssuer struct {
	Subject     string    `json:"subject"`
	NotAfter    time.Time `json:"not_after"`
	Fingerprint string    `json:"fingerprint"`
}

func (a *agent) show() error {
	id, err := a.store.Load()
	if err != nil {
		return fmt.Errorf("%s: %w", a.Dir, err)
	}
	leaf := id.Certificate
	s := shown{
		Device: leaf.Subject.CommonName, Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(), Serial: serialHex(leaf),
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, RenewAt: client.RenewAt(leaf), State: a.state(id), Proven: a.store.Proven(),
		Key: client.KeySpec(leaf.PublicKey), Fingerprint: client.Fingerprint(leaf), Bundle: a.file("bundle.pem"),
		Chain: shownIssuers(id.Chain[1:]), Trust: shownIssuers(id.Anchors),
	}
	if a.JSON {
		return json.NewEncoder(a.stdout).Encode(s)
	}
	fmt.Fprintf(a.stdout, "device       %s\nissuer       %s\nserial       %s\nkey          %s\nvalid        %s to %s (%s)\nrenewal      %s\nproven       %t\nfingerprint  %s\nbundle       %s\n",
		s.Device, s.Issuer, s.Serial, s.Key, stamp(s.NotBefore), stamp(s.NotAfter), s.State, stamp(s.RenewAt), s.Proven, s.Fingerprint, s.Bundle)
	for _, c := range s.Chain {
		fmt.Fprintf(a.stdout, "chain        %s, until %s\n", c.Subject, stamp(c.NotAfter))
	}
	for _, c := range s.Trust {
		fmt.Fprintf(a.stdout, "trust        %s, until %s, SHA-256 %s\n", c.Subject, stamp(c.NotAfter), c.Fingerprint)
	}
	return nil
}

func (a *agent) state(id *client.Identity) string {
	switch now := a.clock.Now(); {
	case now.After(id.Certificate.NotAfter):
		return "expired"
	case now.Before(id.Certificate.NotBefore):
		return "not_yet_valid"
	}
	return "valid"
}

func shownIssuers(certs []*x509.Certificate) []shownIssuer {
	out := []shownIssuer{}
	for _, c := range certs {
		out = append(out, shownIssuer{Subject: c.Subject.String(), NotAfter: c.NotAfter, Fingerprint: client.Fingerprint(c)})
	}
	return out
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// serialHex is how the server's commands write and take a serial number.
func serialHex(cert *x509.Certificate) string { return fmt.Sprintf("%034x", cert.SerialNumber) }
