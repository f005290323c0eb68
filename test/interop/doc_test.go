// Package interop lets EST clients that others wrote talk to the built server. (curl and openssl: test/e2e. The list of
// cases: test/conformance.)
package interop
