//go:build !testhooks

package keystore

// Iterations is how often PBKDF2 iterates to make a key from a passphrase: about a tenth of a second.
const Iterations = 600_000
