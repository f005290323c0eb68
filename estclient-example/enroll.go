// enroll and reenroll: one attempt, for installers and scripts. A repetition after a failure sends the same key again.

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/natal-pki/natal/client"
)

func (a *agent) enroll(ctx context.Context) error {
	id, err := a.enrollOnce(ctx)
	if err != nil {
		if have, loadErr := a.store.Load(); loadErr == nil && client.Refused(err) {
			return fmt.Errorf("%w; %s already holds a certificate valid until %s", err, a.Dir, have.Certificate.NotAfter.Format(time.RFC3339))
		}
		return err
	}
	a.report("enrolled", id)
	return nil
}

func (a *agent) enrollOnce(ctx context.Context) (*client.Identity, error) {
	c, req, err := a.newEnrollClient()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return a.store.Enroll(ctx, c, a.Key, req)
}

func (a *agent) reenroll(ctx context.Context) error {
	id, err := a.renewOnce(ctx)
	if err != nil {
		return err
	}
	a.report("renewed", id)
	return nil
}

func (a *agent) renewOnce(ctx context.Context) (*client.Identity, error) {
	c, err := a.newClient()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return a.store.Renew(ctx, c, a.Key, client.Request{})
}

func (a *agent) report(done string, id *client.Identity) {
	fmt.Fprintf(a.stdout, "%s %s: serial %s, valid until %s, in %s\n", done, id.Certificate.Subject.CommonName,
		serialHex(id.Certificate), id.Certificate.NotAfter.Format(time.RFC3339), a.file("bundle.pem"))
}
