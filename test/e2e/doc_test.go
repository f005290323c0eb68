// Package e2e drives the built binaries from outside, as users, devices and their tools do: one behaviour for each file, named
// after it. What judges is openssl, curl, mosquitto and promtool, not the project's own code.
//
//	openssl_test.go  a device made of openssl and curl
//	broker_test.go   a mosquitto with its bridge
//	ca_*             CAs: made by init, signed elsewhere, taken offline, refused
//	crl_*            revocation lists
//	run_*            the first start, and what stands in its way
package e2e
