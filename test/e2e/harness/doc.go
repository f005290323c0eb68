// Package harness starts the built binaries and the programs around them for end-to-end tests.
//
// What a test starts is stopped, by its process id, when the test ends; what it writes goes into the test's
// own temporary directory. Programs that are not installed skip the test with a message that says what to install, or
// fail it when NATAL_PROGRAMS=required (make test sets that on Debian, where it has installed them).
//
//	doc.go       this page
//	binaries.go  the binaries under test, built once
//	process.go   run and start programs
//	wait.go      poll with a deadline, free ports, programs that must be there
//	server.go    est-server with its addresses and files
//	mosquitto.go an MQTT broker
//	postgres.go  a PostgreSQL cluster and fresh databases in it
//	testclock.go the file that moves the time of a testhooks binary
package harness
