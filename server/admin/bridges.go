// Bridges: how far the brokers are behind.

package admin

import (
	"context"
	"net/http"

	"github.com/natal-pki/natal/server/feed"
)

func (a *API) registerBridges() {
	handle(a, readers, http.MethodGet, "/bridges", "How far each bridge has brought its brokers", func(ctx context.Context, _ Caller, _ *struct{}) (List[Bridge], error) {
		progress, err := feed.Bridges(ctx, a.cfg.DB, a.cfg.Clock.Now())
		return list(progress, func(p feed.Progress) Bridge {
			return Bridge{Bridge: p.Bridge, Broker: p.Broker, Seq: p.Seq, Lag: p.Lag.Seconds(), VerifiedAt: p.VerifiedAt, At: p.At, Error: p.Error}
		}), err
	})
}
