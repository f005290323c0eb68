// The clock of the server's machine jumps while devices enroll: an hour and a day back, ten years ahead, and home again.

package crash_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

const (
	backdate = 5 * time.Minute // of the profile iot-device and of CRLs
	slack    = time.Minute     // between the clock of the test and that of the server
)

func TestClockJumpsWhileDevicesEnroll(t *testing.T) {
	clock := harness.NewClock(t)
	s := newSite(t, harness.ServerOptions{Hooks: true, Env: []string{clock.Env()}}, "")
	const tenYears = 10 * 365 * 24 * time.Hour
	var first *device
	for _, jump := range []time.Duration{-time.Hour, -24 * time.Hour} {
		devices := s.jump(t, clock, fmt.Sprint("back-", int(-jump.Hours())), 0, jump)
		s.mustBeBehind(t, -jump)
		s.mustRefuse(t, devices[0])
		clock.Set(t, 0)
		s.waitReady(t)
		s.mustAllEnroll(t, devices, 0)
		first = devices[0]
	}
	s.jump(t, clock, "ahead", 0, tenYears) // those that come too late find their codes ended
	s.waitReady(t)
	s.mustAllEnroll(t, []*device{s.newDevice(t, "ahead", testpki.Key(t, "ec:P-256"))}, tenYears)
	ahead := s.mustHaveCRL(t, tenYears)

	left := s.newDevice(t, "left", testpki.Key(t, "ec:P-256"))
	clock.Set(t, 0)
	s.mustBeBehind(t, tenYears)
	s.mustRefuse(t, left)
	s.Stop(t) // a new process is no wiser
	s.Launch(t)
	s.mustBeBehind(t, tenYears)
	s.mustRefuse(t, left)
	s.MustCLI(t, "audit", "accept-clock", "--reason", "the clock was wrong")
	s.waitReady(t)
	later := s.newDevice(t, "later", testpki.Key(t, "ec:P-256"))
	s.mustAllEnroll(t, []*device{later}, 0)
	if err := s.revoke(first.serial()); err != nil {
		t.Error(err)
	}
	list := s.mustHaveCRL(t, 0)
	if list.Number.Cmp(ahead.Number) <= 0 {
		t.Errorf("CRL %v after CRL %v", list.Number, ahead.Number)
	}
	s.mustList(t, []string{first.serial()})
	s.MustCLI(t, "audit", "verify")
}

// jump moves the clock in the middle of enrollments, of which some are answered before it and some after.
func (s *site) jump(t *testing.T, clock *harness.Clock, name string, from, to time.Duration) []*device {
	t.Helper()
	const many = 8
	var devices []*device
	for n := range many {
		devices = append(devices, s.newDevice(t, fmt.Sprintf("%s-%d", name, n), testpki.Key(t, "ec:P-256")))
	}
	var wg sync.WaitGroup
	for n, d := range devices {
		wg.Go(func() {
			if n == many/2 {
				clock.Set(t, to)
			}
			d.tryAt(t, s, from, to)
		})
	}
	wg.Wait()
	return devices
}

// tryAt enrolls once; a certificate, if there is one, must be of one of the times that the clock showed.
func (d *device) tryAt(t *testing.T, s *site, offsets ...time.Duration) (status int) {
	t.Helper()
	c := s.client(0)
	defer c.CloseIdleConnections()
	transport := c.Transport.(*http.Transport)
	transport.TLSClientConfig.InsecureSkipVerify = true // this machine's clock shows another time than the server's, and is of no interest
	status, certificate, err := s.enroll(c, d, d.csr(t, d.key))
	if certificate == nil {
		ended := status == http.StatusUnauthorized && len(offsets) > 0 && slices.Max(offsets) > registration.DefaultCodeLife
		if status != http.StatusServiceUnavailable && !ended {
			t.Errorf("%s: status %d, %v", d.id, status, err)
		}
		return status
	}
	for _, offset := range offsets {
		if age := time.Now().Add(offset).Sub(certificate.NotBefore); age >= backdate-slack && age <= backdate+slack {
			d.got = append(d.got, certificate)
			return status
		}
	}
	t.Errorf("%s: a certificate from %v on", d.id, certificate.NotBefore)
	return status
}

func (s *site) mustAllEnroll(t *testing.T, devices []*device, offset time.Duration) {
	t.Helper()
	for _, d := range devices {
		if len(d.got) == 0 {
			harness.Eventually(t, 20*time.Second, d.id+" to be enrolled", func() bool { return d.tryAt(t, s, offset) == http.StatusOK || t.Failed() })
		}
	}
}

func (s *site) mustRefuse(t *testing.T, d *device) {
	t.Helper()
	if status := (&device{id: d.id, code: d.code, key: d.key}).tryAt(t, s); status != http.StatusServiceUnavailable {
		t.Errorf("%s: status %d while the clock is behind", d.id, status)
	}
}

func (s *site) waitReady(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "the server to be ready", s.Ready)
}

func (s *site) page(path string) string {
	client := http.Client{Timeout: 10 * time.Second}
	answer, err := client.Get("http://" + s.Metrics + path)
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	return string(body)
}

var behindMetric = regexp.MustCompile(`(?m)^est_clock_behind_seconds (\S+)$`)

// mustBeBehind: /readyz and the metric say that the clock is behind, by how much.
func (s *site) mustBeBehind(t *testing.T, by time.Duration) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "/readyz to say clock_behind", func() bool { return strings.Contains(s.page("/readyz"), "clock_behind") })
	harness.Eventually(t, 30*time.Second, "est_clock_behind_seconds to say by how much", func() bool {
		m := behindMetric.FindStringSubmatch(s.page("/metrics"))
		if m == nil {
			return false
		}
		seconds, err := strconv.ParseFloat(m[1], 64)
		return err == nil && seconds > (by-3*time.Minute).Seconds() && seconds < (by+3*time.Minute).Seconds()
	})
}

// mustHaveCRL returns the CRL of devices, which began and does not end by the server's clock.
func (s *site) mustHaveCRL(t *testing.T, offset time.Duration) (list *x509.RevocationList) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "a CRL that is in force", func() bool {
		answer, err := http.Get("http://" + s.Public + "/crl/devices.crl")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		var der bytes.Buffer
		if _, err := der.ReadFrom(answer.Body); err != nil {
			return false
		}
		list, err = x509.ParseRevocationList(der.Bytes())
		now := time.Now().Add(offset)
		return err == nil && !list.ThisUpdate.After(now) && list.NextUpdate.After(now)
	})
	return list
}
