//go:build !race

// Without the race detector times are as promised; see race_on_test.go.

package bridge

const slowness = 1
