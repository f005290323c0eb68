// Three years without an operator: server, bridge, broker and device run on one test clock that goes in steps of six and a half days, just less than a
// CRL lives. Every certificate that they live on is renewed in time and swapped while they run, no CRL ever expires, and at the end telemetry still
// arrives and a revocation still bites. mosquitto, which knows no test clock, gets the time from libfaketime.

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

const (
	day        = 24 * time.Hour
	threeYears = 3 * 365 * day
	yearStep   = 13 * day / 2
)

// calendar moves the test clock and libfaketime together.
type calendar struct {
	*harness.Clock
	file  string
	shift time.Duration
}

func newCalendar(t *testing.T) *calendar {
	t.Helper()
	c := &calendar{Clock: harness.NewClock(t), file: filepath.Join(filepath.Dir(openDir(t)), "faketime")}
	c.set(t, 0)
	return c
}

// set moves mosquitto first: what the others make must not lie in its future.
func (c *calendar) set(t *testing.T, shift time.Duration) {
	t.Helper()
	if err := atomicfile.Write(c.file, []byte(fmt.Sprintf("+%d", int64(shift.Seconds()))), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Set(t, shift)
	c.shift = shift
}

func (c *calendar) now() time.Time { return time.Now().Add(c.shift) }

// faketime is the environment that makes a program of the system follow. Waiting is not shifted, only the date is.
func (c *calendar) faketime(t *testing.T) []string {
	t.Helper()
	libraries, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if err != nil || len(libraries) == 0 {
		t.Fatalf("libfaketime is not installed, %v", err)
	}
	return []string{"LD_PRELOAD=" + libraries[0], "FAKETIME_TIMESTAMP_FILE=" + c.file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"}
}

// history is what was seen of one thing that is renewed.
type history struct {
	name        string
	serials     []string
	least, most int // certificates in three years
}

func (h *history) see(leaf *x509.Certificate) {
	if serial := leaf.SerialNumber.Text(16); len(h.serials) == 0 || h.serials[len(h.serials)-1] != serial {
		h.serials = append(h.serials, serial)
	}
}

func TestThreeYears(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "faketime")
	c := newCalendar(t)
	s := harness.StartServer(t, harness.ServerOptions{Hooks: true, Env: []string{c.Env()}})
	b := startBroker(t, s, brokerOptions{hooks: true, env: []string{c.Env()}, faketime: c.faketime(t), settings: map[string]string{"poll": "1s", "prove_every": "1s"}})
	witness := b.witness(t, "-t", "#")
	device := filepath.Join(t.TempDir(), "device")
	agent := harness.Command{Path: harness.HooksBinary(t, "estclient-example"), Env: []string{c.Env()},
		Args: b.agentArgs("SN-000001", device, telemetryTopic, birthFlags(t, factory(t, s).Birth(t, "SN-000001"))...)}.Start(t)
	waitOutput(t, witness, telemetryTopic)
	processes := map[string]*harness.Process{"the server": s.Process, "the bridge": b.bridge, "mosquitto": b.mosquitto, "the agent": agent}

	// 60 days of 90, and of a year two thirds, give or take a tenth.
	server, bridge := &history{name: "the EST server's certificate", least: 16, most: 20}, &history{name: "the bridge's certificate", least: 4, most: 7}
	mqtt, own := &history{name: "the broker's certificate", least: 4, most: 7}, &history{name: "the device's certificate", least: 4, most: 7}
	number := big.NewInt(0)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("at %v: the broker's CRL has number %v of %v\n%s\n%s", c.now(), b.bundleCRL(t).Number, b.bundleCRL(t).ThisUpdate,
				s.CLI(t, "crl", "list").Stdout, get(t, "http://"+b.metrics+"/status"))
		}
	})
	for shift := time.Duration(0); shift <= threeYears; shift += yearStep {
		if crl := b.bundleCRL(t); !crl.NextUpdate.After(time.Now().Add(shift)) {
			t.Fatalf("after %v: the broker's CRL expires on %v", shift, crl.NextUpdate)
		}
		c.set(t, shift)
		again := time.Now().Add(3 * time.Second)
		harness.Eventually(t, patience, fmt.Sprintf("a fresh CRL, proven at the broker, %v from now", shift), func() bool {
			if time.Now().After(again) { // the step met a CRL in the making, with the time before it: the next one comes in an hour
				again = again.Add(3 * time.Second)
				c.set(t, c.shift+time.Hour)
			}
			crl := b.bundleCRL(t)
			return c.now().Sub(crl.ThisUpdate) < 2*time.Hour && sample(t, b.metrics, `bridge_crl_number{issuer="devices"}`) == float64(crl.Number.Int64())
		})
		crl := b.bundleCRL(t)
		if crl.Number.Cmp(number) <= 0 {
			t.Errorf("after %v: CRL number %v after %v", shift, crl.Number, number)
		}
		number = crl.Number
		for name, p := range processes {
			if !p.Running() {
				t.Fatalf("after %v: %s has ended:\n%s", shift, name, p.Output())
			}
		}
		server.see(b.presented(t, c, s.EST, server.name))
		mqtt.see(b.presented(t, c, b.devices, mqtt.name))
		bridge.see(leafOf(t, b.path("identity/cert.pem")))
		own.see(leafOf(t, filepath.Join(device, "cert.pem")))
	}
	for _, h := range []*history{server, bridge, mqtt, own} {
		t.Logf("%s: %d in three years", h.name, len(h.serials))
		if n := len(h.serials); n < h.least || n > h.most {
			t.Errorf("%s: %d in three years, want %d to %d", h.name, n, h.least, h.most)
		}
	}

	// At the end everything is as on the first day.
	harness.Eventually(t, patience, "telemetry with the last certificate", func() bool {
		return strings.Contains(witness.Output(), `"certificate_serial":"`+own.serials[len(own.serials)-1]+`"`) ||
			strings.Contains(witness.Output(), `"certificate_serial":"0`+own.serials[len(own.serials)-1]+`"`)
	})
	late := filepath.Join(t.TempDir(), "late")
	harness.Command{Path: harness.HooksBinary(t, "estclient-example"), Env: []string{c.Env()}, Args: []string{"enroll", "--server", s.URL(), "--trust", s.Trust(),
		"--dir", late, "--id", "SN-late", "--code-file", s.CodeFile(t, "SN-late")}}.MustRun(t)
	began := time.Now()
	s.MustCLI(t, "device", "revoke", "SN-000001", "--reason", "keyCompromise")
	waitOutput(t, agent, "alert 44")
	t.Logf("revoked after three years: refused after %v", time.Since(began))
	if n := sample(t, b.metrics, "bridge_rollbacks_total"); n != 0 {
		t.Errorf("%v roll-backs", n)
	}
}

// bundleCRL is the CRL that the broker has on disk.
func (b *broker) bundleCRL(t *testing.T) *x509.RevocationList {
	t.Helper()
	data, err := os.ReadFile(b.path("bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			t.Fatal("no CRL in the bundle")
		}
		if block.Type == "X509 CRL" {
			crl, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			return crl
		}
	}
}

// presented is the server certificate that an address presents, verified by the clock's time.
func (b *broker) presented(t *testing.T, c *calendar, address, name string) *x509.Certificate {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(readText(t, b.server.Trust())))
	var leaf *x509.Certificate
	var last error
	ok := func() bool {
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, Time: c.now, ServerName: "localhost"})
		if err != nil {
			last = err
			return false
		}
		defer conn.Close()
		leaf = conn.ConnectionState().PeerCertificates[0]
		return true
	}
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s, %v from now: %v", name, c.shift, last)
		}
	}
	return leaf
}

func leafOf(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	return testpki.ParsePEM(t, []byte(readText(t, path)))[0]
}
