// An OpenSSL PKI for brokers goes on here: a root made by openssl, an intermediate signed by it, server certificates by profile mqtt-server. A client that
// pins nothing but the root connects to a real mosquitto, before and after the intermediate was rotated.

package e2e

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

const cloudSubject = "/C=DE/O=My IoT Cloud/OU=PKI/CN=My IoT Cloud "

// cloudRoot has no key usage: openssl's "req -x509" gives none unless it is told.
func cloudRoot(t *testing.T) *rootCA {
	t.Helper()
	harness.RequirePrograms(t, "openssl", "curl", "mosquitto", "mosquitto_pub")
	r := &rootCA{dir: t.TempDir()}
	openssl(t, r.dir, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "root_key")
	openssl(t, r.dir, "req", "-x509", "-new", "-sha256", "-key", "root_key", "-days", "3650", "-subj", cloudSubject+"Root CA", "-out", "root.crt")
	r.write(t, "intermediate.ext", "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer\n")
	return r
}

// signIntermediate brings a CA's request to the root and the certificate back.
func (r *rootCA) signIntermediate(t *testing.T, s *harness.Server, name string) {
	t.Helper()
	r.write(t, name+".csr", s.MustCLI(t, "ca", "csr", name).Stdout)
	openssl(t, r.dir, "x509", "-req", "-sha256", "-in", name+".csr", "-CA", "root.crt", "-CAkey", "root_key", "-CAcreateserial", "-days", "1825", "-extfile", "intermediate.ext", "-out", name+".crt")
	s.MustCLI(t, "ca", "import", name, r.file(name+".crt"), "--chain", r.file("root.crt"))
}

var cloudNames = []string{"mqtt.example.com", "mqtt-1.example.com", "mqtt-2.example.com", "localhost"}

func TestOpenSSLPKIForBrokers(t *testing.T) {
	t.Parallel()
	root := cloudRoot(t)
	s := harness.StartServer(t, harness.ServerOptions{})
	s.MustCLI(t, "ca", "create", "intermediate", "--external", "--key", "ec:P-256", "--subject", "C=DE,O=My IoT Cloud,OU=PKI,CN=My IoT Cloud Intermediate CA", "--use", "management")
	root.signIntermediate(t, s, "intermediate")
	s.MustCLI(t, "label", "set", "mqtt-server", "--ca", "intermediate")
	if text := openssl(t, root.dir, "x509", "-in", "intermediate.crt", "-noout", "-text"); !strings.Contains(text, "CA:TRUE, pathlen:0") {
		t.Errorf("the intermediate:\n%s", text)
	}

	// The broker's bridge has the names registered; its identity enrolls the broker's certificate.
	d := newOpensslDevice(t, cloudNames[0])
	d.newKey(t, "ec:P-256")
	var sans []string
	for _, name := range cloudNames[1:] {
		sans = append(sans, "--san", "dns:"+name)
	}
	if a := d.enroll(t, s, "bridge/simpleenroll", s.CodeFile(t, d.id, append(sans, "--label", "bridge")...)); a.status != 200 {
		t.Fatalf("the bridge's identity: %d %s", a.status, a.body)
	}
	for from, to := range map[string]string{"key.pem": "identity.key", "chain.pem": "identity.pem"} {
		if err := os.Rename(d.file(from), d.file(to)); err != nil {
			t.Fatal(err)
		}
	}
	identity := []string{"--cert", "identity.pem", "--key", "identity.key"}

	d.refusedAsServer(t, s, identity)
	for _, c := range []struct{ key, usage string }{{"rsa:2048", "Digital Signature, Key Encipherment"}, {"ec:P-256", "Digital Signature"}} {
		d.newKey(t, c.key)
		if a := d.enroll(t, s, "mqtt-server/simpleenroll", "", identity...); a.status != 200 {
			t.Fatalf("%s: %d %s", c.key, a.status, a.body)
		}
		d.wantServerCertificate(t, s, root, "intermediate", c.usage)
	}

	// A real broker with that chain, and a client that has nothing but the root.
	files := openDir(t)
	if err := os.Mkdir(files, 0o755); err != nil {
		t.Fatal(err)
	}
	address, pinned := harness.FreeAddress(t), filepath.Join(files, "ca-bundle.pem")
	writeText(t, pinned, readText(t, root.file("root.crt")))
	config := filepath.Join(files, "mosquitto.conf")
	writeText(t, config, fmt.Sprintf("user root\nallow_anonymous true\nlistener %s 127.0.0.1\ncertfile %s\nkeyfile %s\n", harness.Port(t, address), filepath.Join(files, "chain.pem"), filepath.Join(files, "key.pem")))
	connect := func(when string) {
		t.Helper()
		for from, to := range map[string]string{"chain.pem": "chain.pem", "key.pem": "key.pem"} {
			writeText(t, filepath.Join(files, to), readText(t, d.file(from)))
		}
		p := harness.StartMosquitto(t, config, address)
		r := harness.Run(t, harness.Program(t, "mosquitto_pub"), "-d", "-h", "localhost", "-p", harness.Port(t, address), "--cafile", pinned, "-t", "t", "-m", when)
		if r.Code != 0 || !strings.Contains(r.Output(), "received CONNACK (0)") {
			t.Errorf("%s: exit code %d\n%s", when, r.Code, r.Output())
		}
		p.Stop(t)
	}
	connect("before")

	// The file that broker-bridge makes for a broker is in this order too.
	b := &broker{server: s, dir: openDir(t), binary: harness.Binary(t, "broker-bridge"), devices: harness.FreeAddress(t), control: harness.FreeAddress(t), services: harness.FreeAddress(t), metrics: harness.FreeAddress(t)}
	b.setup(t, brokerOptions{})
	wantChain(t, b.path("server.pem"), leafOf(t, b.path("server.pem")))
	before := leafOf(t, d.file("cert.pem")).AuthorityKeyId

	// The intermediate is rotated: another key and certificate from the same root. Nothing but the broker's certificate changes.
	s.MustCLI(t, "ca", "rollover", "intermediate", "--external")
	root.signIntermediate(t, s, "intermediate-2")
	s.MustCLI(t, "ca", "activate", "intermediate-2")
	d.newKey(t, "ec:P-256")
	if a := d.enroll(t, s, "mqtt-server/simpleenroll", "", identity...); a.status != 200 {
		t.Fatalf("after the rotation: %d %s", a.status, a.body)
	}
	d.wantServerCertificate(t, s, root, "intermediate-2", "Digital Signature")
	if after := leafOf(t, d.file("cert.pem")).AuthorityKeyId; slices.Equal(before, after) {
		t.Error("the certificate is still from the old intermediate")
	}
	connect("after")
}

// wantServerCertificate checks cert.pem as openssl reads it, and makes chain.pem: the leaf, then the intermediate from its address.
func (d *opensslDevice) wantServerCertificate(t *testing.T, s *harness.Server, root *rootCA, issuer, usage string) {
	t.Helper()
	_, intermediate, _ := s.Get(t, "http://"+s.Public+"/ca/"+issuer+".pem")
	d.write(t, "chain.pem", append([]byte(d.openssl(t, "x509", "-in", "cert.pem")), intermediate...))
	text := d.text(t)
	for _, want := range []string{
		`X509v3 Key Usage: critical\s+` + usage + `\n`,
		`X509v3 Extended Key Usage: \n\s+TLS Web Server Authentication\n`,
		`X509v3 Basic Constraints: critical\s+CA:FALSE\n`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("the certificate lacks %q:\n%s", want, text)
		}
	}
	leaf := leafOf(t, d.file("cert.pem"))
	names := slices.Sorted(slices.Values(leaf.DNSNames))
	if want := slices.Sorted(slices.Values(cloudNames)); !slices.Equal(names, want) || !slices.Contains(names, leaf.Subject.CommonName) {
		t.Errorf("CN %s, names %v, want %v", leaf.Subject.CommonName, names, want)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore) + time.Second; life > 365*24*time.Hour {
		t.Errorf("valid for %v, want 365 days at most", life)
	}
	wantChain(t, d.file("chain.pem"), leaf)
	if r := (harness.Command{Path: harness.Program(t, "openssl"), Dir: d.dir,
		Args: []string{"verify", "-purpose", "sslserver", "-verify_hostname", "localhost", "-CAfile", root.file("root.crt"), "-untrusted", "chain.pem", "cert.pem"}}).Run(t); r.Code != 0 {
		t.Errorf("openssl verify: %s", r.Output())
	}
}

// wantChain: in a file for a broker the leaf comes first, each certificate is followed by its issuer, and the root, which clients have, is not needed.
func wantChain(t *testing.T, path string, leaf *x509.Certificate) {
	t.Helper()
	chain := testpki.ParsePEM(t, []byte(readText(t, path)))
	if len(chain) != 2 || !chain[0].Equal(leaf) {
		t.Fatalf("%s has %d certificates, want leaf and intermediate", path, len(chain))
	}
	if err := chain[0].CheckSignatureFrom(chain[1]); err != nil {
		t.Errorf("%s: the second certificate is not the issuer of the first: %v", path, err)
	}
}

// refusedAsServer: what a request asks for beyond the registration is refused, and a server without a DNS name gets nothing.
func (d *opensslDevice) refusedAsServer(t *testing.T, s *harness.Server, identity []string) {
	t.Helper()
	d.newKey(t, "ec:P-256") // the one before would get its certificate again
	for extension, reason := range map[string]string{
		"subjectAltName=DNS:other.example.com": "san_not_registered", "extendedKeyUsage=clientAuth": "extended_key_usage", "basicConstraints=CA:TRUE": "basic_constraints",
	} {
		a := d.enrollWith(t, s, "mqtt-server/simpleenroll", "", []string{"-subj", "/CN=" + d.id, "-addext", extension}, identity...)
		if a.status != 400 || a.reason() != reason {
			t.Errorf("%s: %d %q, want 400 %s", extension, a.status, a.body, reason)
		}
	}
	a := d.enrollWith(t, s, "mqtt-server/simpleenroll", "", []string{"-subj", "/CN=" + d.id, "-addext", "subjectAltName=DNS:mqtt-1.example.com"}, identity...)
	if names := leafOf(t, d.file("cert.pem")).DNSNames; a.status != 200 || !slices.Contains(names, d.id) {
		t.Errorf("asked for one name without the CN: %d, names %v, want the CN among them", a.status, names)
	}

	byAddress := newOpensslDevice(t, "192.0.2.7")
	byAddress.newKey(t, "ec:P-256")
	if a := byAddress.enroll(t, s, "bridge/simpleenroll", s.CodeFile(t, byAddress.id, "--label", "bridge")); a.status != 200 {
		t.Fatalf("the identity of a bridge known by its address: %d %s", a.status, a.body)
	}
	for from, to := range map[string]string{"key.pem": "identity.key", "chain.pem": "identity.pem"} {
		if err := os.Rename(byAddress.file(from), byAddress.file(to)); err != nil {
			t.Fatal(err)
		}
	}
	byAddress.newKey(t, "ec:P-256")
	if a := byAddress.enroll(t, s, "mqtt-server/simpleenroll", "", identity...); a.status != 400 || a.reason() != "san_required" {
		t.Errorf("no DNS name: %d %q, want 400 san_required", a.status, a.body)
	}
}
