//go:build testhooks

package keystore

// Iterations is how often PBKDF2 iterates. The tests open thousands of keys that protect nothing.
const Iterations = 1000
