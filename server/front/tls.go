// TLS as RFC 7030 section 3.3 asks for it, and an http.Server that a slow or silent peer cannot hold.

package front

import (
	"crypto/tls"
	"log/slog"
	"net/http"
	"time"

	"github.com/natal-pki/natal/internal/clock"
)

// Timeouts of the EST address. An honest request is a few kilobytes; a bridge's long poll takes 25 s.
const (
	readHeaderTimeout = 10 * time.Second // also bounds the TLS handshake
	readTimeout       = 15 * time.Second
	writeTimeout      = 60 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 16 << 10
)

// TLSConfig is the server side of EST. A client certificate is requested and never required or verified here: whoever
// presents a bad one gets a readable 401 instead of an alert, and who may do what is decided for each request, against the
// database. For the same reason there is no session resumption. HTTP/1.1 only.
func TLSConfig(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), c *clock.Clock) *tls.Config {
	return &tls.Config{
		GetCertificate:         certificate,
		ClientAuth:             tls.RequestClientCert,
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"http/1.1"},
		Time:                   c.Now,
		CipherSuites: []uint16{ // TLS 1.2 only; those of TLS 1.3 are not configurable
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}

// Server returns the http.Server of the EST address. Serve it with ServeTLS(listener, "", "").
func Server(h http.Handler, config *tls.Config, log *slog.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           h,
		TLSConfig:         config,
		Protocols:         &protocols,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
