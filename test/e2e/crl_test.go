// Revocation lists as brokers meet them: there from the start, valid for seven days or for what is configured, reissued
// in time, numbered upwards, and complete at once after a revocation.

package e2e

import (
	"crypto/x509"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func fetchCRL(t *testing.T, s *harness.Server, ca string) *x509.RevocationList {
	t.Helper()
	status, der, header := s.Get(t, "http://"+s.Public+"/crl/"+ca+".crl")
	if status != http.StatusOK {
		t.Fatalf("CRL of %s: %d %s", ca, status, der)
	}
	for name, want := range map[string]string{"Content-Type": "application/pkix-crl", "Cache-Control": "max-age=", "Etag": `"`} {
		if !strings.Contains(header.Get(name), want) {
			t.Errorf("CRL of %s: header %s is %q, want %q in it", ca, name, header.Get(name), want)
		}
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatalf("CRL of %s: %v", ca, err)
	}
	return list
}

func TestCRLSchedule(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		set   []string
		valid time.Duration
	}{
		{"default", nil, 7 * 24 * time.Hour},
		{"24 hours", []string{"crl", "set", "devices", "--valid", "24h", "--interval", "1h"}, 24 * time.Hour},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			clock := harness.NewClock(t)
			data := filepath.Join(t.TempDir(), "data")
			pass := passphraseFile(t)
			server := harness.HooksBinary(t, "est-server")
			harness.MustRun(t, server, "init", "--data", data, "--passphrase-file", pass, "--host", "127.0.0.1")
			s := harness.StartServer(t, harness.ServerOptions{Verb: "serve", Data: data, Hooks: true, Env: []string{clock.Env()},
				Args: []string{"--passphrase-file", pass}})
			if tc.set != nil {
				s.MustCLI(t, tc.set...)
				s.MustCLI(t, "crl", "issue", "devices")
			}

			first := fetchCRL(t, s, "devices")
			if len(first.RevokedCertificateEntries) != 0 {
				t.Errorf("%d entries, want none", len(first.RevokedCertificateEntries))
			}
			const backdate = 5 * time.Minute
			if valid := first.NextUpdate.Sub(first.ThisUpdate); valid != tc.valid+backdate {
				t.Errorf("valid for %v, want %v and the backdate", valid, tc.valid)
			}
			if age := time.Since(first.ThisUpdate); age < backdate || age > backdate+time.Minute {
				t.Errorf("thisUpdate is %v ago, want 5 minutes", age)
			}
			// An hour later there is another one, by itself; after half a day without a server, one as soon as it is back.
			number := first.Number
			for _, later := range []time.Duration{61 * time.Minute, 122 * time.Minute} {
				clock.Set(t, later)
				harness.Eventually(t, 20*time.Second, "the hourly CRL", func() bool { return fetchCRL(t, s, "devices").Number.Cmp(number) > 0 })
				list := fetchCRL(t, s, "devices")
				if want := time.Now().Add(later - backdate); list.ThisUpdate.Before(want.Add(-2*time.Minute)) || list.ThisUpdate.After(want.Add(time.Minute)) {
					t.Errorf("after %v: thisUpdate %v, want about %v", later, list.ThisUpdate, want)
				}
				number = list.Number
			}
			s.Stop(t)
			clock.Set(t, 14*time.Hour)
			s.Start(t)
			harness.Eventually(t, 20*time.Second, "a CRL after the restart", func() bool { return fetchCRL(t, s, "devices").Number.Cmp(number) > 0 })
			if list := fetchCRL(t, s, "devices"); list.NextUpdate.Before(time.Now().Add(14*time.Hour + tc.valid/2)) {
				t.Errorf("after the restart the CRL ends at %v", list.NextUpdate)
			}
		})
	}
}

func TestEveryCAHasACRLFromTheStart(t *testing.T) {
	t.Parallel()
	harness.RequirePrograms(t, "openssl")
	s := harness.StartServer(t, harness.ServerOptions{})
	dir := t.TempDir()
	for _, ca := range []string{"root", "devices", "management"} {
		fetchCRL(t, s, ca)
		for _, ext := range []string{"crl", "pem", "crt", "der"} {
			path := "/ca/" + ca + "." + ext
			if ext == "crl" {
				path = "/crl/" + ca + ".crl"
			}
			status, body, _ := s.Get(t, "http://"+s.Public+path)
			if status != http.StatusOK {
				t.Fatalf("%s: %d", path, status)
			}
			_, again, _ := s.Get(t, "http://"+s.Public+path)
			if string(again) != string(body) {
				t.Errorf("%s is not the same the second time", path)
			}
			if err := os.WriteFile(filepath.Join(dir, ca+"."+ext), body, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := harness.Command{Path: harness.Program(t, "openssl"), Dir: dir,
			Args: []string{"crl", "-inform", "DER", "-in", ca + ".crl", "-noout", "-CAfile", ca + ".pem"}}.MustRun(t)
		if !strings.Contains(r.Output(), "verify OK") {
			t.Errorf("openssl crl for %s: %s", ca, r.Output())
		}
		der := openssl(t, dir, "x509", "-inform", "DER", "-in", ca+".der", "-outform", "PEM")
		if pem := openssl(t, dir, "x509", "-in", ca+".pem", "-outform", "PEM"); pem != der {
			t.Errorf("/ca/%s.pem and .der differ", ca)
		}
	}
}

func TestRevocationIsInTheNextCRLAndEndsEST(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	d := newOpensslDevice(t, "SN-REVOKED")
	d.newKey(t, "ec:P-256")
	code := s.CodeFile(t, d.id)
	if a := d.enroll(t, s, "simpleenroll", code); a.status != 200 {
		t.Fatalf("enroll: %d %s", a.status, a.body)
	}
	text := d.text(t)
	for _, want := range []string{"/crl/devices.crl", "/ca/devices."} {
		if !strings.Contains(text, want) {
			t.Errorf("the certificate does not say where to find %s:\n%s", want, text)
		}
	}
	before := fetchCRL(t, s, "devices").Number
	s.MustCLI(t, "device", "revoke", d.id, "--reason", "keyCompromise")

	// Neither the certificate nor the code nor the redelivery of the same request gets anything any more.
	if a := d.enroll(t, s, "simpleenroll", code); a.status != 401 {
		t.Errorf("the code after the revocation: %d %s, want 401", a.status, a.body)
	}
	if a := d.reenroll(t, s, "simplereenroll", "ec:P-256"); a.status != 401 {
		t.Errorf("the certificate after the revocation: %d %s, want 401", a.status, a.body)
	}
	serial := strings.ToLower(strings.TrimPrefix(strings.TrimSpace(d.openssl(t, "x509", "-in", "cert.pem", "-noout", "-serial")), "serial="))
	if len(serial) != 34 {
		t.Errorf("serial number %s has %d digits, want 34", serial, len(serial))
	}
	var list *x509.RevocationList
	harness.Eventually(t, 5*time.Second, "a new CRL", func() bool {
		list = fetchCRL(t, s, "devices")
		return list.Number.Cmp(before) > 0
	})
	for _, e := range list.RevokedCertificateEntries {
		if got := e.SerialNumber.Text(16); strings.TrimLeft(serial, "0") == got {
			if e.ReasonCode != 1 {
				t.Errorf("reason code %d, want 1 (keyCompromise)", e.ReasonCode)
			}
			return
		}
	}
	t.Errorf("serial number %s is not in CRL %v", serial, list.Number)
}
