// The pages of the metrics address. /healthz asks whether this process can still do its work at all (a supervisor
// restarts it if not); /readyz asks whether it should get requests now.

package telemetry

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// checkTimeout bounds a health check.
const checkTimeout = 2 * time.Second

// Checks are the health checks. A nil check passes.
type Checks struct {
	Alive func(ctx context.Context) error // an error means: only a restart helps
	Ready func(ctx context.Context) error // an error says what is missing
}

// Handler serves /metrics, /healthz and /readyz.
func (m *Metrics) Handler(checks Checks) http.Handler { return Pages(m.registry, checks) }

// Pages is Handler for a process that has series of its own only.
func Pages(series prometheus.Gatherer, checks Checks) http.Handler {
	r := chi.NewRouter()
	metrics := promhttp.HandlerFor(series, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
	r.Get("/metrics", metrics.ServeHTTP)
	r.Head("/metrics", metrics.ServeHTTP)
	for path, check := range map[string]func(context.Context) error{"/healthz": checks.Alive, "/readyz": checks.Ready} {
		r.Get(path, checkHandler(check))
		r.Head(path, checkHandler(check))
	}
	return r
}

func checkHandler(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if check != nil {
			ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
			defer cancel()
			if err := check(ctx); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprintln(w, err)
				return
			}
		}
		fmt.Fprintln(w, "ok")
	}
}
