// The bytes of a CRL: a head with names and times, the entries as they lie in memory, a tail with extensions and the signature. They are never
// put together in one piece: they are hashed, stored and sent from where they are.

package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidReasonCode               = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
)

// lintedEntries is how much of a CRL is linted: all of it up to this many entries. In a longer one the rest is more of the same, made by the same
// code, and parsing it all would take longer than making it.
const lintedEntries = 1000

// crlFrame is a TBSCertList around its entries.
type crlFrame struct {
	before    []byte // version to nextUpdate
	after     []byte // the extensions
	algorithm []byte // AlgorithmIdentifier of the signature
}

// frame encodes all of a CRL but its entries.
func (au *authority) frame(number int64, shard int, thisUpdate, nextUpdate time.Time) (*crlFrame, error) {
	algorithm, _, err := signatureAlgorithm(au.certificate.PublicKey)
	if err != nil {
		return nil, err
	}
	template := &x509.RevocationList{SignatureAlgorithm: algorithm, Number: big.NewInt(number), ThisUpdate: thisUpdate, NextUpdate: nextUpdate}
	if au.shards() > 1 {
		point, err := issuingDistributionPoint(au.crlAddress(shard))
		if err != nil {
			return nil, err
		}
		template.ExtraExtensions = []pkix.Extension{point}
	}
	c := &capture{public: au.certificate.PublicKey}
	if _, err := x509.CreateRevocationList(rand.Reader, template, au.certificate, c); !errors.Is(err, errCaptured) {
		return nil, fmt.Errorf("encode CRL: %w", err)
	}
	var tbs, field cryptobyte.String
	input, f := cryptobyte.String(c.tbs), &crlFrame{}
	if !input.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, errors.New("encode CRL: the TBSCertList cannot be read")
	}
	inner := slices.Clone([]byte(tbs))
	for _, tag := range []cbasn1.Tag{cbasn1.INTEGER, cbasn1.SEQUENCE, cbasn1.SEQUENCE} { // version, signature, issuer
		if !tbs.ReadASN1Element(&field, tag) {
			return nil, errors.New("encode CRL: the TBSCertList cannot be read")
		}
		if tag == cbasn1.SEQUENCE && f.algorithm == nil {
			f.algorithm = slices.Clone([]byte(field))
		}
	}
	var tag cbasn1.Tag
	for range 2 { // thisUpdate, nextUpdate
		if !tbs.ReadAnyASN1Element(&field, &tag) {
			return nil, errors.New("encode CRL: the TBSCertList cannot be read")
		}
	}
	f.before, f.after = inner[:len(inner)-len(tbs)], inner[len(inner)-len(tbs):]
	return f, nil
}

// issuingDistributionPoint makes a CRL speak only for certificates that name the same address (RFC 5280 section 5.2.5: "the CRL MUST contain
// an issuing distribution point", critical, and section 6.3.3 (b)(2): one of its names matches one of the certificate's).
func issuingDistributionPoint(address string) (pkix.Extension, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { // distributionPoint
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { // fullName
				b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(address)) }) // URI
			})
		})
	})
	value, err := b.Bytes()
	return pkix.Extension{Id: oidIssuingDistributionPoint, Critical: true, Value: value}, err
}

// head is what stands before the entries inside the signature.
func (f *crlFrame) head(size int) []byte {
	var list []byte
	if size > 0 { // "the revoked certificates list MUST be absent" if there are none (section 5.1.2.6)
		list = header(0x30, size)
	}
	return slices.Concat(header(0x30, len(f.before)+len(list)+size+len(f.after)), f.before, list)
}

// whole is the CRL's head and tail with a signature.
func (f *crlFrame) whole(size int, signature []byte) (head, tail []byte) {
	head = f.head(size)
	bits := slices.Concat(header(0x03, 1+len(signature)), []byte{0}, signature)
	tail = slices.Concat(f.after, f.algorithm, bits)
	return slices.Concat(header(0x30, len(head)+size+len(tail)), head), tail
}

// header is a DER tag and length.
func header(tag byte, length int) []byte {
	if length < 0x80 {
		return []byte{tag, byte(length)}
	}
	octets := big.NewInt(int64(length)).Bytes()
	return append([]byte{tag, 0x80 | byte(len(octets))}, octets...)
}

// signFrame signs the CRL around entries and checks the signature before anybody sees it.
func signFrame(f *crlFrame, entries [][]byte, size int, key crypto.Signer) (signature []byte, err error) {
	_, hash, err := signatureAlgorithm(key.Public())
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(f.head(size))
	for _, e := range entries {
		h.Write(e)
	}
	h.Write(f.after)
	digest := h.Sum(nil)
	if signature, err = key.Sign(rand.Reader, digest, hash); err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	switch public := key.Public().(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(public, digest, signature) {
			err = errors.New("sign CRL: the key made a wrong signature")
		}
	case *rsa.PublicKey:
		err = rsa.VerifyPKCS1v15(public, hash, digest, signature)
	}
	return signature, err
}

// lintCRL lints the CRL, or a copy with the first of its entries if it is long. One that cannot be read is not published. A broken rule
// is only logged: no rule of style is worth a revocation that nobody hears of.
func (a *Authorities) lintCRL(f *crlFrame, entries [][]byte, issuer *x509.Certificate) error {
	var some []byte
	count := 0
	for _, e := range entries {
		for ; len(e) > 0 && count < lintedEntries; count++ {
			some, e = append(some, e[:entrySize(e)]...), e[entrySize(e):]
		}
	}
	head, tail := f.whole(len(some), standIn(issuer.PublicKey))
	broken, err := a.linter.CRL(slices.Concat(head, some, tail))
	if err != nil {
		return &Error{Kind: Unavailable, Rule: "encoding", Detail: "the CRL cannot be read", Err: err}
	}
	if len(broken) > 0 {
		a.log.Error("crl breaks rules", "issuer", issuer.Subject.String(), "rules", broken)
	}
	return nil
}

func digestOf(pieces ...[]byte) string {
	h := sha256.New()
	for _, p := range pieces {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// sameBytes compares what pieces give when put together. Pieces that are one and the same memory are not looked at.
func sameBytes(a, b [][]byte) bool {
	for {
		a, b = skipEmpty(a), skipEmpty(b)
		if len(a) == 0 || len(b) == 0 {
			return len(a) == len(b)
		}
		n := min(len(a[0]), len(b[0]))
		if &a[0][0] != &b[0][0] && !bytes.Equal(a[0][:n], b[0][:n]) {
			return false
		}
		a, b = advance(a, n), advance(b, n)
	}
}

func skipEmpty(pieces [][]byte) [][]byte {
	for len(pieces) > 0 && len(pieces[0]) == 0 {
		pieces = pieces[1:]
	}
	return pieces
}

// advance returns pieces without the first n bytes, n at most the length of the first piece, and leaves pieces as it is.
func advance(pieces [][]byte, n int) [][]byte {
	if n == len(pieces[0]) {
		return pieces[1:]
	}
	return append([][]byte{pieces[0][n:]}, pieces[1:]...)
}
