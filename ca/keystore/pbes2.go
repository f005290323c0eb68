// Encrypted PKCS#8 (RFC 5958 section 3) by PBES2 (RFC 8018 section 6.2), written here because how often the key derivation iterates
// differs between the release and the test build. Reading is pemutil's.

package keystore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
)

var (
	oidPBES2          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidHMACWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidAES256CBC      = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

type encryptedPrivateKeyInfo struct {
	Algorithm struct {
		PBES2      asn1.ObjectIdentifier
		Parameters pbes2Parameters
	}
	EncryptedData []byte
}

type pbes2Parameters struct {
	KeyDerivation struct {
		PBKDF2     asn1.ObjectIdentifier
		Parameters struct {
			Salt       []byte
			Iterations int
			PRF        pkix.AlgorithmIdentifier
		}
	}
	Encryption struct {
		Cipher asn1.ObjectIdentifier
		IV     []byte
	}
}

// sealPKCS8 encrypts a PKCS#8 key: PBKDF2 with HMAC-SHA-256, AES-256-CBC.
func sealPKCS8(der, passphrase []byte) ([]byte, error) {
	salt, iv := make([]byte, 16), make([]byte, aes.BlockSize)
	rand.Read(salt)
	rand.Read(iv)
	key, err := pbkdf2.Key(sha256.New, string(passphrase), salt, Iterations, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	padding := aes.BlockSize - len(der)%aes.BlockSize
	data := slices.Concat(der, slices.Repeat([]byte{byte(padding)}, padding))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(data, data)

	var info encryptedPrivateKeyInfo
	info.EncryptedData = data
	info.Algorithm.PBES2 = oidPBES2
	derivation, encryption := &info.Algorithm.Parameters.KeyDerivation, &info.Algorithm.Parameters.Encryption
	derivation.PBKDF2 = oidPBKDF2
	derivation.Parameters.Salt, derivation.Parameters.Iterations = salt, Iterations
	derivation.Parameters.PRF = pkix.AlgorithmIdentifier{Algorithm: oidHMACWithSHA256, Parameters: asn1.NullRawValue}
	encryption.Cipher, encryption.IV = oidAES256CBC, iv
	return asn1.Marshal(info)
}
