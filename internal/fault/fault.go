// Package fault names every step at which the project makes something durable, so
// that a test can let each of them fail in two ways: not done, and done but the answer
// lost. In a release build Step only calls what it is given.
//
// A step's name is a string literal at the call ("ca.intend", "client.commit"), so that the
// fault matrix test can list all steps from the source and refuse one without a row.
package fault

import "errors"

// ErrInjected is what a step returns that a test made fail.
var ErrInjected = errors.New("injected fault")

// Mode says how a step fails.
type Mode int

const (
	None       Mode = iota
	NotDone         // the step does not run and reports an error
	Lost            // the step runs, then reports an error all the same
	Crash           // the process kills itself (SIGKILL) before the step
	CrashAfter      // the process kills itself (SIGKILL) after the step
)
