// Key specs: the short names of key algorithms and sizes that profiles, commands and refusals use.

package profile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
)

var keySpecs = []string{"ec:P-256", "ec:P-384", "ec:P-521", "rsa:2048", "rsa:3072", "rsa:4096", "rsa:6144", "rsa:8192", "ed25519"}

func knownKey(spec string) bool { return slices.Contains(keySpecs, spec) }

// KeySpec names a public key: "ec:P-256", "rsa:2048", "ed25519". Any RSA size is named; an error tells what makes a key
// unusable whatever its size. It costs microseconds: no signature, no primality test.
func KeySpec(key crypto.PublicKey) (string, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch name := k.Curve.Params().Name; name {
		case "P-256", "P-384", "P-521":
			if _, err := k.ECDH(); err != nil {
				return "", errors.New("the point is not on the curve")
			}
			return "ec:" + name, nil
		default:
			return "", fmt.Errorf("curve %s is not supported", name)
		}
	case *rsa.PublicKey:
		if k.N.Bit(0) == 0 {
			return "", errors.New("the RSA modulus is even")
		}
		if k.E < 3 || k.E%2 == 0 {
			return "", fmt.Errorf("the RSA exponent %d is not an odd number of at least 3", k.E)
		}
		return fmt.Sprintf("rsa:%d", k.N.BitLen()), nil
	case ed25519.PublicKey:
		return "ed25519", nil
	}
	return "", fmt.Errorf("key type %T is not supported", key)
}
