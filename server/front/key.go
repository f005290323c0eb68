// Which public keys the server looks at at all. Every profile narrows this further; nothing widens it. A key is
// judged by its bytes, before any arithmetic with it.

package front

import (
	"encoding/asn1"
	"math/big"
	"math/bits"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/natal-pki/natal/internal/wire"
)

const (
	minRSABits      = 2048
	maxRSABits      = 8192
	maxRSAExponent  = 1<<31 - 1 // what crypto/rsa takes
	fermatRounds    = 100
	smallPrimeLimit = 752
)

var oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}

func badKey(detail string) *Error { return &Error{Kind: BadKey, Detail: detail} }

// checkKey takes the content of a SubjectPublicKeyInfo.
func checkKey(spki cryptobyte.String) error {
	var algorithm cryptobyte.String
	var oid asn1.ObjectIdentifier
	var key asn1.BitString
	if !spki.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !spki.ReadASN1BitString(&key) || !spki.Empty() || key.BitLength%8 != 0 ||
		!algorithm.ReadASN1ObjectIdentifier(&oid) {
		return badCSR("malformed public key")
	}
	switch {
	case oid.Equal(wire.OIDECPublicKey):
		return checkEC(algorithm, key.Bytes)
	case oid.Equal(wire.OIDRSAEncryption):
		return checkRSA(key.Bytes)
	case oid.Equal(oidEd25519):
		if !algorithm.Empty() || len(key.Bytes) != 32 {
			return badKey("malformed Ed25519 key")
		}
		return nil
	}
	return badKey("keys of type " + oid.String() + " are not accepted")
}

// checkEC wants a named curve; that the point lies on it is checked when the request is parsed.
func checkEC(params cryptobyte.String, point []byte) error {
	var curve asn1.ObjectIdentifier
	if !params.ReadASN1ObjectIdentifier(&curve) || !params.Empty() {
		return badKey("EC keys must name their curve")
	}
	var size int
	switch {
	case curve.Equal(wire.OIDCurveP256):
		size = 32
	case curve.Equal(wire.OIDCurveP384):
		size = 48
	case curve.Equal(wire.OIDCurveP521):
		size = 66
	default:
		return badKey("curve " + curve.String() + " is not accepted")
	}
	if len(point) != 1+2*size || point[0] != 4 {
		return badKey("EC points must be uncompressed and of the curve's size")
	}
	return nil
}

// checkRSA bounds the cost of a verification and refuses the known ways of making a modulus badly.
func checkRSA(der []byte) error {
	input := cryptobyte.String(der)
	var key cryptobyte.String
	n, e := new(big.Int), new(big.Int)
	if !input.ReadASN1(&key, cbasn1.SEQUENCE) || !input.Empty() || !key.ReadASN1Integer(n) || !key.ReadASN1Integer(e) || !key.Empty() {
		return badCSR("malformed RSA key")
	}
	switch size := n.BitLen(); {
	case n.Sign() <= 0 || size < minRSABits:
		return badKey("RSA keys must have at least 2048 bits")
	case size > maxRSABits:
		return badKey("RSA keys must have at most 8192 bits")
	case e.Sign() <= 0 || e.Bit(0) == 0 || e.Cmp(big.NewInt(3)) < 0 || e.BitLen() > bits.Len64(maxRSAExponent):
		return badKey("the RSA exponent must be odd and between 3 and 2147483647")
	case n.Bit(0) == 0 || new(big.Int).GCD(nil, nil, n, primorial).Cmp(bigOne) != 0:
		return badKey("the RSA modulus has a small factor")
	case closePrimes(n):
		return badKey("the factors of the RSA modulus are too close to each other")
	case rocaFingerprint(n):
		return badKey("the RSA key was made by a faulty generator (CVE-2017-15361)")
	}
	return nil
}

var (
	bigOne      = big.NewInt(1)
	smallPrimes = primesBelow(smallPrimeLimit)
	primorial   = product(smallPrimes)
)

func primesBelow(limit int) []uint64 {
	var primes []uint64
next:
	for n := uint64(3); n < uint64(limit); n += 2 {
		for _, p := range primes {
			if n%p == 0 {
				continue next
			}
		}
		primes = append(primes, n)
	}
	return primes
}

func product(factors []uint64) *big.Int {
	p := big.NewInt(1)
	for _, f := range factors {
		p.Mul(p, new(big.Int).SetUint64(f))
	}
	return p
}

// closePrimes tries Fermat's factorisation: n = a^2 - b^2 with a near the root of n (CVE-2022-26320).
func closePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	if new(big.Int).Mul(a, a).Cmp(n) == 0 {
		return true
	}
	a.Add(a, bigOne)
	b2 := new(big.Int).Mul(a, a)
	b2.Sub(b2, n)
	step := new(big.Int).Lsh(a, 1)
	step.Add(step, bigOne)
	two := big.NewInt(2)
	root := new(big.Int)
	for range fermatRounds {
		if maybeSquare(b2) && root.Mul(root.Sqrt(b2), root).Cmp(b2) == 0 {
			return true
		}
		b2.Add(b2, step)
		step.Add(step, two)
	}
	return false
}

// maybeSquare rules out most numbers that are no squares, by their residues.
func maybeSquare(v *big.Int) bool {
	const squaresMod64 = 1<<0 | 1<<1 | 1<<4 | 1<<9 | 1<<16 | 1<<17 | 1<<25 | 1<<33 | 1<<36 | 1<<41 | 1<<49 | 1<<57
	if v.Sign() == 0 {
		return true
	}
	return squaresMod64>>(uint64(v.Bits()[0])&63)&1 == 1
}

// rocaPrimes are the primes at which the moduli of the faulty generator stand out.
var (
	rocaPrimes  = primesBelow(168)
	rocaProduct = product(rocaPrimes)
	rocaPowers  = powersOf65537(rocaPrimes)
)

// powersOf65537 returns for each prime the set of powers of 65537 modulo it.
func powersOf65537(primes []uint64) [][]bool {
	sets := make([][]bool, len(primes))
	for i, p := range primes {
		sets[i] = make([]bool, p)
		for v := uint64(1); !sets[i][v]; v = v * 65537 % p {
			sets[i][v] = true
		}
	}
	return sets
}

func rocaFingerprint(n *big.Int) bool {
	rest := new(big.Int).Mod(n, rocaProduct)
	mod, p := new(big.Int), new(big.Int)
	for i, prime := range rocaPrimes {
		if !rocaPowers[i][mod.Mod(rest, p.SetUint64(prime)).Uint64()] {
			return false
		}
	}
	return true
}
