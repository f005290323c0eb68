// One CA after another, as an operator does it: a new issuing CA and a new root, under devices that enroll, renew and publish all the while.

package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/natal-pki/natal/client"
	"github.com/natal-pki/natal/test/e2e/harness"
)

// churn enrolls and renews devices until stop is called; none of them may be refused. stop returns how many certificates were had.
func churn(t *testing.T, s *harness.Server) (stop func() int) {
	t.Helper()
	agent, trust := harness.Binary(t, "estclient-example"), s.Trust()
	done := make(chan struct{})
	var wait sync.WaitGroup
	var mu sync.Mutex
	had := 0
	for n := range 2 {
		id := fmt.Sprintf("churn-%d", n)
		dir, code := filepath.Join(t.TempDir(), id), s.CodeFile(t, id)
		wait.Go(func() {
			args := []string{"enroll", "--server", s.URL(), "--trust", trust, "--dir", dir, "--id", id, "--code-file", code}
			for {
				if r := harness.Run(t, agent, args...); r.Code != 0 {
					t.Errorf("%s: %s", id, r.Output())
					return
				}
				mu.Lock()
				had++
				mu.Unlock()
				args = []string{"reenroll", "--server", s.URL(), "--dir", dir}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	return func() int {
		close(done)
		wait.Wait()
		return had
	}
}

// activate repeats the command until the gate is open.
func activate(t *testing.T, s *harness.Server, name string) {
	t.Helper()
	harness.Eventually(t, patience, "every bridge to know "+name, func() bool { return s.CLI(t, "ca", "activate", name).Code == 0 })
}

// issuerOf is the CN of the CA that issued what is in a device's directory.
func issuerOf(t *testing.T, dir string) string {
	t.Helper()
	certs, err := client.ParseCertificates([]byte(readText(t, filepath.Join(dir, "cert.pem"))))
	if err != nil {
		t.Fatal(err)
	}
	return certs[0].Issuer.CommonName
}

func TestIssuingCARollover(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{topics: []string{"write " + telemetryTopic}})
	witness := b.witness(t, "-t", telemetryTopic)
	old := enrollDevice(t, s, "dev-old")
	b.publishUntilSeen(t, witness, old, telemetryTopic, "before-dev-old")
	stop := churn(t, s)

	b.bridge.Stop(t)
	out := s.MustCLI(t, "ca", "rollover", "devices").Stdout
	if !strings.Contains(out, "CA devices-2 is standby, to take over from devices") {
		t.Errorf("ca rollover says:\n%s", out)
	}
	if r := s.CLI(t, "ca", "activate", "devices-2"); r.Code != 1 || !strings.Contains(r.Stderr, "localhost (broker") {
		t.Errorf("activated while the bridge is away: exit code %d\n%s", r.Code, r.Output())
	}
	if out := s.MustCLI(t, "ca", "show", "devices-2").Stdout; !strings.Contains(out, "waits for:") {
		t.Errorf("ca show does not say what it waits for:\n%s", out)
	}
	if r := s.CLI(t, "ca", "activate", "devices-2", "--override"); r.Code != 2 {
		t.Errorf("override without a reason: exit code %d\n%s", r.Code, r.Output())
	}
	b.startBridge(t)
	activate(t, s, "devices-2")
	if state := caState(t, s, "devices"); state != "retiring" {
		t.Errorf("the old CA is %s", state)
	}

	// A new device and one that renews are with the new CA, and the broker knows both of them and the one that has not renewed yet.
	fresh, moved := enrollDevice(t, s, "dev-new"), enrollDevice(t, s, "dev-moved")
	if got := issuerOf(t, fresh); got != "Natal Device CA 2" {
		t.Errorf("issued by %s", got)
	}
	harness.MustRun(t, harness.Binary(t, "estclient-example"), "reenroll", "--server", s.URL(), "--dir", moved)
	for id, dir := range map[string]string{"dev-old": old, "dev-new": fresh, "dev-moved": moved} {
		b.publishUntilSeen(t, witness, dir, telemetryTopic, "after-"+id)
	}
	if n := stop(); n < 4 {
		t.Errorf("%d certificates while the CA was rolled over", n)
	}

	if r := s.CLI(t, "ca", "retire", "devices"); r.Code != 1 || !strings.Contains(r.Stderr, "certificates in use, the last of them until") {
		t.Errorf("retired while in use: exit code %d\n%s", r.Code, r.Output())
	}
	s.MustCLI(t, "ca", "retire", "devices", "--override", "--reason", "the test is over")
	if state := caState(t, s, "devices"); state != "retired" {
		t.Errorf("the old CA is %s", state)
	}
	// Its last list is there, and a device that comes late still gets to the new CA.
	harness.MustRun(t, harness.Binary(t, "estclient-example"), "reenroll", "--server", s.URL(), "--dir", old)
	if got := issuerOf(t, old); got != "Natal Device CA 2" {
		t.Errorf("renewed by %s", got)
	}
	status, der, _ := s.Get(t, "http://"+s.Public+"/crl/devices.crl")
	crl, err := x509.ParseRevocationList(der)
	if status != 200 || err != nil || crl.NextUpdate.Sub(crl.ThisUpdate).Hours() < 9*365*24 {
		t.Errorf("last CRL: %d, %v", status, err)
	}
	s.MustCLI(t, "audit", "verify")
}

func TestRootRollover(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{topics: []string{"write " + telemetryTopic}})
	witness := b.witness(t, "-t", telemetryTopic)
	pinned := filepath.Join(t.TempDir(), "old-trust.pem")
	writeText(t, pinned, readText(t, s.Trust()))
	old := enrollDevice(t, s, "dev-old")
	stop := churn(t, s)

	s.MustCLI(t, "ca", "rollover", "root")
	activate(t, s, "root-2") // the bridge takes the new root without an operator: the old one vouches for it
	for _, name := range []string{"management", "devices"} {
		s.MustCLI(t, "ca", "rollover", name)
		activate(t, s, name+"-2")
	}
	var chain [][]byte
	harness.Eventually(t, patience, "the server's certificate from the new CA", func() bool {
		chain = presented(t, s)
		return len(chain) == 3
	})
	harness.Eventually(t, patience, "both roots in trust.pem", func() bool { return strings.Count(readText(t, s.Trust()), "BEGIN CERTIFICATE") == 2 })

	// A device of old renews, trusts both roots from then on, and reaches the broker.
	agent := harness.Binary(t, "estclient-example")
	harness.MustRun(t, agent, "reenroll", "--server", s.URL(), "--dir", old)
	if n := strings.Count(readText(t, filepath.Join(old, "trust.pem")), "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("the device trusts %d roots after its renewal", n)
	}
	if got := issuerOf(t, old); got != "Natal Device CA 2" {
		t.Errorf("renewed by %s", got)
	}
	b.publishUntilSeen(t, witness, old, telemetryTopic, "after-dev-old")

	// New devices that were given one of the two roots, the old or the new.
	roots, err := client.ParseCertificates([]byte(readText(t, s.Trust())))
	if err != nil {
		t.Fatal(err)
	}
	newest := filepath.Join(t.TempDir(), "new-trust.pem")
	writeText(t, newest, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: roots[0].Raw})))
	for id, trust := range map[string]string{"dev-pinned-old": pinned, "dev-pinned-new": newest} {
		dir := filepath.Join(t.TempDir(), id)
		harness.MustRun(t, agent, "enroll", "--server", s.URL(), "--trust", trust, "--dir", dir, "--id", id, "--code-file", s.CodeFile(t, id))
	}
	// openssl agrees, with either root.
	for _, trust := range []string{pinned, newest} {
		verify(t, trust, chain)
	}
	stop()

	// An administrator and the bridge, both with certificates of the old management CA, are let in.
	harness.MustRun(t, s.Binary, "ca", "list", "--server", "https://"+s.Admin, "--cert", filepath.Join(s.Data, "admin", "cert.pem"), "--key", filepath.Join(s.Data, "admin", "key.pem"), "--trust", pinned)
	b.bridge.Stop(t)
	b.startBridge(t)
	b.waitReady(t)
	s.MustCLI(t, "ca", "retire", "devices", "--override", "--reason", "test")
	if r := s.CLI(t, "ca", "retire", "root"); r.Code != 1 || !strings.Contains(r.Stderr, "1 certificates in use") { // that of management
		t.Errorf("exit code %d\n%s", r.Code, r.Output())
	}
}

// presented is the chain of the EST server's certificate.
func presented(t *testing.T, s *harness.Server) [][]byte {
	t.Helper()
	answer, err := s.HTTP(t).Get(s.URL() + "/.well-known/est/cacerts")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	var chain [][]byte
	for _, c := range answer.TLS.PeerCertificates {
		chain = append(chain, c.Raw)
	}
	return chain
}

func verify(t *testing.T, trust string, chain [][]byte) {
	t.Helper()
	dir := t.TempDir()
	var above bytes.Buffer
	for _, der := range chain[1:] {
		pem.Encode(&above, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0]})
	for name, content := range map[string][]byte{"leaf.pem": leaf, "above.pem": above.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openssl(t, dir, "verify", "-CAfile", trust, "-untrusted", "above.pem", "leaf.pem")
}
