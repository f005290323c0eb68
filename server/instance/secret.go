// A secret that is not a private key - the key of the code hashes - encrypted at rest like the keys: PBKDF2 and
// AES-256-GCM, in PEM. Being authenticated, it is also how a wrong passphrase is noticed at start.

package instance

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
)

const (
	secretType  = "NATAL ENCRYPTED SECRET"
	secretBytes = 32
)

// loadSecret reads the secret at path.
func loadSecret(path string, passphrase []byte) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil || block.Type != secretType {
		return nil, fmt.Errorf("%s: not an encrypted secret", path)
	}
	salt, err := hex.DecodeString(block.Headers["Salt"])
	iterations, err2 := strconv.Atoi(block.Headers["Iterations"])
	if err != nil || err2 != nil || iterations < 1 {
		return nil, fmt.Errorf("%s: damaged", path)
	}
	aead, err := secretCipher(passphrase, salt, iterations)
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, make([]byte, aead.NonceSize()), block.Bytes, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: wrong passphrase or damaged file", path)
	}
	return secret, nil
}

// loadOrMakeSecret makes a random secret where there is none.
func loadOrMakeSecret(path string, passphrase []byte) ([]byte, error) {
	secret, err := loadSecret(path, passphrase)
	if !errors.Is(err, os.ErrNotExist) {
		return secret, err
	}
	secret, salt := make([]byte, secretBytes), make([]byte, 16)
	rand.Read(secret)
	rand.Read(salt)
	aead, err := secretCipher(passphrase, salt, keystore.Iterations)
	if err != nil {
		return nil, err
	}
	// A fixed nonce is safe: the salt, and with it the key, is used for this one message.
	sealed := pem.EncodeToMemory(&pem.Block{
		Type:    secretType,
		Headers: map[string]string{"Salt": hex.EncodeToString(salt), "Iterations": strconv.Itoa(keystore.Iterations)},
		Bytes:   aead.Seal(nil, make([]byte, aead.NonceSize()), secret, nil),
	})
	err = fault.Step("instance.secret", func() error { return atomicfile.Write(path, sealed, 0o600) })
	return secret, err
}

func secretCipher(passphrase, salt []byte, iterations int) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, string(passphrase), salt, iterations, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
