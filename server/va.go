// est-server va: a validation authority standing alone.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/distribution"
	"github.com/natal-pki/natal/server/instance"
	"github.com/natal-pki/natal/server/telemetry"
	"github.com/natal-pki/natal/server/va"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
)

type vaCommand struct {
	Serve vaServe `cmd:"" default:"withargs" help:"Answer OCSP requests and give out CRLs and CA certificates, from a database that is only read or from a mirror."`
	CSR   vaCSR   `cmd:"" name:"csr" help:"Make a key for a CA's OCSP answers if there is none, and print its request."`
}

type vaServe struct {
	Listen        string        `help:"Address to serve on (HTTP)." default:":8080" placeholder:"HOST:PORT"`
	MetricsListen string        `help:"Address for /metrics, /healthz and /readyz (HTTP)." name:"metrics-listen" default:"127.0.0.1:9103" placeholder:"HOST:PORT"`
	Mirror        string        `help:"Directory of published files (publish_dir of the server, carried here). Default: the database of --data." placeholder:"DIR"`
	Keys          string        `help:"Directory of this authority's keys and certificates." required:"" placeholder:"DIR"`
	MaxAge        time.Duration `help:"With --mirror: what was published longer ago is not believed." name:"max-age" default:"5m"`
}

func (c *vaServe) Run(a *app) error {
	for flag, address := range map[string]string{"--listen": c.Listen, "--metrics-listen": c.MetricsListen} {
		if err := config.CheckAddress(address); err != nil {
			return wrongUsage("%s: %v", flag, err)
		}
	}
	if c.MaxAge < 30*time.Second || c.MaxAge > 24*time.Hour {
		return wrongUsage("--max-age: %v is not from 30s to 24h", c.MaxAge)
	}
	passphrase, err := instance.Dir(c.Keys).Passphrase(a.PassphraseFile)
	if err != nil {
		return err
	}
	log := newLogger(a, config.Default())
	cfg := va.Config{Keys: c.Keys, Passphrase: passphrase, Mirror: c.Mirror, MaxAge: c.MaxAge, Clock: a.clock, Log: log}
	if c.Mirror == "" {
		db, authorities, err := instance.OpenReadOnly(a.ctx, instance.Options{Dir: a.dir(), ConfigFile: a.Config, Clock: a.clock, Log: log})
		if err != nil {
			return err
		}
		defer db.Close()
		cfg.Records = authorities
	}
	authority, err := va.New(cfg)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), vaCollector{authority})
	metrics := distribution.NewOCSPMetrics(registry)
	for _, name := range authority.Names() {
		metrics.CA(name)
	}
	var public http.Handler
	if c.Mirror == "" {
		public = distribution.Handler(distribution.Config{CA: cfg.Records, Clock: a.clock, Log: log, OCSP: authority, OCSPMetrics: metrics})
	} else {
		public = va.FromMirror(c.Mirror, authority, a.clock, metrics)
	}
	return c.serve(a.ctx, log, authority, public, telemetry.Pages(registry, telemetry.Checks{Ready: authority.Ready}))
}

// serve answers until ctx ends.
func (c *vaServe) serve(ctx context.Context, log *slog.Logger, authority *va.Authority, public, pages http.Handler) error {
	group, groupCtx := errgroup.WithContext(ctx)
	var open []*listener
	stop := func() {
		limit, cancel := context.WithTimeout(context.Background(), drainTime)
		defer cancel()
		for _, l := range open {
			if err := l.shutdown(limit); err != nil {
				log.Warn("connections cut at the end of draining", "error", err)
			}
		}
	}
	for _, a := range []struct {
		address, flag string
		handler       http.Handler
	}{{c.MetricsListen, "--metrics-listen", pages}, {c.Listen, "--listen", public}} {
		l, err := listenTCP(a.address, a.flag)
		if err != nil {
			stop()
			return errors.Join(err, group.Wait())
		}
		open = append(open, serveOn(l, plainServer(a.handler, log), group))
	}
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	group.Go(func() error { return authority.Run(background) })
	daemon.SdNotify(false, daemon.SdNotifyReady)
	log.Info("serving", "public", open[1].address(), "metrics", open[0].address())
	<-groupCtx.Done()
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	log.Info("stopping")
	stop()
	stopBackground()
	return group.Wait()
}

// vaCollector shows until when the authority can answer.
type vaCollector struct{ authority *va.Authority }

var (
	descVACertificate = prometheus.NewDesc("est_certificate_expiry_timestamp_seconds", "End of the certificates that this authority itself lives on, Unix seconds, by use.", []string{"use"}, nil)
	descVAPublished   = prometheus.NewDesc("est_va_published_timestamp_seconds", "When the state of a CA's certificates in use here was published, Unix seconds, by CA.", []string{"ca"}, nil)
)

func (c vaCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descVACertificate
	ch <- descVAPublished
}

func (c vaCollector) Collect(ch chan<- prometheus.Metric) {
	for name, s := range c.authority.States() {
		ch <- prometheus.MustNewConstMetric(descVACertificate, prometheus.GaugeValue, float64(s.NotAfter.Unix()), "ocsp "+name)
		if !s.PublishedAt.IsZero() {
			ch <- prometheus.MustNewConstMetric(descVAPublished, prometheus.GaugeValue, float64(s.PublishedAt.Unix()), name)
		}
	}
}

type vaCSR struct {
	CA   string `arg:"" name:"ca" help:"Name of the CA."`
	Keys string `help:"Directory of this authority's keys and certificates." required:"" placeholder:"DIR"`
	Out  string `help:"File to write. Default: standard output." placeholder:"FILE"`
}

func (c *vaCSR) Run(a *app) error {
	passphrase, err := instance.Dir(c.Keys).Passphrase(a.PassphraseFile)
	if err != nil {
		return err
	}
	csr, err := va.Request(c.Keys, c.CA, passphrase)
	if err != nil {
		return fmt.Errorf("%s: %w", c.CA, err)
	}
	return a.write(c.Out, csr, 0o644)
}
