package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"":                               0,
		"2":                              2 * time.Second,
		" 120 ":                          2 * time.Minute,
		"0":                              0,
		"-5":                             0,
		"1000000000":                     maxRetryAfter,
		"99999999999999999999999999":     maxRetryAfter,
		"-99999999999999999999999999":    0,
		"1.5":                            0,
		"soon":                           0,
		"Mon, 01 Mar 2027 12:00:30 GMT":  30 * time.Second,
		"Monday, 01-Mar-27 12:01:00 GMT": time.Minute,
		"Mon Mar  1 12:02:00 2027":       2 * time.Minute,
		"Mon, 01 Mar 2027 11:59:00 GMT":  0,
		"Mon, 01 Mar 2077 11:59:00 GMT":  maxRetryAfter,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

// TestPending is a 202: an Error that says when to come back, and the pair in force untouched.
func TestPending(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	waiting := 0
	p.on(wire.OpSimpleEnroll, p.requireCode(func(w http.ResponseWriter, r *http.Request) {
		if waiting++; waiting > 2 {
			p.issue(w, r)
			return
		}
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(http.StatusAccepted)
	}))
	store := openStore(t, t.TempDir())
	var backoff Backoff
	for attempt := 1; ; attempt++ {
		_, err := store.Enroll(testContext(t), p.client(), "ec:P-256", Request{})
		if err == nil {
			if attempt != 3 {
				t.Errorf("granted at attempt %d", attempt)
			}
			return
		}
		var e *Error
		if !errors.As(err, &e) || e.Status != 202 || e.Reason != "pending" || e.RetryAfter != 2*time.Second {
			t.Fatalf("attempt %d: %v", attempt, err)
		}
		if wait := backoff.Next(err); wait < 2*time.Second || wait > 3*time.Second {
			t.Errorf("attempt %d: wait %s", attempt, wait)
		}
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	refused := &Error{Status: 401}
	busy := func(d time.Duration) error { return fmt.Errorf("wrapped: %w", &Error{Status: 503, RetryAfter: d}) }
	for range 200 {
		var b Backoff
		ceiling := time.Second
		total := time.Duration(0)
		for n := range 40 {
			wait := b.Next(errors.New("down"))
			if wait < time.Second/2 || wait > ceiling {
				t.Fatalf("failure %d: wait %s, at most %s", n+1, wait, ceiling)
			}
			ceiling = min(ceiling*2, 15*time.Minute)
			total += wait
		}
		if total/40 < 30*time.Second {
			t.Errorf("40 failures in %s: more than one request in 30 s", total)
		}
		b.Reset()
		if wait := b.Next(errors.New("down")); wait > time.Second {
			t.Errorf("after Reset: %s", wait)
		}
		if wait := b.Next(refused); wait < 13*time.Minute || wait > 17*time.Minute {
			t.Errorf("after a refusal: %s", wait)
		}
		if wait := b.Next(busy(time.Hour)); wait < time.Hour || wait > 66*time.Minute {
			t.Errorf("asked for an hour: %s", wait)
		}
		if wait := b.Next(busy(0)); wait > 15*time.Minute {
			t.Errorf("asked for nothing: %s", wait)
		}
	}
}

func TestBackoffSpreads(t *testing.T) {
	t.Parallel()
	early, late := 0, 0
	for range 400 {
		b := Backoff{failures: 20}
		if wait := b.Next(errors.New("down")); wait < 5*time.Minute {
			early++
		} else if wait > 10*time.Minute {
			late++
		}
	}
	if early < 60 || late < 60 {
		t.Errorf("%d of 400 in the first third, %d in the last: no full jitter", early, late)
	}
}

func TestRenewAt(t *testing.T) {
	t.Parallel()
	ca := testpki.Root(t, "Root")
	from, to := time.Now().Truncate(time.Second), time.Now().Truncate(time.Second).Add(300*24*time.Hour)
	first, last := 1.0, 0.0
	sum := 0.0
	const n = 120
	for range n {
		cert := ca.Leaf(t, "dev-1", testpki.Valid(from, to)).Certificate
		at := RenewAt(cert)
		if !at.Equal(RenewAt(cert)) {
			t.Fatal("the time is drawn anew at each call")
		}
		part := float64(at.Sub(cert.NotBefore)) / float64(cert.NotAfter.Sub(cert.NotBefore))
		first, last, sum = min(first, part), max(last, part), sum+part
	}
	if first < 2.0/3-0.1 || last > 2.0/3+0.1 || last-first < 0.15 || sum/n < 0.64 || sum/n > 0.69 {
		t.Errorf("from %.3f to %.3f of the lifetime, mean %.3f", first, last, sum/n)
	}
}

// TestServerDownAtRenewal is P14: the certificate in force stays in force until its end, attempts are spaced.
func TestServerDownAtRenewal(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	store := openStore(t, t.TempDir())
	c := p.client()
	first, err := store.Enroll(testContext(t), c, "ec:P-256", Request{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	p.server.Close()
	var backoff Backoff
	for range 3 {
		_, err := store.Renew(testContext(t), c, "ec:P-256", Request{})
		if err == nil {
			t.Fatal("renewed from a server that is down")
		}
		if backoff.Next(err) < time.Second/2 {
			t.Error("no pause")
		}
		if cert, err := store.TLSCertificate(); err != nil || !cert.Leaf.Equal(first.Certificate) {
			t.Errorf("the certificate in force changed: %v", err)
		}
	}
}

// alertFrom connects to a TLS server that judges client certificates, and returns the error that the client sees.
func alertFrom(t *testing.T, version uint16, server *tls.Config, cert *testpki.Leaf) error {
	t.Helper()
	root := testpki.Root(t, "Server root")
	server = server.Clone()
	server.MaxVersion = version
	server.Certificates = []tls.Certificate{root.Leaf(t, "broker", testpki.Names("127.0.0.1"), testpki.EKU(x509.ExtKeyUsageServerAuth)).TLS()}
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.(*tls.Conn).Handshake()
		conn.(*tls.Conn).NetConn().(*net.TCPConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		conn.(*tls.Conn).NetConn().Read(make([]byte, 1))
		conn.Close()
	}()
	config := &tls.Config{RootCAs: testpki.Pool(root), ServerName: "127.0.0.1"}
	if cert != nil {
		pair := cert.TLS()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	conn, err := tls.Dial("tcp", l.Addr().String(), config)
	if err == nil {
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	<-done
	return err
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	trusted := testpki.Root(t, "Devices")
	good := trusted.Leaf(t, "dev-1")
	expired := trusted.Leaf(t, "dev-1", testpki.Expired())
	judge := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: testpki.Pool(trusted)}
	inTwoYears := judge.Clone()
	inTwoYears.Time = func() time.Time { return time.Now().AddDate(2, 0, 0) }
	for name, c := range map[string]struct {
		config *tls.Config
		cert   *testpki.Leaf
		number uint8
		says   string
	}{
		"expired":                  {judge, expired, 45, "our certificate expired at"},
		"expired in broker's view": {inTwoYears, good, 45, "renewing would not help"},
		"unknown CA":               {judge, testpki.Root(t, "Foreign").Leaf(t, "dev-1"), 48, "does not trust our CA"},
		"no clientAuth":            {judge, trusted.Leaf(t, "dev-1", testpki.EKU(x509.ExtKeyUsageServerAuth)), 42, "does not accept our certificate"},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			err := alertFrom(t, version, c.config, c.cert)
			number, ok := Alert(err)
			text := ExplainAlert(err, c.cert.Certificate, time.Now())
			if !ok || number != c.number || !strings.Contains(text, c.says) || !strings.HasPrefix(text, fmt.Sprintf("alert %d: ", c.number)) {
				t.Errorf("%s, %s: alert %d, %q, from %v", name, tls.VersionName(version), number, text, err)
			}
		}
	}
	err := alertFrom(t, tls.VersionTLS13, judge, nil)
	if number, _ := Alert(err); number != 116 {
		t.Errorf("no certificate: %v", err)
	}
	for _, err := range []error{nil, errors.New("remote error: tls: revoked certificate"), &net.OpError{Op: "dial", Err: tls.AlertError(44)}} {
		if text := ExplainAlert(err, nil, time.Now()); text != "" {
			t.Errorf("%v is no alert: %s", err, text)
		}
	}
	for number, says := range map[uint8]string{44: "revoked", 45: "CRL", 46: "CRL", 51: "CRL", 40: "handshake", 99: "alert 99"} {
		err := &net.OpError{Op: "remote error", Err: tls.AlertError(number)}
		if text := ExplainAlert(fmt.Errorf("wrapped: %w", err), good.Certificate, time.Now()); !strings.Contains(text, says) {
			t.Errorf("alert %d: %q", number, text)
		}
	}
}

// TestAlertBecomesAnError: the server refuses the certificate in TLS, which with TLS 1.3 shows only when the answer is read.
func TestAlertBecomesAnError(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, maxVersion(version), func(c *tls.Config, _ *testpki.Authority) {
				c.ClientAuth = tls.RequireAndVerifyClientCert
				c.ClientCAs = x509.NewCertPool()
			})
			c := p.client()
			pair := p.ca.Leaf(t, "dev-1").TLS()
			c.Certificate = func() (*tls.Certificate, error) { return &pair, nil }
			_, err := c.CACerts(testContext(t))
			var e *Error
			if !errors.As(err, &e) || e.Reason != "tls_alert" || !strings.Contains(e.Message, "alert 48") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	e := &Error{Operation: "simpleenroll", Status: 503, Reason: "unavailable", Message: "the CA waits", RetryAfter: time.Minute}
	if got := e.Error(); got != "simpleenroll: 503: unavailable: the CA waits (retry after 1m0s)" {
		t.Error(got)
	}
	if Refused(errors.New("x")) || Refused(e) || !Refused(fmt.Errorf("y: %w", &Error{Status: 403})) {
		t.Error("Refused")
	}
}
