// Addresses: opening them with errors that name the flag, and serving on them.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

// listener is an address that is being served.
type listener struct {
	net    net.Listener
	server *http.Server
}

func (l *listener) address() string { return l.net.Addr().String() }

// shutdown waits for requests under way; what is left at the end of ctx is cut.
func (l *listener) shutdown(ctx context.Context) error {
	if err := l.server.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", l.address(), err), l.server.Close())
	}
	return nil
}

// listenTCP opens address; flag is how to choose another one.
func listenTCP(address, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("address %s is in use: choose another one with %s HOST:PORT", address, flag)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("address %s needs more rights: choose another one with %s HOST:PORT", address, flag)
	}
	return nil, fmt.Errorf("%s %s: %w", flag, address, err)
}

// limited lets at most most connections in at a time.
func limited(l net.Listener, most int) net.Listener { return netutil.LimitListener(l, most) }

// serveOn serves in a goroutine of group, with TLS if the server has a TLS configuration.
func serveOn(l net.Listener, hs *http.Server, group *errgroup.Group) *listener {
	group.Go(func() error {
		err := error(nil)
		if hs.TLSConfig != nil {
			err = hs.ServeTLS(l, "", "")
		} else {
			err = hs.Serve(l)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("%s: %w", l.Addr(), err)
	})
	return &listener{net: l, server: hs}
}

// plainServer is an http.Server without TLS, with every timeout.
func plainServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      5 * time.Minute, // a large CRL over a slow line
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
