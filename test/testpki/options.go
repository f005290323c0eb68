// Options say how a certificate differs from the usual one; most of them break exactly one thing.

package testpki

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"time"
)

// Option changes a certificate before it is signed. Options apply in order.
type Option func(*spec)

type spec struct {
	template x509.Certificate
	key      crypto.Signer // nil: made from keySpec
	keySpec  string
}

type kind int

const (
	authority kind = iota
	endEntity
)

func newSpec(cn string, k kind, options []Option) *spec {
	now := time.Now().Truncate(time.Second)
	s := &spec{keySpec: "ec:P-256", template: x509.Certificate{
		Subject:               pkix.Name{CommonName: cn},
		NotBefore:             now.Add(-5 * time.Minute),
		NotAfter:              now.AddDate(1, 0, 0),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}}
	if k == authority {
		s.template.NotAfter = now.AddDate(10, 0, 0)
		s.template.IsCA = true
		s.template.MaxPathLen = -1
		s.template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		s.template.ExtKeyUsage = nil
	}
	for _, o := range options {
		o(s)
	}
	return s
}

// Edit changes the template freely.
func Edit(change func(*x509.Certificate)) Option {
	return func(s *spec) { change(&s.template) }
}

// WithKey certifies this key instead of a new one.
func WithKey(key crypto.Signer) Option {
	return func(s *spec) { s.key = key }
}

// KeySpec makes the new key of this kind: "ec:P-224", "ec:P-256", "ec:P-384", "rsa:BITS" or "ed25519".
func KeySpec(kind string) Option {
	return func(s *spec) { s.keySpec = kind }
}

// Subject replaces the whole subject.
func Subject(name pkix.Name) Option {
	return Edit(func(c *x509.Certificate) { c.Subject = name })
}

// Names adds subject alternative names: an IP address where it parses as one, else a DNS name.
func Names(names ...string) Option {
	return Edit(func(c *x509.Certificate) {
		for _, name := range names {
			if ip := net.ParseIP(name); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, name)
			}
		}
	})
}

// EKU replaces the extended key usages; with none, the extension is left out.
func EKU(usages ...x509.ExtKeyUsage) Option {
	return Edit(func(c *x509.Certificate) { c.ExtKeyUsage = usages })
}

// KeyUsage replaces the key usage.
func KeyUsage(usage x509.KeyUsage) Option {
	return Edit(func(c *x509.Certificate) { c.KeyUsage = usage })
}

// NotCA makes it CA:FALSE, whatever else it is.
func NotCA() Option {
	return Edit(func(c *x509.Certificate) { c.IsCA = false; c.MaxPathLen = 0; c.MaxPathLenZero = false })
}

// PathLen sets the path length constraint.
func PathLen(n int) Option {
	return Edit(func(c *x509.Certificate) { c.MaxPathLen = n; c.MaxPathLenZero = n == 0 })
}

// Valid sets both ends of the validity.
func Valid(from, to time.Time) Option {
	return Edit(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, to })
}

// Expired makes it end an hour ago.
func Expired() Option {
	now := time.Now()
	return Valid(now.AddDate(-1, 0, 0), now.Add(-time.Hour))
}

// NotYetValid makes it begin in a day.
func NotYetValid() Option {
	now := time.Now()
	return Valid(now.AddDate(0, 0, 1), now.AddDate(1, 0, 0))
}
