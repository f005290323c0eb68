// Package e2e drives the built binaries from outside, as users, devices and their tools do: one behaviour for each file, named
// after it. What judges is openssl, curl, mosquitto and promtool, not the project's own code.
//
//	openssl_test.go  a device made of openssl and curl
//	broker_test.go   a mosquitto with its bridge
//	session_test.go  a device's bare MQTT connection
//	ca_*             CAs: made by init, signed elsewhere, taken offline, refused
//	crl_*            revocation lists
//	run_*            the first start, and what stands in its way
//	device_*         from first boot to the broker, and what a device may do there
//	revoke_*         what a revocation ends, how fast, and the way back
//	bridge_kill_*, three_years_*    the broker's side over crashes and over time
package e2e
