// What is published survives the server that publishes it: CRLs under SIGKILL, under many revokers at two servers that come
// and go, and how soon a revocation is known. NATAL_STORM=1, as "make storm" sets it, makes them last.

package crash_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/natal-pki/natal/client"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/invariants"
	"github.com/natal-pki/natal/test/testpki"
)

// storm is how much of a test is run: a few in each build, or as many as the promise is about.
func storm[T any](few, many T) T {
	if os.Getenv("NATAL_STORM") != "" {
		return many
	}
	return few
}

// lists is what a relying party has seen of the CRLs of devices: each may only be followed by a later one that holds more.
type lists struct {
	mu      sync.Mutex
	issuer  *x509.Certificate
	shards  int
	newest  map[int]*x509.RevocationList
	content map[string][sha256.Size]byte // hashes by shard and number
}

func (s *site) watchLists(t *testing.T, shards int) *lists {
	t.Helper()
	return &lists{issuer: s.issuer(t), shards: shards, newest: map[int]*x509.RevocationList{}, content: map[string][sha256.Size]byte{}}
}

// issuer is the certificate of the CA devices.
func (s *site) issuer(t *testing.T) *x509.Certificate {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(s.Data, "ca", "devices.pem"))
	if err != nil {
		t.Fatal(err)
	}
	certificates, err := client.ParseCertificates(content)
	if err != nil {
		t.Fatal(err)
	}
	return certificates[0]
}

func (l *lists) path(shard int) string {
	if l.shards == 1 {
		return "devices.crl"
	}
	return fmt.Sprintf("devices/%d.crl", shard)
}

// take judges a CRL of a shard and returns the serial numbers on it. With one watcher after the other its number may not fall; with several
// beside each other only what one number stands for may not change.
func (l *lists) take(shard int, der []byte, inOrder bool) (map[string]bool, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("%d bytes: %w", len(der), err)
	}
	if err := list.CheckSignatureFrom(l.issuer); err != nil {
		return nil, err
	}
	listed := map[string]bool{}
	for _, e := range list.RevokedCertificateEntries {
		listed[fmt.Sprintf("%034x", e.SerialNumber)] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at := fmt.Sprint(shard, " ", list.Number)
	sum := sha256.Sum256(der)
	if old, known := l.content[at]; known && old != sum {
		return nil, fmt.Errorf("two CRLs %v of shard %d", list.Number, shard)
	}
	l.content[at] = sum
	before := l.newest[shard]
	if before == nil || list.Number.Cmp(before.Number) > 0 {
		l.newest[shard] = list
	}
	if before == nil {
		return listed, nil
	}
	later := list.Number.Cmp(before.Number)
	if later < 0 && inOrder {
		return nil, fmt.Errorf("shard %d: CRL %v after %v", shard, list.Number, before.Number)
	}
	for _, e := range before.RevokedCertificateEntries {
		if serial := fmt.Sprintf("%034x", e.SerialNumber); later >= 0 && !listed[serial] {
			return nil, fmt.Errorf("shard %d: %s is on CRL %v and not on %v", shard, serial, before.Number, list.Number)
		}
	}
	return listed, nil
}

// fetch reads a shard's CRL from a server; nil if the server is gone.
func (l *lists) fetch(s *site, shard int) []byte {
	client := http.Client{Timeout: 20 * time.Second}
	answer, err := client.Get("http://" + s.Public + "/crl/" + l.path(shard))
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	der, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil
	}
	return der
}

// shardOf is where a certificate has to be listed.
func (l *lists) shardOf(serial string) int {
	var octet int
	fmt.Sscanf(serial[len(serial)-2:], "%x", &octet)
	return octet % l.shards
}

// newCRLSite is a site whose CA devices has several CRLs, published as files too.
func newCRLSite(t *testing.T, shards int, env ...string) (s *site, files string) {
	t.Helper()
	dir := t.TempDir()
	data, pass := filepath.Join(dir, "data"), filepath.Join(dir, "pass")
	files = filepath.Join(dir, "published")
	if err := os.WriteFile(pass, []byte("a passphrase of the tests\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Command{Path: harness.Binary(t, "est-server"), Env: env, Args: []string{"init", "--data", data, "--host", "localhost", "--host", "127.0.0.1",
		"--public-url", "http://127.0.0.1:8080", "--crl-shards", fmt.Sprint(shards), "--passphrase-file", pass}}.MustRun(t)
	config := filepath.Join(data, "config.yaml")
	content, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	text := bytes.Replace(content, []byte(`publish_dir: ""`), []byte(`publish_dir: "`+files+`"`), 1)
	if err := os.WriteFile(config, text, 0o600); err != nil || bytes.Equal(text, content) {
		t.Fatalf("publish_dir: %v", err)
	}
	return newSite(t, harness.ServerOptions{Data: data, Verb: "serve", Args: []string{"--passphrase-file", pass}, Env: env}, ""), files
}

// enrollAll gives every device a certificate; a few at a time, because it is not what is tested here.
func (s *site) enrollAll(t *testing.T, prefix string, n int) (devices []*device) {
	t.Helper()
	key := keys(t, n)
	devices = make([]*device, n)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			c := s.client(worker)
			defer c.CloseIdleConnections()
			for k := worker; k < n; k += 8 {
				d, err := s.tryDevice(fmt.Sprint(prefix, k), key[k])
				if err == nil {
					var certificate *x509.Certificate
					_, certificate, err = s.enroll(c, d, d.csr(t, d.key))
					d.got = append(d.got, certificate)
				}
				if err != nil {
					t.Error(err)
					return
				}
				devices[k] = d
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return devices
}

func (d *device) serial() string { return fmt.Sprintf("%034x", d.got[0].SerialNumber) }

func (s *site) revoke(serial string) error {
	return s.operate(http.MethodPost, "/certificates/"+serial+"/revoke", map[string]string{"reason": "keyCompromise"}, nil)
}

// status asks the server's OCSP responder.
func (s *site) status(issuer, leaf *x509.Certificate) (int, error) {
	request, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		return 0, err
	}
	client := http.Client{Timeout: 20 * time.Second}
	answer, err := client.Post("http://"+s.Public+"/ocsp/devices", "application/ocsp-request", bytes.NewReader(request))
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	der, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err
	}
	response, err := ocsp.ParseResponseForCert(der, leaf, issuer)
	if err != nil {
		return 0, err
	}
	return response.Status, nil
}

// The server dies while it makes and publishes CRLs. What is published, by HTTP and as files, is always whole, later than before, and never less.
func TestServerKilledWhilePublishing(t *testing.T) {
	for _, shards := range []int{1, 4} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) { killPublishing(t, shards, storm(5, 100)) })
	}
}

func killPublishing(t *testing.T, shards, kills int) {
	const victims = 4 // in each round
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s, files := newCRLSite(t, shards)
	devices := s.enrollAll(t, "dev-", kills*victims)
	served, written := s.watchLists(t, shards), s.watchLists(t, shards)
	var confirmed []string
	interrupted := 0
	for round := range kills {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, d := range devices[round*victims : (round+1)*victims] {
			wg.Go(func() {
				err := s.revoke(d.serial())
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					confirmed = append(confirmed, d.serial())
				} else {
					interrupted++
				}
			})
		}
		time.Sleep(time.Duration(random.Int64N(int64(150 * time.Millisecond)))) // the moment of the kill
		s.Kill()
		wg.Wait()
		written.readFiles(t, files)
		invariants.Require(t, s.url, invariants.State{}, received(devices)...)
		s.Start(t)
		for shard := range shards {
			if _, err := served.take(shard, served.fetch(s, shard), true); err != nil {
				t.Errorf("served after the start: %v", err)
			}
		}
		s.require(t, devices)
		for _, serial := range confirmed {
			shard := served.shardOf(serial)
			listed, err := served.take(shard, served.fetch(s, shard), true)
			if err != nil || !listed[serial] {
				t.Errorf("%s was confirmed to be revoked and is not on CRL of shard %d: %v", serial, shard, err)
			}
		}
		written.readFiles(t, files)
		if t.Failed() {
			t.Fatalf("kill %d of %d", round+1, kills)
		}
	}
	t.Logf("%d kills: %d revocations confirmed, %d interrupted, %d different CRLs served, %d found as files", kills, len(confirmed), interrupted, len(served.content), len(written.content))
	if interrupted == 0 {
		t.Error("no kill hit the server in the middle of revocations")
	}
	if len(written.content) == 0 {
		t.Error("no CRL was found as a file")
	}
}

// readFiles judges what lies in the directory of published files.
func (l *lists) readFiles(t *testing.T, dir string) {
	t.Helper()
	for shard := range l.shards {
		der, err := os.ReadFile(filepath.Join(dir, "crl", l.path(shard)))
		if os.IsNotExist(err) {
			continue
		}
		if err == nil {
			_, err = l.take(shard, der, true)
		}
		if err != nil {
			t.Errorf("file of shard %d: %v", shard, err)
		}
	}
}

// Sixteen revokers, two servers on one database, each restarted again and again. No number stands for two CRLs, none is lower than the one
// before, and what was confirmed to be revoked is on the CRL and in the OCSP answer of the server that said so.
func TestTwoServersRevokeUnderRestarts(t *testing.T) {
	lasts, pause := storm(10*time.Second, 10*time.Minute), storm(2*time.Second, 5*time.Second)
	url := harness.PostgresURL(t)
	options := harness.ServerOptions{Env: []string{"NATAL_DATABASE_URL=" + url}}
	one := newSite(t, options, url)
	r := &revokers{sites: []*site{one, one.beside(t, options)}, seen: one.watchLists(t, 1), issuer: one.issuer(t), pause: storm(0, time.Second)}
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() { r.run(ctx, t, n) })
	}
	restarts := 0
	for tick := time.NewTicker(pause); ctx.Err() == nil && !t.Failed(); {
		select {
		case <-ctx.Done():
		case <-tick.C:
			s := r.sites[restarts%2]
			if restarts%4 < 2 {
				s.Kill()
			} else {
				s.Stop(t)
			}
			s.Start(t)
			restarts++
		}
	}
	wg.Wait()
	one.require(t, r.devices)
	for _, s := range r.sites {
		listed, err := r.seen.take(0, r.seen.fetch(s, 0), false)
		if err != nil {
			t.Fatal(err)
		}
		if missing := slices.DeleteFunc(slices.Clone(r.confirmed), func(serial string) bool { return listed[serial] }); len(missing) > 0 {
			t.Errorf("%d of %d revoked certificates are not on the CRL", len(missing), len(r.confirmed))
		}
	}
	t.Logf("%d certificates, %d revocations confirmed, %d requests tried again, %d restarts, %d different CRLs seen", len(r.devices), len(r.confirmed), r.again, restarts, len(r.seen.content))
	if len(r.confirmed) == 0 || restarts == 0 || r.again == 0 {
		t.Error("no restart hit the revokers")
	}
}

// revokers enroll devices and revoke them, at one server and the other.
type revokers struct {
	sites  []*site
	seen   *lists
	issuer *x509.Certificate
	pause  time.Duration // of each, between two revocations

	mu        sync.Mutex
	devices   []*device
	confirmed []string
	again     int
}

// run is one revoker. What fails while a server restarts is tried at the other.
func (r *revokers) run(ctx context.Context, t *testing.T, n int) {
	at := n
	insist := func(try func(s *site) error) bool {
		for ; ctx.Err() == nil; at++ {
			if try(r.sites[at%2]) == nil {
				return true
			}
			r.mu.Lock()
			r.again++
			r.mu.Unlock()
			time.Sleep(20 * time.Millisecond) // both may be restarting
		}
		return false
	}
	for k := 0; ctx.Err() == nil && !t.Failed(); k++ {
		var d *device
		made := insist(func(s *site) (err error) {
			at++ // a name of its own: whether a code was made that did not arrive is not known
			d, err = s.tryDevice(fmt.Sprintf("dev-%d-%d", n, at), testpki.Key(t, "ec:P-256"))
			return err
		}) && insist(func(s *site) error {
			c := s.client(n)
			defer c.CloseIdleConnections()
			_, certificate, err := s.enroll(c, d, d.csr(t, d.key))
			if err == nil {
				d.got = append(d.got, certificate)
			}
			return err
		})
		if !made {
			return
		}
		r.mu.Lock()
		r.devices = append(r.devices, d)
		r.mu.Unlock()
		if insist(func(s *site) error { return s.revoke(d.serial()) }) {
			r.judge(t, r.sites[at%2], d)
		}
		select {
		case <-ctx.Done():
		case <-time.After(r.pause):
		}
	}
}

// judge: what a server has confirmed, its OCSP answer and its CRL say at once, if it is still there.
func (r *revokers) judge(t *testing.T, s *site, d *device) {
	r.mu.Lock()
	r.confirmed = append(r.confirmed, d.serial())
	r.mu.Unlock()
	status, err := s.status(r.issuer, d.got[0])
	der := r.seen.fetch(s, 0)
	if err != nil || der == nil {
		return
	}
	listed, err := r.seen.take(0, der, false)
	if err != nil || !listed[d.serial()] || status != ocsp.Revoked {
		t.Errorf("%s: OCSP status %d, on the CRL: %v, %v", d.serial(), status, listed[d.serial()], err)
	}
}

// beside is a second server on the database of s. Keys, passphrase and the key of the codes are shared as files.
func (s *site) beside(t *testing.T, o harness.ServerOptions) *site {
	t.Helper()
	o.Data = filepath.Join(t.TempDir(), "data")
	for _, path := range []string{"config.yaml", "passphrase", "trust.pem", "keys", "ca"} {
		harness.MustRun(t, "/bin/sh", "-c", "mkdir -p $1 && cp -Rp $2 $1", "-", o.Data, filepath.Join(s.Data, path))
	}
	return newSite(t, o, s.url)
}

// How long until a revocation is known, measured from the call.
func TestHowSoonARevocationIsKnown(t *testing.T) {
	many := storm(100, 1000)
	url := harness.PostgresURL(t)
	options := harness.ServerOptions{Env: []string{"NATAL_DATABASE_URL=" + url}}
	s := newSite(t, options, url)
	other := s.beside(t, options)
	devices, issuer, seen := s.enrollAll(t, "dev-", many), s.issuer(t), s.watchLists(t, 1)
	var known, listed []time.Duration
	for _, d := range devices {
		begun := time.Now()
		if err := s.revoke(d.serial()); err != nil {
			t.Fatal(err)
		}
		confirmed := time.Now()
		for _, at := range []*site{s, other} {
			harness.Eventually(t, time.Minute, "OCSP to say revoked", func() bool {
				status, err := at.status(issuer, d.got[0])
				return err == nil && status == ocsp.Revoked
			})
		}
		known = append(known, time.Since(confirmed))
		for _, at := range []*site{s, other} {
			harness.Eventually(t, time.Minute, "the CRL to list it", func() bool {
				list, err := seen.take(0, seen.fetch(at, 0), false)
				return err == nil && list[d.serial()]
			})
		}
		listed = append(listed, time.Since(begun))
	}
	slices.Sort(known)
	slices.Sort(listed)
	t.Logf("%d revocations, two servers: known to OCSP of both %v after the confirmation in the middle, %v at most (p100); on the CRL of both %v after the call in the middle, %v at most (p100)",
		many, known[len(known)/2].Round(time.Microsecond), known[len(known)-1].Round(time.Microsecond), listed[len(listed)/2].Round(time.Millisecond), listed[len(listed)-1].Round(time.Millisecond))
	if worst := known[len(known)-1]; worst > time.Second {
		t.Errorf("OCSP knew of a revocation after %v", worst)
	}
	if worst := listed[len(listed)-1]; worst > time.Minute {
		t.Errorf("a revocation was on the CRL after %v", worst)
	}
}
