// A CA whose CRL is split: every certificate names its CRL from the first one on, and Mosquitto checks each against just that one.

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

func TestMosquittoWithSeveralCRLs(t *testing.T) {
	t.Parallel()
	const shards = 4
	data := filepath.Join(t.TempDir(), "data")
	public := "http://127.0.0.1:8080" // an address in certificates; nobody asks it here
	pass := passphraseFile(t)
	harness.MustRun(t, harness.Binary(t, "est-server"), "init", "--data", data, "--host", "localhost", "--host", "127.0.0.1", "--public-url", public, "--crl-shards", fmt.Sprint(shards), "--passphrase-file", pass)
	s := harness.StartServer(t, harness.ServerOptions{Data: data, Verb: "serve", Args: []string{"--passphrase-file", pass}})
	b := startBroker(t, s, brokerOptions{})

	byShard := map[int][]string{}
	serials := map[string]string{}
	for n := 0; n < 40 && !(len(byShard) == shards && len(byShard[0]) > 1); n++ {
		id := fmt.Sprint("dev-", n)
		dir := enrollDevice(t, s, id)
		c := certificates(t, s, "--device", id)[0]
		var octet int
		fmt.Sscanf(c.Serial[len(c.Serial)-2:], "%x", &octet)
		shard := octet % shards
		text := s.MustCLI(t, "cert", "get", c.Serial).Stdout
		block, _ := pem.Decode([]byte(text))
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%s/crl/devices/%d.crl", public, shard); !slices.Equal(leaf.CRLDistributionPoints, []string{want}) {
			t.Fatalf("%s: CRL addresses %v, want %s", c.Serial, leaf.CRLDistributionPoints, want)
		}
		byShard[shard], serials[dir] = append(byShard[shard], dir), c.Serial
	}
	if len(byShard) < shards {
		t.Fatalf("devices in %d shards only", len(byShard))
	}
	if r := s.CLI(t, "crl", "get", "devices"); r.Code == 0 || !strings.Contains(r.Stderr, "choose one, --shard 0 to 3") {
		t.Errorf("one CRL of several was given for all: %d %s", r.Code, r.Stderr)
	}
	for shard, dirs := range byShard {
		b.mustConnect(t, dirs[0])
		status, der, _ := s.Get(t, fmt.Sprintf("http://%s/crl/devices/%d.crl", s.Public, shard))
		if _, err := x509.ParseRevocationList(der); status != http.StatusOK || err != nil {
			t.Errorf("shard %d: %d, %v", shard, status, err)
		}
	}
	if status, _, _ := s.Get(t, "http://"+s.Public+"/crl/devices.crl"); status != http.StatusNotFound {
		t.Errorf("a CRL of all certificates: %d", status)
	}

	before := numbers(t, s)
	victim := byShard[0][0]
	session := b.mustConnect(t, victim)
	began := time.Now()
	s.MustCLI(t, "cert", "revoke", serials[victim], "--reason", "keyCompromise")
	if took := session.waitEnd(t, began); took > 5*time.Second {
		t.Errorf("the session ended after %v", took)
	}
	if _, err := b.connect(t, victim, tls.VersionTLS12); alertOf(err) != 44 {
		t.Errorf("the revoked device: %v, want alert 44", err)
	}
	for shard, dirs := range byShard {
		for _, dir := range dirs {
			if dir != victim {
				b.mustConnect(t, dir)
			}
		}
		if after := numbers(t, s); shard != 0 && after[shard] != before[shard] || shard == 0 && after[0] <= before[0] {
			t.Errorf("shard %d: CRL %d after %d; the revocation was in shard 0", shard, after[shard], before[shard])
		}
	}
	bundle := readText(t, bundlePath(t, b))
	if n := strings.Count(bundle, "BEGIN X509 CRL"); n != shards {
		t.Errorf("the broker's file has %d CRLs, want %d", n, shards)
	}
}

// numbers are the CRL numbers of devices by shard.
func numbers(t *testing.T, s *harness.Server) map[int]int64 {
	t.Helper()
	var list struct {
		Items []struct {
			CA     string
			Shard  int
			Number int64
		}
	}
	if err := json.Unmarshal([]byte(s.MustCLI(t, "crl", "list", "--json").Stdout), &list); err != nil {
		t.Fatal(err)
	}
	by := map[int]int64{}
	for _, i := range list.Items {
		if i.CA == "devices" {
			by[i.Shard] = i.Number
		}
	}
	return by
}

func bundlePath(t *testing.T, b *broker) string {
	t.Helper()
	found := ""
	filepath.WalkDir(b.dir, func(path string, _ os.DirEntry, _ error) error {
		if content, err := os.ReadFile(path); err == nil && strings.Contains(string(content), "BEGIN X509 CRL") && !strings.Contains(path, "good") {
			found = path
		}
		return nil
	})
	if found == "" {
		t.Fatal("no file with CRLs")
	}
	return found
}
