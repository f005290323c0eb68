// est-server run: init if there is nothing yet, then serve. For trying out.

package main

import (
	"fmt"

	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/instance"
)

type runCommand struct {
	hostFlags
	listenFlags
}

func (c *runCommand) Run(a *app) error {
	settings := config.Default()
	if err := c.apply(&settings); err != nil {
		return err
	}
	state, err := a.dir().State()
	if err != nil {
		return err
	}
	if state == instance.Empty || state == instance.HalfDone {
		plan, err := c.plan(a.ctx, settings.PublicListen)
		if err != nil {
			return err
		}
		if err := a.makeForTrying(plan); err != nil {
			return err
		}
	}
	lock, err := a.dir().Lock()
	if err != nil {
		return err
	}
	defer lock.Release()
	return a.serve(c.listenFlags, c.Host, func(s *server) error { return a.welcome(s) })
}

// makeForTrying makes an instance whose passphrase lies beside the keys, unless another source gives one.
func (a *app) makeForTrying(plan instance.Plan) error {
	if a.PassphraseFile == "" {
		made, err := a.dir().MakePassphrase()
		if err != nil {
			return err
		}
		if made {
			fmt.Fprintf(a.stdout, "made a passphrase in %s: beside the keys it protects nothing; in production use `init` with --passphrase-file\n", a.dir().Path("passphrase"))
		}
	}
	i, err := a.makeInstance(plan)
	if err != nil {
		return err
	}
	warnLocal(a.stdout, plan.PublicURL)
	return i.Close()
}
