// run: the loop, its certificates and its metrics, until a signal.

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/natal-pki/natal/broker-bridge/bridge"
	"github.com/natal-pki/natal/internal/clock"
)

type configFlag struct {
	Config string `required:"" placeholder:"FILE" help:"Configuration (bridge.yaml)."`
}

type runCommand struct {
	configFlag
	MetricsListen string `placeholder:"HOST:PORT" help:"Address for metrics and health, instead of metrics_listen in the configuration."`
}

// Run works until ctx ends.
func (c *runCommand) Run(ctx context.Context, std streams) error {
	log := slog.New(slog.NewTextHandler(std.err, nil))
	conf, err := bridge.Load(c.Config)
	if err != nil {
		return err
	}
	if c.MetricsListen != "" {
		conf.MetricsListen = c.MetricsListen
	}
	listener, err := net.Listen("tcp", conf.MetricsListen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address %s is in use: choose another one with --metrics-listen HOST:PORT", conf.MetricsListen)
	}
	if err != nil {
		return fmt.Errorf("--metrics-listen: %w", err)
	}
	defer listener.Close()

	clk, metrics := clock.System(), bridge.NewMetrics()
	ids, err := bridge.OpenIdentities(conf, clk, log, metrics)
	if err != nil {
		return err
	}
	if _, err := ids.Own(); err != nil {
		return fmt.Errorf("the bridge has no certificate, run `broker-bridge setup mosquitto` first: %w", err)
	}
	roots, err := brokerRoots(conf, ids)
	if err != nil {
		return err
	}
	broker, err := bridge.NewMosquitto(conf.Broker, roots, ids.Own, clk)
	if err != nil {
		return err
	}
	defer broker.Close()
	feed := bridge.NewFeed(conf.Server, ids.Anchors, ids.Own, clk)
	b, err := bridge.New(bridge.Parts{Config: conf, Clock: clk, Log: log, Metrics: metrics, Feed: feed, Broker: broker})
	if err != nil {
		return err
	}
	defer b.Close()
	return serve(ctx, log, listener, b, ids, feed)
}

// serve runs the three parts and ends when all of them have.
func serve(ctx context.Context, log *slog.Logger, listener net.Listener, b *bridge.Bridge, ids *bridge.Identities, feed *bridge.Feed) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{Handler: b.Handler(), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() { ids.Run(ctx, feed.Reconnect, b.ServerCertificate) })
	wait.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics", "error", err)
		}
	})
	defer server.Close()
	defer cancel()
	log.Info("running", "metrics", "http://"+listener.Addr().String()+"/metrics")
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd not notified", "error", err)
	}
	return b.Run(ctx)
}

// brokerRoots is what the broker's server certificate must chain to; nil means the system's roots.
func brokerRoots(conf *bridge.Config, ids *bridge.Identities) ([]*x509.Certificate, error) {
	switch conf.Broker.ServerCA {
	case "system":
		return nil, nil
	case conf.Trust:
		return ids.Anchors(), nil
	}
	return bridge.ReadCertificates(conf.Broker.ServerCA)
}
