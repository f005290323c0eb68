// What the key may be used for: the profile says it, a request may repeat it.

package profile

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
)

// keyUsage is the profile's own, or what this kind of key needs for TLS.
func (b *builder) keyUsage() x509.KeyUsage {
	if b.usage != 0 {
		return b.usage
	}
	usage := x509.KeyUsageDigitalSignature
	if _, isRSA := b.in.PublicKey.(*rsa.PublicKey); isRSA && b.file.Use != UseOCSP {
		usage |= x509.KeyUsageKeyEncipherment // TLS 1.2 RSA key exchange; forbidden for EC by RFC 8813
	}
	return usage
}

// extensions writes the extensions that crypto/x509 does not write as the profile wants them, and looks at those of the request.
func (b *builder) extensions() {
	b.ownExtensions()
	if b.in.CSR == nil {
		return
	}
	for _, e := range b.in.CSR.Extensions {
		switch {
		case e.Id.Equal(oidSAN):
		case e.Id.Equal(oidBasicConstraints):
			b.askedBasicConstraints(e.Value)
		case e.Id.Equal(oidKeyUsage):
			b.askedKeyUsage(e.Value)
		case e.Id.Equal(oidEKU):
			b.askedEKU(e.Value)
		default:
			b.unlisted(b.file.CSR.UnlistedExtensions, "extension_unlisted", "extension %v", e.Id)
		}
	}
}

func (b *builder) ownExtensions() {
	add := func(id asn1.ObjectIdentifier, critical bool, der []byte) {
		b.template.ExtraExtensions = append(b.template.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: der})
	}
	if c := b.file.KeyUsage.Critical; c != nil && !*c {
		add(oidKeyUsage, false, encodeUsage(b.template.KeyUsage))
	}
	if b.file.EKUCritical && b.hasEKU() {
		add(oidEKU, true, b.encodeEKU())
	}
	switch b.file.Basic {
	case "noncritical":
		b.template.BasicConstraintsValid = false
		add(oidBasicConstraints, false, []byte{0x30, 0x00}) // CA:FALSE, DER leaves the default out
	case "omit":
		b.template.BasicConstraintsValid = false
	}
	if b.file.NoCheck {
		add(oidNoCheck, false, asn1.NullBytes)
	}
}

// encodeUsage writes KeyUsage ::= BIT STRING with the first bit digitalSignature, without zeros at the end.
func encodeUsage(usage x509.KeyUsage) []byte {
	bits := asn1.BitString{Bytes: make([]byte, 2)}
	for i := range 9 {
		if usage&(1<<i) != 0 {
			bits.Bytes[i/8] |= 0x80 >> (i % 8)
			bits.BitLength = i + 1
		}
	}
	bits.Bytes = bits.Bytes[:(bits.BitLength+7)/8]
	der, err := asn1.Marshal(bits)
	if err != nil {
		panic(err) // a bit string can be encoded
	}
	return der
}

var ekuOIDs = map[x509.ExtKeyUsage]asn1.ObjectIdentifier{
	x509.ExtKeyUsageServerAuth: {1, 3, 6, 1, 5, 5, 7, 3, 1}, x509.ExtKeyUsageClientAuth: {1, 3, 6, 1, 5, 5, 7, 3, 2}, x509.ExtKeyUsageOCSPSigning: {1, 3, 6, 1, 5, 5, 7, 3, 9},
}

// allEKUs are the extended key usages as OIDs.
func (p *Profile) allEKUs() []asn1.ObjectIdentifier {
	var oids []asn1.ObjectIdentifier
	for _, eku := range p.ekus {
		oids = append(oids, ekuOIDs[eku])
	}
	return append(oids, p.unknownEKUs...)
}

func (p *Profile) encodeEKU() []byte {
	der, err := asn1.Marshal(p.allEKUs())
	if err != nil {
		panic(err) // OIDs that were parsed can be encoded
	}
	return der
}

func (b *builder) askedBasicConstraints(der []byte) {
	var asked struct {
		IsCA    bool `asn1:"optional"`
		PathLen int  `asn1:"optional,default:-1"`
	}
	if rest, err := asn1.Unmarshal(der, &asked); err != nil || len(rest) > 0 || asked.IsCA || asked.PathLen != -1 {
		b.fail("basic_constraints", "the request asks to be a certification authority")
		return
	}
	b.pass("basic_constraints", "CA:FALSE")
}

func (b *builder) askedKeyUsage(der []byte) {
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(der, &bits); err != nil || len(rest) > 0 {
		b.fail("key_usage", "the requested key usage cannot be read")
		return
	}
	for i := range bits.BitLength {
		if bits.At(i) == 1 && b.template.KeyUsage&(1<<i) == 0 {
			b.fail("key_usage", "the request asks for key usage bit %d, which the profile does not give to this key", i)
			return
		}
	}
	b.pass("key_usage", "what is asked for is what the profile gives")
}

func (b *builder) askedEKU(der []byte) {
	var asked []asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(der, &asked); err != nil || len(rest) > 0 {
		b.fail("extended_key_usage", "the requested extended key usage cannot be read")
		return
	}
	given := b.allEKUs()
	for _, oid := range asked {
		if !slices.ContainsFunc(given, oid.Equal) {
			b.fail("extended_key_usage", "the request asks for %v, the profile gives %s", oid, strings.Join(b.file.EKU, ", "))
			return
		}
	}
	b.pass("extended_key_usage", "what is asked for is what the profile gives")
}
