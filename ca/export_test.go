// What the tests of the schedule drive step by step.

package ca

import (
	"context"
	"time"
)

// IssueDueCRLs is one round of the schedule.
func (a *Authorities) IssueDueCRLs(ctx context.Context) (next time.Time, err error) {
	return a.issueDueCRLs(ctx)
}
