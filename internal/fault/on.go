//go:build testhooks

package fault

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

var hook struct {
	sync.Mutex
	decide func(name string) Mode
	counts map[string]int
}

// Set installs the function that decides how each step fails; nil removes it.
// For tests in the same process.
func Set(decide func(name string) Mode) {
	hook.Lock()
	defer hook.Unlock()
	hook.decide = decide
}

// Step runs do, or fails in the way that Set's function or the variable NATAL_FAULT says.
// NATAL_FAULT is a comma-separated list of NAME:MODE or NAME:MODE:N, where MODE is
// notdone, lost, crash or crashafter and N (default 1) is the occurrence that fails.
func Step(name string, do func() error) error {
	switch mode(name) {
	case NotDone:
		return ErrInjected
	case Lost:
		if err := do(); err != nil {
			return err
		}
		return ErrInjected
	case Crash:
		die()
	case CrashAfter:
		if err := do(); err != nil {
			return err
		}
		die()
	}
	return do()
}

func mode(name string) Mode {
	hook.Lock()
	defer hook.Unlock()
	if hook.decide != nil {
		return hook.decide(name)
	}
	list := os.Getenv("NATAL_FAULT")
	if list == "" {
		return None
	}
	if hook.counts == nil {
		hook.counts = map[string]int{}
	}
	hook.counts[name]++
	for item := range strings.SplitSeq(list, ",") {
		f := strings.Split(item, ":")
		if len(f) < 2 || f[0] != name {
			continue
		}
		n := 1
		if len(f) > 2 {
			n, _ = strconv.Atoi(f[2])
		}
		if hook.counts[name] == n {
			return map[string]Mode{"notdone": NotDone, "lost": Lost, "crash": Crash, "crashafter": CrashAfter}[f[1]]
		}
	}
	return None
}

func die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
