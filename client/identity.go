// What an enrollment yields, and why it is believed: the certificate is for our key and chains to an anchor.

package client

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Identity is a key with the certificate that the CA made for it.
type Identity struct {
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // Certificate, then each CA up to but without the root, then what links the root to another: what to present in TLS
	Anchors     []*x509.Certificate // roots that authenticate the EST server from now on, newest first
	Key         crypto.Signer
}

// TLSCertificate is the identity as crypto/tls presents it.
func (id *Identity) TLSCertificate() *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: id.Key, Leaf: id.Certificate}
	for _, c := range id.Chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// ChainPEM is Chain in PEM, leaf first.
func (id *Identity) ChainPEM() []byte { return certificatesPEM(id.Chain) }

func certificatesPEM(certs []*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}

// accept checks an answer of simpleenroll or simplereenroll against the key and the certificates of /cacerts. "only the certificate
// that was issued" should be in it (RFC 7030 section 4.2.3); CA certificates beside it are tolerated and used for the chain.
func (c *Client) accept(a *answer, key crypto.Signer, caCerts []*x509.Certificate) (*Identity, error) {
	certs, err := decodeCerts(a.body)
	if err != nil {
		return nil, err
	}
	var leaf *x509.Certificate
	var roots, others []*x509.Certificate
	for _, cert := range certs {
		switch {
		case cert.IsCA:
			others = append(others, cert)
		case leaf != nil:
			return nil, errors.New("more than one certificate was issued")
		default:
			leaf = cert
		}
	}
	if leaf == nil {
		return nil, errors.New("no certificate was issued")
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	for _, cert := range caCerts {
		if isSelfSigned(cert) {
			roots = append(roots, cert)
		} else {
			others = append(others, cert)
		}
	}
	now := c.now()
	if now.Before(leaf.NotBefore) {
		now = leaf.NotBefore // the server's clock is ahead of ours: no reason to throw the certificate away
	}
	chain, err := verifyChain(leaf, roots, others, now)
	if err != nil {
		return nil, fmt.Errorf("the certificate does not chain to the CA: %w", err)
	}
	if len(chain) > 1 {
		root := chain[len(chain)-1]
		chain = append(chain[:len(chain)-1:len(chain)-1], links(root, others)...)
	}
	anchors := follow(c.Anchors(), roots, others, c.now())
	return &Identity{Certificate: leaf, Chain: chain, Anchors: keepServerRoot(anchors, rootOf(a.state)), Key: key}, nil
}

// keepServerRoot makes sure that the anchors of tomorrow still recognise the server of today: a /cacerts without
// the root of the server's own certificate must not lock the device out.
func keepServerRoot(roots []*x509.Certificate, serverRoot *x509.Certificate) []*x509.Certificate {
	if serverRoot == nil {
		return roots
	}
	for _, root := range roots {
		if root.Equal(serverRoot) {
			return roots
		}
	}
	return append(roots[:len(roots):len(roots)], serverRoot)
}

// ValidAt reports whether the certificate is inside its validity.
func (id *Identity) ValidAt(t time.Time) bool {
	return !t.Before(id.Certificate.NotBefore) && !t.After(id.Certificate.NotAfter)
}
