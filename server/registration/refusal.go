// Refused requests in the audit log: what the wire does not tell, an operator must be able to find out.

package registration

import (
	"context"

	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// Refusal is a request for a certificate that was refused although it showed a credential.
type Refusal struct {
	Device string // who asked, if that is known
	Label  string
	Remote string // address of the peer
	Reason string // stable word, as in the answer
	Detail string // the true cause; never a secret
}

// RecordRefusal adds a refusal to the audit log. The caller bounds how many an address can cause.
func (b *Book) RecordRefusal(ctx context.Context, r Refusal) error {
	actor := "anonymous"
	if r.Device != "" {
		actor = "device:" + r.Device
	}
	err := b.db.Write(ctx, "registration.refusal", func(tx *database.Tx) error {
		return b.append(tx, audit.Entry{Actor: actor, Action: "enrollment_refused", Object: r.Label, Detail: map[string]string{
			"remote": r.Remote, "reason": r.Reason, "detail": r.Detail,
		}})
	})
	return storage("record refusal", err)
}
