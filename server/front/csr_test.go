// Requests that are refused by their shape, before any arithmetic: the table is longer than the code it tests.

package front

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// parts of a PKCS#10 request, each of which a test may replace by what crypto/x509 would never write.
type parts struct {
	version    int64
	subject    []byte
	spki       []byte
	attributes [][]byte
	algorithm  []byte
	noAttrs    bool
	trailing   []byte
}

func ecParts(t testing.TB) parts {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return parts{
		subject:   marshal(t, pkix.Name{CommonName: "dev-1"}.ToRDNSequence()),
		spki:      spki(t, key.Public()),
		algorithm: marshal(t, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}),
	}
}

func (p parts) der() []byte {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(p.version)
			b.AddBytes(p.subject)
			b.AddBytes(p.spki)
			if p.noAttrs {
				return
			}
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				for _, a := range p.attributes {
					b.AddBytes(a)
				}
			})
		})
		b.AddBytes(p.algorithm)
		b.AddASN1BitString([]byte{1, 2, 3})
		b.AddBytes(p.trailing)
	})
	return b.BytesOrPanic()
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func spki(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func rawSPKI(t testing.TB, algorithm asn1.ObjectIdentifier, params, key []byte) []byte {
	t.Helper()
	id := pkix.AlgorithmIdentifier{Algorithm: algorithm}
	if params != nil {
		id.Parameters = asn1.RawValue{FullBytes: params}
	}
	return marshal(t, struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{id, asn1.BitString{Bytes: key, BitLength: len(key) * 8}})
}

func rsaSPKI(t testing.TB, n *big.Int, e int64) []byte {
	t.Helper()
	return rawSPKI(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, []byte{5, 0}, marshal(t, struct{ N, E *big.Int }{n, big.NewInt(e)}))
}

func attribute(t testing.TB, oid asn1.ObjectIdentifier, values ...[]byte) []byte {
	t.Helper()
	var set []byte
	for _, v := range values {
		set = append(set, v...)
	}
	return marshal(t, struct {
		OID asn1.ObjectIdentifier
		Set asn1.RawValue
	}{oid, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: set}})
}

func subject(t testing.TB, atvs ...asn1.RawValue) []byte {
	t.Helper()
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, v := range atvs {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidCommonName)
					b.AddBytes(marshal(t, v))
				})
			})
		}
	})
	return b.BytesOrPanic()
}

func prime(t testing.TB, bits int) *big.Int {
	t.Helper()
	p, err := rand.Prime(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// nextPrime returns the first prime above p.
func nextPrime(p *big.Int) *big.Int {
	q := new(big.Int).Add(p, big.NewInt(2))
	for !q.ProbablyPrime(10) {
		q.Add(q, big.NewInt(2))
	}
	return q
}

// rocaModulus has the form that CVE-2017-15361 gives its primes: k*M + 65537^a mod M.
func rocaModulus(bits int) *big.Int {
	m := new(big.Int).Set(rocaProduct)
	m.Mul(m, big.NewInt(2))
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(123456789), m)
	k := new(big.Int).Lsh(big.NewInt(1), uint(bits-m.BitLen()))
	n.Add(n, k.Mul(k, m))
	for new(big.Int).GCD(nil, nil, n, primorial).Cmp(bigOne) != 0 || n.BitLen() < bits {
		n.Add(n, m)
	}
	return n
}

func TestInspectCSR(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edKey, _, _ := ed25519.GenerateKey(rand.Reader)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p224Point, err := p224.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	ec := asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	p256 := marshal(t, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7})
	challenge := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	extReq := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	utf8 := func(s string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)} }
	ext := func(oid ...int) []byte { return marshal(t, pkix.Extension{Id: oid, Value: []byte{5, 0}}) }
	seq := func(items ...[]byte) []byte {
		var all []byte
		for _, i := range items {
			all = append(all, i...)
		}
		return marshal(t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: all})
	}
	algorithm := func(oid ...int) []byte { return marshal(t, pkix.AlgorithmIdentifier{Algorithm: oid}) }
	p1024 := prime(t, 1024)

	for _, tt := range []struct {
		name string
		edit func(*parts)
		want Kind // empty: accepted
	}{
		{"P-256", func(*parts) {}, ""},
		{"P-521", func(p *parts) { p.spki = spki(t, p521.Public()) }, ""},
		{"RSA 2048", func(p *parts) { p.spki, p.algorithm = spki(t, rsaKey.Public()), algorithm(1, 2, 840, 113549, 1, 1, 11) }, ""},
		{"Ed25519", func(p *parts) { p.spki, p.algorithm = spki(t, edKey), algorithm(1, 3, 101, 112) }, ""},
		{"RSA-PSS signature", func(p *parts) {
			p.spki, p.algorithm = spki(t, rsaKey.Public()), algorithm(1, 2, 840, 113549, 1, 1, 10)
		}, ""},
		{"attributes left out", func(p *parts) { p.noAttrs = true }, ""},
		{"empty subject", func(p *parts) { p.subject = subject(t) }, ""},
		{"unknown attribute", func(p *parts) {
			p.attributes = [][]byte{attribute(t, asn1.ObjectIdentifier{1, 2, 3}, []byte{5, 0}), attribute(t, asn1.ObjectIdentifier{1, 2, 4})}
		}, ""},
		{"challengePassword", func(p *parts) { p.attributes = [][]byte{attribute(t, challenge, marshal(t, utf8("x")))} }, ""},
		{"two extensions", func(p *parts) {
			p.attributes = [][]byte{attribute(t, extReq, seq(ext(2, 5, 29, 17), ext(2, 5, 29, 15)))}
		}, ""},

		{"version 2", func(p *parts) { p.version = 1 }, BadCSR},
		{"negative version", func(p *parts) { p.version = -1 }, BadCSR},
		{"bytes after the signature", func(p *parts) { p.trailing = []byte{5, 0} }, BadCSR},
		{"no key", func(p *parts) { p.spki = nil }, BadCSR},
		{"subject is a SET", func(p *parts) { p.subject = []byte{0x31, 0} }, BadCSR},
		{"empty RDN", func(p *parts) { p.subject = []byte{0x30, 2, 0x31, 0} }, BadCSR},
		{"two common names", func(p *parts) { p.subject = subject(t, utf8("admin"), utf8("dev-1")) }, BadCSR},
		{"common name as UniversalString", func(p *parts) { p.subject = subject(t, asn1.RawValue{Tag: 28, Bytes: []byte("\x00\x00\x00a")}) }, BadCSR},
		{"common name as BMPString", func(p *parts) { p.subject = subject(t, asn1.RawValue{Tag: asn1.TagBMPString, Bytes: []byte("\x00a")}) }, BadCSR},
		{"common name as T61String", func(p *parts) { p.subject = subject(t, asn1.RawValue{Tag: asn1.TagT61String, Bytes: []byte("a")}) }, BadCSR},
		{"common name as INTEGER", func(p *parts) { p.subject = subject(t, asn1.RawValue{Tag: asn1.TagInteger, Bytes: []byte{1}}) }, BadCSR},
		{"attribute twice", func(p *parts) {
			a := attribute(t, asn1.ObjectIdentifier{1, 2, 3}, []byte{5, 0})
			p.attributes = [][]byte{a, a}
		}, BadCSR},
		{"two extension requests", func(p *parts) {
			a := attribute(t, extReq, seq(ext(2, 5, 29, 17)))
			p.attributes = [][]byte{a, a}
		}, BadCSR},
		{"extension request with two values", func(p *parts) {
			p.attributes = [][]byte{attribute(t, extReq, seq(ext(2, 5, 29, 17)), seq(ext(2, 5, 29, 15)))}
		}, BadCSR},
		{"extension request without a value", func(p *parts) { p.attributes = [][]byte{attribute(t, extReq)} }, BadCSR},
		{"extension request is no SEQUENCE", func(p *parts) { p.attributes = [][]byte{attribute(t, extReq, []byte{5, 0})} }, BadCSR},
		{"extension twice", func(p *parts) {
			p.attributes = [][]byte{attribute(t, extReq, seq(ext(2, 5, 29, 17), ext(2, 5, 29, 17)))}
		}, BadCSR},
		{"65 extensions", func(p *parts) {
			var exts [][]byte
			for i := range 65 {
				exts = append(exts, ext(1, 2, i))
			}
			p.attributes = [][]byte{attribute(t, extReq, seq(exts...))}
		}, BadCSR},
		{"257 attributes", func(p *parts) {
			for i := range 257 {
				p.attributes = append(p.attributes, attribute(t, asn1.ObjectIdentifier{1, 2, i}, []byte{5, 0}))
			}
		}, BadCSR},
		{"ChangeSubjectName", func(p *parts) {
			p.attributes = [][]byte{attribute(t, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 7, 36}, seq(subject(t, utf8("admin"))))}
		}, BadCSR},
		{"two challengePasswords", func(p *parts) {
			p.attributes = [][]byte{attribute(t, challenge, marshal(t, utf8("x")), marshal(t, utf8("y")))}
		}, BadCSR},
		{"MD5 with RSA", func(p *parts) { p.algorithm = algorithm(1, 2, 840, 113549, 1, 1, 4) }, BadCSR},
		{"SHA-1 with RSA", func(p *parts) { p.algorithm = algorithm(1, 2, 840, 113549, 1, 1, 5) }, BadCSR},
		{"SHA-1 with ECDSA", func(p *parts) { p.algorithm = algorithm(1, 2, 840, 10045, 4, 1) }, BadCSR},
		{"SHA-224 with ECDSA", func(p *parts) { p.algorithm = algorithm(1, 2, 840, 10045, 4, 3, 1) }, BadCSR},
		{"DSA signature", func(p *parts) { p.algorithm = algorithm(2, 16, 840, 1, 101, 3, 4, 3, 2) }, BadCSR},

		{"P-224", func(p *parts) {
			p.spki = rawSPKI(t, ec, marshal(t, asn1.ObjectIdentifier{1, 3, 132, 0, 33}), p224Point)
		}, BadKey},
		{"secp256k1", func(p *parts) {
			p.spki = rawSPKI(t, ec, marshal(t, asn1.ObjectIdentifier{1, 3, 132, 0, 10}), append([]byte{4}, make([]byte, 64)...))
		}, BadKey},
		{"explicit curve", func(p *parts) { p.spki = rawSPKI(t, ec, seq([]byte{2, 1, 1}), append([]byte{4}, make([]byte, 64)...)) }, BadKey},
		{"no curve", func(p *parts) { p.spki = rawSPKI(t, ec, nil, append([]byte{4}, make([]byte, 64)...)) }, BadKey},
		{"compressed point", func(p *parts) { p.spki = rawSPKI(t, ec, p256, append([]byte{2}, make([]byte, 32)...)) }, BadKey},
		{"point at infinity", func(p *parts) { p.spki = rawSPKI(t, ec, p256, []byte{0}) }, BadKey},
		{"short point", func(p *parts) { p.spki = rawSPKI(t, ec, p256, append([]byte{4}, make([]byte, 63)...)) }, BadKey},
		{"X25519 key", func(p *parts) { p.spki = rawSPKI(t, asn1.ObjectIdentifier{1, 3, 101, 110}, nil, make([]byte, 32)) }, BadKey},
		{"DSA key", func(p *parts) {
			p.spki = rawSPKI(t, asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}, []byte{5, 0}, []byte{2, 1, 1})
		}, BadKey},
		{"Ed25519 of 31 bytes", func(p *parts) { p.spki = rawSPKI(t, oidEd25519, nil, make([]byte, 31)) }, BadKey},
		{"RSA 1024", func(p *parts) { p.spki = rsaSPKI(t, new(big.Int).Mul(prime(t, 512), prime(t, 512)), 65537) }, BadKey},
		{"RSA 2047", func(p *parts) { p.spki = rsaSPKI(t, new(big.Int).Rsh(rsaKey.N, 1), 65537) }, BadKey},
		{"RSA 16384", func(p *parts) {
			p.spki = rsaSPKI(t, new(big.Int).SetBit(big.NewInt(1), 16383, 1), 65537)
		}, BadKey},
		{"negative modulus", func(p *parts) { p.spki = rsaSPKI(t, new(big.Int).Neg(rsaKey.N), 65537) }, BadKey},
		{"exponent 1", func(p *parts) { p.spki = rsaSPKI(t, rsaKey.N, 1) }, BadKey},
		{"exponent 0", func(p *parts) { p.spki = rsaSPKI(t, rsaKey.N, 0) }, BadKey},
		{"exponent -3", func(p *parts) { p.spki = rsaSPKI(t, rsaKey.N, -3) }, BadKey},
		{"even exponent", func(p *parts) { p.spki = rsaSPKI(t, rsaKey.N, 65536) }, BadKey},
		{"huge exponent", func(p *parts) { p.spki = rsaSPKI(t, rsaKey.N, 1<<31+1) }, BadKey},
		{"even modulus", func(p *parts) { p.spki = rsaSPKI(t, new(big.Int).Add(rsaKey.N, bigOne), 65537) }, BadKey},
		{"modulus with factor 751", func(p *parts) {
			p.spki = rsaSPKI(t, new(big.Int).Mul(prime(t, 2040), big.NewInt(751)), 65537)
		}, BadKey},
		{"close primes", func(p *parts) { p.spki = rsaSPKI(t, new(big.Int).Mul(p1024, nextPrime(p1024)), 65537) }, BadKey},
		{"square modulus", func(p *parts) { p.spki = rsaSPKI(t, new(big.Int).Mul(p1024, p1024), 65537) }, BadKey},
		{"CVE-2017-15361", func(p *parts) { p.spki = rsaSPKI(t, rocaModulus(2048), 65537) }, BadKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := ecParts(t)
			tt.edit(&p)
			_, err := inspectCSR(p.der())
			if got := kindOf(err); got != tt.want {
				t.Fatalf("got %q (%v), want %q", got, err, tt.want)
			}
		})
	}
}

func kindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

func TestChallengeIsRead(t *testing.T) {
	t.Parallel()
	p := ecParts(t)
	p.attributes = [][]byte{attribute(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, marshal(t, "value"))}
	shape, err := inspectCSR(p.der())
	if err != nil || !shape.hasChallenge || shape.challenge != "value" {
		t.Fatalf("got %+v, %v", shape, err)
	}
}

// Every truncation and every single changed byte of a request is refused or read, never a panic.
func TestInspectCSRMutants(t *testing.T) {
	t.Parallel()
	p := ecParts(t)
	p.attributes = [][]byte{attribute(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, marshal(t, "value"))}
	der := p.der()
	for i := range der {
		if _, err := inspectCSR(der[:i]); err == nil {
			t.Fatalf("accepted the first %d of %d bytes", i, len(der))
		}
		for _, flip := range []byte{1, 0x80, 0xff} {
			mutant := append([]byte(nil), der...)
			mutant[i] ^= flip
			inspectCSR(mutant)
		}
	}
}

func FuzzInspectCSR(f *testing.F) {
	f.Add(ecParts(f).der())
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.example"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > maxBodyBytes {
			return
		}
		if _, err := inspectCSR(der); err == nil {
			return
		} else if kindOf(err) == "" {
			t.Fatalf("untyped error: %v", err)
		}
	})
}
