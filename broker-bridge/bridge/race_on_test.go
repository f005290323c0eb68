//go:build race

// How much slower the tests run with the race detector, on a machine that does something else as well.

package bridge

const slowness = 10
