// est-server serve: everything opened and checked, then the listeners, the EST address last.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/go-chi/chi/v5"
	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/auth"
	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/distribution"
	"github.com/natal-pki/natal/server/feed"
	"github.com/natal-pki/natal/server/front"
	"github.com/natal-pki/natal/server/instance"
	"github.com/natal-pki/natal/server/mirror"
	"github.com/natal-pki/natal/server/telemetry"
	"golang.org/x/sync/errgroup"
)

// listenFlags go before the configuration.
type listenFlags struct {
	ESTListen     string `help:"EST address (TLS)." name:"est-listen" placeholder:"HOST:PORT"`
	PublicListen  string `help:"Address for CA certificates, CRLs and OCSP (HTTP)." name:"public-listen" placeholder:"HOST:PORT"`
	AdminListen   string `help:"Administration address (TLS)." name:"admin-listen" placeholder:"HOST:PORT"`
	MetricsListen string `help:"Address for /metrics, /healthz and /readyz (HTTP)." name:"metrics-listen" placeholder:"HOST:PORT"`
}

func (f listenFlags) apply(s *config.Settings) error {
	for _, v := range []struct {
		flag, value string
		setting     *string
	}{
		{"--est-listen", f.ESTListen, &s.ESTListen}, {"--public-listen", f.PublicListen, &s.PublicListen},
		{"--admin-listen", f.AdminListen, &s.AdminListen}, {"--metrics-listen", f.MetricsListen, &s.MetricsListen},
	} {
		if v.value == "" {
			continue
		}
		if err := config.CheckAddress(v.value); err != nil {
			return wrongUsage("%s: %v", v.flag, err)
		}
		*v.setting = v.value
	}
	return nil
}

// gcPercent trades memory for CPU: the live heap is a few megabytes, so letting it grow to five times that costs little of the one
// and saves much of the other. The variable GOGC overrides it.
const gcPercent = 400

type serveCommand struct {
	listenFlags
}

func (c *serveCommand) Run(a *app) error {
	if _, err := a.dir().ReadSettings(a.Config); err != nil {
		return err
	}
	lock, err := a.dir().Lock()
	if err != nil {
		return err
	}
	defer lock.Release()
	return a.serve(c.listenFlags, nil, nil)
}

// serve opens the instance and serves it until the process is told to stop. hosts are more names of the EST server; ready is called
// when all addresses are open. The caller holds the directory's lock.
func (a *app) serve(flags listenFlags, hosts []string, ready func(s *server) error) error {
	settings, err := a.dir().ReadSettings(a.Config)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	log := newLogger(a, settings)
	i, err := instance.Open(a.ctx, instance.Options{Dir: a.dir(), ConfigFile: a.Config, PassphraseFile: a.PassphraseFile, Clock: a.clock, Log: log})
	if err != nil {
		return err
	}
	i.Settings.Hosts = append(i.Settings.Hosts, hosts...)
	if err := flags.apply(&i.Settings); err != nil {
		return errors.Join(err, i.Close())
	}
	s := &server{Instance: i, log: log, stop: make(chan struct{})}
	return errors.Join(s.run(a.ctx, ready), i.Close())
}

func newLogger(a *app, s config.Settings) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(s.LogLevel))
	options := &slog.HandlerOptions{Level: level}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.stderr, options))
	}
	return slog.New(slog.NewTextHandler(a.stderr, options))
}

// server is an instance that is being served.
type server struct {
	*instance.Instance
	log     *slog.Logger
	cert    *instance.ServerCertificate
	metrics *telemetry.Metrics
	ocsp    *distribution.OCSPMetrics
	stop    chan struct{} // closed when the server stops
	open    atomic.Bool   // all addresses are open

	est, public, admin, monitoring, socket *listener
}

func (s *server) run(ctx context.Context, ready func(*server) error) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	handlers, err := s.handlers(ctx)
	if err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	if err := s.listen(handlers, group); err != nil {
		s.close()
		return errors.Join(err, group.Wait())
	}
	group.Go(func() error { return s.CA.RunCRLSchedule(background) })
	if err := s.CA.RenewOCSPSigners(ctx); err != nil { // EST is served already; who asks /readyz waits for OCSP too
		s.log.Error("ocsp signers", "error", err)
	}
	group.Go(func() error { return s.CA.RunOCSPSigners(background) })
	if dir := s.Settings.PublishDir; dir != "" {
		publisher := &mirror.Publisher{CA: s.CA, Dir: dir, Clock: s.Clock, Log: s.log}
		group.Go(func() error { return publisher.Run(background) })
	}
	group.Go(func() error { return s.CA.RunKeyWatch(background) })
	group.Go(func() error { return s.cert.Run(background) })
	group.Go(func() error { return s.KeepRecord(background) })
	s.open.Store(true)
	daemon.SdNotify(false, daemon.SdNotifyReady)
	s.log.Info("serving", "est", s.est.address(), "public", s.public.address(), "admin", s.admin.address(), "metrics", s.monitoring.address())
	if ready != nil {
		if err = ready(s); ctx.Err() != nil { // told to stop meanwhile: that is no failure
			err = nil
		}
	}
	if err == nil {
		<-groupCtx.Done()
	}
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	s.log.Info("stopping")
	close(s.stop)
	s.drain()
	stopBackground()
	return errors.Join(err, group.Wait())
}

// prepare does what must be done before anybody is answered.
func (s *server) prepare(ctx context.Context) error {
	completed, abandoned, err := s.CA.Sweep(ctx)
	if err != nil {
		return err
	}
	if completed+abandoned > 0 {
		s.log.Warn("certificates left by an earlier crash", "completed", completed, "abandoned", abandoned)
	}
	if err := s.CA.RenewRestoredCRLs(ctx, "server"); err != nil { // bridges refuse a number that has fallen, so the old one does no harm meanwhile
		s.log.Error("CRLs of the new epoch not issued", "error", err)
	}
	if err := s.Complete(ctx); err != nil {
		return err
	}
	if s.cert, err = s.ServerCertificate(ctx); err != nil {
		return err
	}
	if err := firstAdministrator(ctx, s.Instance); err != nil {
		return err
	}
	s.warn(ctx)
	return nil
}

// warn says what an operator should not leave as it is.
func (s *server) warn(ctx context.Context) {
	infos, err := s.CA.List(ctx)
	if err != nil {
		return
	}
	for _, info := range infos {
		if info.Use == ca.UseRoot && info.KeyOnline && keystore.IsFile(info.KeyURI) {
			s.log.Warn("the key of a root CA is on this machine: take it away with `est-server ca offline "+info.Name+" --out FILE`", "ca", info.Name)
		}
	}
}

// handlers are what the addresses answer with.
type handlers struct {
	est, public, admin, metrics, socket http.Handler
}

func (s *server) handlers(ctx context.Context) (handlers, error) {
	s.metrics = telemetry.New(front.Outcomes())
	s.ocsp = distribution.NewOCSPMetrics(s.metrics.Registry())
	state := newStateReader(s)
	if err := state.begin(ctx); err != nil {
		return handlers{}, err
	}
	s.metrics.Watch(s.log, state.read)
	estFront, err := front.New(front.Config{
		Book: s.Book, CA: s.CA, Anchors: s.ManagementTrust, Clock: s.Clock, Log: s.log, Metrics: s.metrics,
	})
	if err != nil {
		return handlers{}, err
	}
	identify := func(r *http.Request) (ca.Certificate, error) {
		return auth.Management(r.Context(), s.CA, r.TLS, s.Clock.Now())
	}
	est := chi.NewRouter()
	est.Handle("/bridge/v1/*", feed.New(feed.Config{
		DB: s.DB, CA: s.CA, Book: s.Book, Clock: s.Clock, Log: s.log, Identify: identify, Stop: s.stop,
	}))
	est.NotFound(estFront.ServeHTTP)
	est.MethodNotAllowed(estFront.ServeHTTP)
	api := newAdminAPI(s.Instance, s.cert.Leaf)
	return handlers{
		est:     est,
		public:  distribution.Handler(distribution.Config{CA: s.CA, Clock: s.Clock, Log: s.log, OCSPMetrics: s.ocsp}),
		admin:   api.Remote(identify),
		metrics: s.metrics.Handler(telemetry.Checks{Alive: s.alive, Ready: s.ready}),
		socket:  api,
	}, nil
}

func (s *server) alive(context.Context) error { return s.DB.Healthy() }

func (s *server) ready(ctx context.Context) error {
	if !s.open.Load() {
		return errors.New("starting")
	}
	if err := s.DB.Healthy(); err != nil {
		return err
	}
	if _, err := s.CA.Changes().Seq(ctx); err != nil {
		return err
	}
	behind, err := s.CA.ClockBehind(ctx)
	if err != nil {
		return err
	}
	if behind > ca.MaxClockLag {
		return fmt.Errorf("clock_behind: the clock is %s behind the newest record: nothing is signed until it is right", behind.Round(time.Second))
	}
	return s.CA.KeysReady(ctx)
}

// estTLS also serves the admin address: the same certificate, and client certificates that are requested and judged for each request.
func (s *server) estTLS() *tls.Config { return front.TLSConfig(s.cert.Get, s.Clock) }

// listen opens the addresses, EST last: what it relies on is there before the first device is.
func (s *server) listen(h handlers, group *errgroup.Group) (err error) {
	if s.monitoring, err = s.openAt(s.Settings.MetricsListen, "--metrics-listen", plainServer(h.metrics, s.log), group); err != nil {
		return err
	}
	if s.public, err = s.openAt(s.Settings.PublicListen, "--public-listen", plainServer(h.public, s.log), group); err != nil {
		return err
	}
	if s.admin, err = s.openAt(s.Settings.AdminListen, "--admin-listen", front.Server(h.admin, s.estTLS(), s.log), group); err != nil {
		return err
	}
	socket, err := s.Dir.ListenSocket()
	if err != nil {
		return err
	}
	local := plainServer(h.socket, s.log)
	local.ConnContext = admin.SocketContext
	local.WriteTimeout = 0 // an export of the audit log takes its time
	s.socket = serveOn(socket, local, group)
	s.est, err = s.openAt(s.Settings.ESTListen, "--est-listen", front.Server(h.est, s.estTLS(), s.log), group)
	return err
}

const drainTime = 10 * time.Second

// drain lets requests under way finish, for a while.
func (s *server) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	var group errgroup.Group
	for _, l := range s.listeners() {
		group.Go(func() error { return l.shutdown(ctx) })
	}
	if err := group.Wait(); err != nil {
		s.log.Warn("connections cut at the end of draining", "error", err)
	}
}

func (s *server) close() {
	for _, l := range s.listeners() {
		l.server.Close()
	}
}

func (s *server) listeners() []*listener {
	var open []*listener
	for _, l := range []*listener{s.est, s.admin, s.public, s.socket, s.monitoring} {
		if l != nil {
			open = append(open, l)
		}
	}
	return open
}

// openAt opens an address and serves on it; the EST address has a limit of connections, in all and for each remote address.
func (s *server) openAt(address, flag string, hs *http.Server, group *errgroup.Group) (*listener, error) {
	l, err := listenTCP(address, flag)
	if err != nil {
		return nil, err
	}
	if flag == "--est-listen" {
		l = limited(limitPeers(l, min(connectionsPerPeer, s.Settings.Connections/2), s.log), s.Settings.Connections)
	}
	return serveOn(l, hs, group), nil
}
