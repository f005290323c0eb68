// Package testpki makes throw-away certificates for tests: roots, intermediates, leaves, birth
// certificates, and each of them broken in one chosen way.
//
// It is deliberately not built on the ca package, so that a test has an issuer that shares no code with
// what it tests. It does not check what it is asked to make: a CA:FALSE parent signs, an intermediate
// under a pathlen:0 CA is made.
//
//	doc.go      this page
//	testpki.go  Authority and Leaf
//	options.go  what a certificate can be told to be, broken variants among them
//	pem.go      keys, CSRs, PEM, files
package testpki
