// The drill: a backup made while devices enroll, an installation that goes on and is then lost, and the backup put back into the running
// fleet.

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/invariants"
	"github.com/natal-pki/natal/test/testpki"
)

// recovery is how long a restore may take until the server is ready. The promise to operators is minutes; on this amount of data it is seconds.
const recovery = time.Minute

// given are the highest numbers that an installation has shown to the world.
type given struct {
	Audit int64
	CRLs  map[string]int64
}

func givenOut(t *testing.T, s *harness.Server) given {
	t.Helper()
	var head struct{ Seq int64 }
	var crls struct {
		Items []struct {
			CA     string
			Number int64
		}
	}
	for command, into := range map[string]any{"audit head --json": &head, "crl list --json": &crls} {
		if err := json.Unmarshal([]byte(s.MustCLI(t, strings.Fields(command)...).Stdout), into); err != nil {
			t.Fatal(err)
		}
	}
	out := given{Audit: head.Seq, CRLs: map[string]int64{}}
	for _, crl := range crls.Items {
		out.CRLs[crl.CA] = max(out.CRLs[crl.CA], crl.Number)
	}
	return out
}

func TestRestoreDrill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pass := testpki.WriteFile(t, filepath.Join(dir, "pass"), []byte("only for a test\n"))
	s := harness.StartServer(t, harness.ServerOptions{Args: []string{"--passphrase-file", pass}})
	b := startBroker(t, s, brokerOptions{})
	witness := b.witness(t, "-t", "#")
	birth := factory(t, s)
	steady := b.agent(t, "steady", filepath.Join(dir, "steady"), telemetryTopic, "--code-file", s.CodeFile(t, "steady"))
	doomed, renewer := enrollDevice(t, s, "doomed"), enrollDevice(t, s, "renewer")
	waitOutput(t, steady, "telemetry published")
	waiting := s.CodeFile(t, "waiting")

	identity, file := backUpWhileEnrolling(t, s, dir)

	// The installation goes on: a code is used, devices come and go, CRLs are published. Then the machine is lost.
	lost := filepath.Join(dir, "lost")
	enrollInto(t, s, lost, "waiting", waiting)
	b.publishUntilSeen(t, witness, lost, telemetryTopic, "from a device that the backup does not know")
	born := append([]string{"enroll", "--server", s.URL(), "--trust", filepath.Join(dir, "trust.pem"), "--id", "born"}, birthFlags(t, birth.Birth(t, "born"))...)
	testpki.WriteFile(t, filepath.Join(dir, "trust.pem"), []byte(readText(t, s.Trust())))
	client := harness.Binary(t, "estclient-example")
	harness.MustRun(t, client, append(born, "--dir", filepath.Join(dir, "born"))...)
	s.MustCLI(t, "device", "revoke", "doomed", "--reason", "keyCompromise")
	bornSerial := certificates(t, s, "--device", "born")[0].Serial
	s.MustCLI(t, "cert", "revoke", bornSerial, "--reason", "keyCompromise")
	crl := filepath.Join(dir, "newest.crl")
	s.MustCLI(t, "crl", "get", "devices", "--format", "der", "--out", crl)
	before := givenOut(t, s)
	harness.Eventually(t, patience, "the broker to hold the newest CRL", func() bool { return b.bundleCRL(t).Number.Int64() == before.CRLs["devices"] })
	harness.Eventually(t, patience, "the access list to have the device that the backup does not know", func() bool {
		return strings.Contains(readText(t, b.path("devices.acl")), "user born\n")
	})
	s.Kill()
	if err := os.RemoveAll(s.Data); err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	r := harness.Command{Path: s.Binary, Args: []string{"restore", file, "--data", s.Data, "--identity", identity, "--passphrase-file", pass, "--crl", crl, "--statement", "drill"}}.MustRun(t)
	s.Start(t)
	took := time.Since(began)
	t.Logf("restored and ready after %v\n%s", took, r.Stdout)
	if took > recovery {
		t.Errorf("ready after %v, want %v at most", took, recovery)
	}
	for _, want := range []string{"epoch 2 begins", "1 certificates on record, 1 that are not", "device doomed is revoked"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("restore does not say %q:\n%s", want, r.Stdout)
		}
	}

	after := givenOut(t, s)
	if after.Audit <= before.Audit {
		t.Errorf("audit entry %d after %d", after.Audit, before.Audit)
	}
	for ca, number := range before.CRLs {
		if after.CRLs[ca] <= number {
			t.Errorf("CRL %d of %s after %d", after.CRLs[ca], ca, number)
		}
	}
	fleetAfterRestore(t, b, fleet{before: before, witness: witness, steady: steady, doomed: doomed, renewer: renewer, lost: lost, waiting: waiting})
	harness.MustRun(t, client, append(born, "--dir", filepath.Join(dir, "born-again"))...)
	b.publishUntilSeen(t, witness, filepath.Join(dir, "born-again"), telemetryTopic, "enrolled again by birth certificate")
	invariants.Require(t, "sqlite:"+filepath.Join(s.Data, "est.db"), invariants.State{})
}

// backUpWhileEnrolling makes and checks a backup while devices enroll.
func backUpWhileEnrolling(t *testing.T, s *harness.Server, dir string) (identityFile, file string) {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	identityFile, file = testpki.WriteFile(t, filepath.Join(dir, "identity"), []byte(identity.String()+"\n")), filepath.Join(dir, "backup.age")
	codes := make([]string, 6)
	for n := range codes {
		codes[n] = s.CodeFile(t, fmt.Sprintf("busy-%d", n))
	}
	var busy sync.WaitGroup
	for n, code := range codes {
		busy.Go(func() {
			enrollInto(t, s, filepath.Join(dir, fmt.Sprintf("busy-%d", n)), fmt.Sprintf("busy-%d", n), code)
		})
	}
	s.MustCLI(t, "backup", file, "--recipient", identity.Recipient().String())
	busy.Wait()
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if text := readText(t, file); !strings.HasPrefix(text, "age-encryption.org/v1\n") || strings.Contains(text, "ENCRYPTED PRIVATE KEY") || strings.Contains(text, "SQLite format") {
		t.Error("the backup is not encrypted")
	}
	if r := s.CLI(t, "backup", file, "--recipient", identity.Recipient().String()); r.Code != 1 || !strings.Contains(r.Stderr, "nothing is overwritten") {
		t.Errorf("a backup over another: %s", r.Output())
	}
	if r := s.CLI(t, "backup", file+".2"); r.Code == 0 {
		t.Error("a backup in clear")
	}
	if r := s.MustCLI(t, "backup", file, "--verify", "--identity", identityFile); !strings.Contains(r.Stdout, "the backup is whole") {
		t.Errorf("backup --verify: %s", r.Output())
	}
	return identityFile, file
}

// fleet is what meets the restored server.
type fleet struct {
	before                         given
	witness, steady                *harness.Process
	doomed, renewer, lost, waiting string
}

func fleetAfterRestore(t *testing.T, b *broker, f fleet) {
	t.Helper()
	s := b.server
	harness.Eventually(t, 2*patience, "the broker to hold a CRL of the new epoch", func() bool { return b.bundleCRL(t).Number.Int64() > f.before.CRLs["devices"] })
	if out := b.bridge.Output(); strings.Contains(out, "msg=refused") {
		t.Errorf("the bridge refused something:\n%s", out)
	}
	harness.Eventually(t, patience, "the access list to lose the device that is known no more", func() bool {
		return !strings.Contains(readText(t, b.path("devices.acl")), "user born\n")
	})
	published := strings.Count(f.witness.Output(), telemetryTopic)
	harness.Eventually(t, patience, "telemetry of the device that ran all the time", func() bool { return strings.Count(f.witness.Output(), telemetryTopic) > published })
	b.mustPublish(t, f.renewer, telemetryTopic, "before the renewal")
	client := harness.Binary(t, "estclient-example")
	harness.MustRun(t, client, "reenroll", "--server", s.URL(), "--trust", s.Trust(), "--dir", f.renewer)
	b.mustPublish(t, f.renewer, telemetryTopic, "after the renewal")
	if _, err := b.connect(t, f.doomed, tls.VersionTLS12); alertOf(err) != 44 {
		t.Errorf("a device that was revoked after the backup connects: %v, want alert 44", err)
	}
	for name, args := range map[string][]string{
		"the code that was used after the backup":        {"enroll", "--id", "waiting", "--code-file", f.waiting, "--dir", filepath.Join(t.TempDir(), "again")},
		"a certificate that was issued after the backup": {"reenroll", "--dir", f.lost},
		"the certificate of a device revoked after it":   {"reenroll", "--dir", f.doomed},
	} {
		r := harness.Run(t, client, append([]string{args[0], "--server", s.URL(), "--trust", s.Trust()}, args[1:]...)...)
		if r.Code != 1 || !strings.Contains(r.Stderr, "401") {
			t.Errorf("%s: exit code %d\n%s", name, r.Code, r.Output())
		}
	}
}
