// What each shipped profile makes of requests: one table of what passes, one of what is refused, by which rule.

package profile_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/test/testpki"
)

var now = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// issuer is a CA certificate as far as a profile looks at it.
func issuer() *x509.Certificate {
	return &x509.Certificate{NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(30, 0, 0)}
}

// public makes a key of a kind for the eyes of a profile; nobody signs with it.
func public(t testing.TB, spec string) crypto.PublicKey {
	t.Helper()
	rsaOf := func(bits, e int) *rsa.PublicKey {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
		if err != nil {
			t.Fatal(err)
		}
		return &rsa.PublicKey{N: n.SetBit(n.SetBit(n, bits-1, 1), 0, 1), E: e}
	}
	switch spec {
	case "rsa:1024":
		return rsaOf(1024, 65537)
	case "rsa:2047":
		return rsaOf(2047, 65537)
	case "rsa:2048":
		return rsaOf(2048, 65537)
	case "rsa:3072":
		return rsaOf(3072, 65537)
	case "rsa:4096":
		return rsaOf(4096, 65537)
	case "rsa:2560":
		return rsaOf(2560, 65537)
	case "rsa:6144":
		return rsaOf(6144, 65537)
	case "rsa:8192":
		return rsaOf(8192, 65537)
	case "rsa e=1":
		return rsaOf(2048, 1)
	case "rsa e=2":
		return rsaOf(2048, 2)
	case "rsa even":
		k := rsaOf(2048, 65537)
		k.N.SetBit(k.N, 0, 0)
		return k
	case "off the curve":
		//lint:ignore SA1019 no parser makes such a key
		return &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}
	case "at infinity":
		//lint:ignore SA1019 no parser makes such a key
		return &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(0), Y: big.NewInt(0)}
	case "ed25519":
		k, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	return testpki.Key(t, spec).Public()
}

// request makes a real request, parsed from its encoding; key replaces its public key if not "".
func request(t testing.TB, cn, key string, edit func(*x509.CertificateRequest)) *x509.CertificateRequest {
	t.Helper()
	csr, err := x509.ParseCertificateRequest(testpki.CSR(t, testpki.Key(t, "ec:P-256"), cn, edit))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		setKey(csr, public(t, key))
	}
	return csr
}

// setKey makes csr one for another key.
func setKey(csr *x509.CertificateRequest, key crypto.PublicKey) {
	csr.PublicKey = key
	if _, err := profile.KeySpec(key); err == nil {
		csr.RawSubjectPublicKeyInfo, _ = x509.MarshalPKIXPublicKey(key)
	}
}

func extension(oid asn1.ObjectIdentifier, critical bool, value any) func(*x509.CertificateRequest) {
	return func(r *x509.CertificateRequest) {
		der, ok := value.([]byte)
		if !ok {
			var err error
			if der, err = asn1.Marshal(value); err != nil {
				panic(err)
			}
		}
		r.ExtraExtensions = append(r.ExtraExtensions, pkix.Extension{Id: oid, Critical: critical, Value: der})
	}
}

func name(oid asn1.ObjectIdentifier, value any) func(*x509.CertificateRequest) {
	return func(r *x509.CertificateRequest) {
		r.Subject.ExtraNames = append(r.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: oid, Value: value})
	}
}

var (
	oidCN   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSN   = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidO    = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidKU   = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSAN  = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBC   = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidEKU  = asn1.ObjectIdentifier{2, 5, 29, 37}
	ekuBase = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3}
)

func eku(last ...int) []asn1.ObjectIdentifier {
	var list []asn1.ObjectIdentifier
	for _, n := range last {
		list = append(list, append(slices.Clone(ekuBase), n))
	}
	return list
}

func usage(bits ...int) asn1.BitString {
	b := asn1.BitString{Bytes: make([]byte, 2), BitLength: 9}
	for _, n := range bits {
		b.Bytes[n/8] |= 0x80 >> (n % 8)
	}
	return b
}

type constraints struct {
	CA      bool `asn1:"optional"`
	PathLen int  `asn1:"optional,default:-1"`
}

const (
	ds = x509.KeyUsageDigitalSignature
	ke = x509.KeyUsageKeyEncipherment
)

func TestBuild(t *testing.T) {
	t.Parallel()
	profiles := shipped(t)
	registered := []string{"dns:mqtt.example.com", "dns:broker.local", "ip:192.0.2.7", "ip:2001:db8::7"}
	clientAuth, serverAuth := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	for _, tc := range []struct {
		name, profile, key string
		device             string // default dev-1
		registered         []string
		edit               func(*x509.CertificateRequest)
		noCSR              bool

		subject  string // default CN=dev-1
		names    string // SAN, blank-separated
		usage    x509.KeyUsage
		eku      x509.ExtKeyUsage
		backdate time.Duration // -1: none
		plain    bool          // no CDP and AIA
	}{
		{name: "EC", profile: "iot-device", usage: ds, eku: clientAuth},
		{name: "P-384", profile: "iot-device", key: "ec:P-384", usage: ds, eku: clientAuth},
		{name: "RSA", profile: "iot-device", key: "rsa:2048", usage: ds | ke, eku: clientAuth},
		{name: "RSA 3072", profile: "iot-device", key: "rsa:3072", usage: ds | ke, eku: clientAuth},
		{name: "no CN asked for", profile: "iot-device", edit: func(r *x509.CertificateRequest) { r.Subject = pkix.Name{} }, usage: ds, eku: clientAuth},
		{name: "its own serial number asked for", profile: "iot-device", edit: name(oidSN, "dev-1"), usage: ds, eku: clientAuth},
		{name: "just what it gets asked for", profile: "iot-device", edit: func(r *x509.CertificateRequest) {
			extension(oidKU, true, usage(0))(r)
			extension(oidEKU, false, eku(2))(r)
			extension(oidBC, true, constraints{PathLen: -1})(r)
		}, usage: ds, eku: clientAuth},
		{name: "key encipherment with RSA", profile: "iot-device", key: "rsa:2048", edit: extension(oidKU, true, usage(0, 2)), usage: ds | ke, eku: clientAuth},
		{name: "without a request", profile: "iot-device", noCSR: true, usage: ds, eku: clientAuth},
		{name: "names registered and not wanted", profile: "iot-device", registered: registered, usage: ds, eku: clientAuth},

		{name: "to the letter", profile: "iot-device-rsa2048", key: "rsa:2048", usage: ds | ke, eku: clientAuth, backdate: -1, plain: true},

		{name: "birth", profile: "birth", usage: ds, eku: clientAuth, subject: "SERIALNUMBER=dev-1,CN=dev-1"},
		{name: "bridge", profile: "bridge", device: "mqtt.example.com", registered: registered, subject: "CN=mqtt.example.com", usage: ds, eku: clientAuth},
		{name: "admin", profile: "admin", key: "rsa:3072", usage: ds | ke, eku: clientAuth},
		{name: "canary", profile: "canary", usage: ds, eku: clientAuth},

		{name: "its id", profile: "mqtt-server", device: "mqtt.example.com", subject: "CN=mqtt.example.com", names: "mqtt.example.com", usage: ds, eku: serverAuth},
		{name: "an id in capitals", profile: "mqtt-server", device: "MQTT", subject: "CN=MQTT", names: "mqtt", usage: ds, eku: serverAuth},
		{name: "an address for an id", profile: "mqtt-server", device: "192.0.2.7", registered: []string{"dns:b.example"}, subject: "CN=192.0.2.7", names: "b.example 192.0.2.7", usage: ds, eku: serverAuth},
		{name: "nothing asked for, all that is registered", profile: "mqtt-server", device: "mqtt.example.com", registered: registered, key: "rsa:2048", subject: "CN=mqtt.example.com",
			names: "mqtt.example.com broker.local 192.0.2.7 2001:db8::7", usage: ds | ke, eku: serverAuth},
		{name: "some asked for", profile: "mqtt-server", device: "mqtt.example.com", registered: registered, subject: "CN=mqtt.example.com", usage: ds, eku: serverAuth,
			edit: func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 7)} }, names: "mqtt.example.com 192.0.2.7"},
		{name: "asked for in capitals and as a mapped address", profile: "mqtt-server", device: "mqtt.example.com", registered: registered, subject: "CN=mqtt.example.com", usage: ds, eku: serverAuth,
			edit: func(r *x509.CertificateRequest) {
				mapped := append([]byte{0x87, 16}, net.IPv4(192, 0, 2, 7).To16()...)
				dns := append([]byte{0x82, 12}, "BROKER.local"...)
				extension(oidSAN, false, append([]byte{0x30, byte(len(mapped) + len(dns))}, append(dns, mapped...)...))(r)
			}, names: "mqtt.example.com broker.local 192.0.2.7"},

		{name: "est-server", profile: "est-server", device: "natal-est-server", registered: []string{"ip:192.0.2.7", "dns:pki.example.com", "dns:localhost"}, noCSR: true,
			subject: "CN=pki.example.com", names: "pki.example.com localhost 192.0.2.7", usage: ds, eku: serverAuth},
	} {
		t.Run(tc.profile+" "+tc.name, func(t *testing.T) {
			t.Parallel()
			if tc.device == "" {
				tc.device = "dev-1"
			}
			if tc.subject == "" {
				tc.subject = "CN=dev-1"
			}
			p := profiles[tc.profile]
			in := profile.Input{Device: tc.device, Registered: tc.registered, Issuer: issuer(), PublicURL: "http://pki.example.com:8080", IssuerName: "my CA", Now: now}
			if tc.noCSR {
				in.PublicKey = public(t, "ec:P-256")
			} else {
				in.CSR = request(t, tc.device, tc.key, tc.edit)
			}
			c, findings, err := p.Build(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range findings {
				if !f.OK || f.Rule == "" || f.Detail == "" {
					t.Errorf("finding %+v", f)
				}
			}
			if got := c.Subject.String(); got != tc.subject {
				t.Errorf("subject %s, want %s", got, tc.subject)
			}
			names := slices.Clone(c.DNSNames)
			for _, ip := range c.IPAddresses {
				names = append(names, ip.String())
			}
			if got := strings.Join(names, " "); got != tc.names || len(c.EmailAddresses)+len(c.URIs) > 0 {
				t.Errorf("names %q, want %q", got, tc.names)
			}
			if c.KeyUsage != tc.usage || !reflect.DeepEqual(c.ExtKeyUsage, []x509.ExtKeyUsage{tc.eku}) || len(c.UnknownExtKeyUsage) > 0 {
				t.Errorf("usage %b, extended %v", c.KeyUsage, c.ExtKeyUsage)
			}
			if c.IsCA || !c.BasicConstraintsValid || len(c.ExtraExtensions) > 0 || len(c.PolicyIdentifiers) > 0 || len(c.SubjectKeyId) != 20 {
				t.Errorf("template %+v", c)
			}
			backdate := 5 * time.Minute
			if tc.backdate == -1 {
				backdate = 0
			}
			if !c.NotBefore.Equal(now.Add(-backdate)) || c.NotAfter.Sub(c.NotBefore)+time.Second != p.Validity() {
				t.Errorf("valid from %v to %v", c.NotBefore, c.NotAfter)
			}
			const base = "http://pki.example.com:8080"
			cdp, aia, ocsp := []string{base + "/crl/my%20CA.crl"}, []string{base + "/ca/my%20CA.der"}, []string{base + "/ocsp/my%20CA"}
			if tc.plain {
				cdp, aia, ocsp = nil, nil, nil
			}
			if !slices.Equal(c.CRLDistributionPoints, cdp) || !slices.Equal(c.IssuingCertificateURL, aia) || !slices.Equal(c.OCSPServer, ocsp) {
				t.Errorf("addresses %v, %v, %v", c.CRLDistributionPoints, c.IssuingCertificateURL, c.OCSPServer)
			}
		})
	}
}

// refusal is a request that no profile accepts.
type refusal struct {
	name, key, rule string
	edit            func(*x509.CertificateRequest)
}

var never = []refusal{
	{"another name", "", "subject_common_name", func(r *x509.CertificateRequest) { r.Subject.CommonName = "dev-2" }},
	{"its name in capitals", "", "subject_common_name", func(r *x509.CertificateRequest) { r.Subject.CommonName = "DEV-1" }},
	{"its name and a blank", "", "subject_common_name", func(r *x509.CertificateRequest) { r.Subject.CommonName = "dev-1 " }},
	{"its name and a NUL", "", "subject_common_name", func(r *x509.CertificateRequest) { r.Subject.CommonName = "dev-1\x00.evil" }},
	{"an empty name", "", "subject_common_name", name(oidCN, "")},
	{"a name that is no text", "", "subject_common_name", name(oidCN, asn1.RawValue{FullBytes: []byte{0x03, 0x03, 0x00, 'd', 'e'}})},
	{"two names", "", "subject_common_name", func(r *x509.CertificateRequest) { name(oidCN, "dev-1")(r); name(oidCN, "admin")(r) }},
	{"its name twice", "", "subject_common_name", func(r *x509.CertificateRequest) { name(oidCN, "dev-1")(r); name(oidCN, "dev-1")(r) }},
	{"another serial number", "", "subject_serial_number", name(oidSN, "dev-2")},
	{"CA:TRUE", "", "basic_constraints", extension(oidBC, true, constraints{CA: true, PathLen: -1})},
	{"CA:TRUE, pathlen 0", "", "basic_constraints", extension(oidBC, true, constraints{CA: true})},
	{"a pathlen", "", "basic_constraints", extension(oidBC, true, constraints{PathLen: 3})},
	{"constraints that cannot be read", "", "basic_constraints", extension(oidBC, true, []byte{0x30, 0x03, 0x01, 0x01})},
	{"constraints with something behind", "", "basic_constraints", extension(oidBC, true, []byte{0x30, 0x00, 0x05, 0x00})},
	{"keyCertSign", "", "key_usage", extension(oidKU, true, usage(0, 5))},
	{"cRLSign", "", "key_usage", extension(oidKU, true, usage(6))},
	{"nonRepudiation", "", "key_usage", extension(oidKU, true, usage(0, 1))},
	{"decipherOnly", "", "key_usage", extension(oidKU, true, usage(8))},
	{"a usage that cannot be read", "", "key_usage", extension(oidKU, true, []byte{0x04, 0x01, 0x00})},
	{"code signing", "", "extended_key_usage", extension(oidEKU, false, eku(3))},
	{"OCSP signing", "", "extended_key_usage", extension(oidEKU, false, eku(9))},
	{"both client and server", "", "extended_key_usage", extension(oidEKU, false, eku(1, 2))},
	{"any use", "", "extended_key_usage", extension(oidEKU, false, []asn1.ObjectIdentifier{{2, 5, 29, 37, 0}})},
	{"an extended usage that cannot be read", "", "extended_key_usage", extension(oidEKU, false, []byte{0x30, 0x01})},
	{"P-224", "ec:P-224", "key_type", nil},
	{"P-521", "ec:P-521", "key_type", nil},
	{"a point off the curve", "off the curve", "key_type", nil},
	{"the point at infinity", "at infinity", "key_type", nil},
	{"RSA 1024", "rsa:1024", "key_type", nil},
	{"RSA 2047", "rsa:2047", "key_type", nil},
	{"RSA 4096", "rsa:4096", "key_type", nil},
	{"RSA with exponent 1", "rsa e=1", "key_type", nil},
	{"RSA with exponent 2", "rsa e=2", "key_type", nil},
	{"RSA with an even modulus", "rsa even", "key_type", nil},
	{"Ed25519", "ed25519", "key_type", nil},
}

// unlisted is what a request may ask for in vain: refused, or dropped by a profile that says so.
var unlisted = []refusal{
	{"an organisation", "", "subject_unlisted", func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"system:masters"} }},
	{"an organisation that hides a name", "", "subject_unlisted", name(oidO, "x,CN=admin")},
	{"a DNS name", "", "san_unlisted", func(r *x509.CertificateRequest) { r.DNSNames = []string{"dev-1"} }},
	{"an address", "", "san_unlisted", func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }},
	{"a mail address", "", "san_unlisted", func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b.c"} }},
	{"a URI", "", "san_unlisted", func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }},
	{"another kind of name", "", "san_unlisted", extension(oidSAN, false, []byte{0x30, 0x05, 0xa0, 0x03, 0x06, 0x01, 0x2a})},
	{"a registered ID", "", "san_unlisted", extension(oidSAN, false, []byte{0x30, 0x03, 0x88, 0x01, 0x2a})},
	{"an unknown extension", "", "extension_unlisted", extension(asn1.ObjectIdentifier{1, 2, 3, 4}, false, []byte{5, 0})},
	{"an unknown critical extension", "", "extension_unlisted", extension(asn1.ObjectIdentifier{1, 2, 3, 4}, true, []byte{5, 0})},
	{"name constraints", "", "extension_unlisted", extension(asn1.ObjectIdentifier{2, 5, 29, 30}, true, []byte{0x30, 0x00})},
	{"a policy", "", "extension_unlisted", extension(asn1.ObjectIdentifier{2, 5, 29, 32}, false, []byte{0x30, 0x00})},
	{"CRL addresses", "", "extension_unlisted", extension(asn1.ObjectIdentifier{2, 5, 29, 31}, false, []byte{0x30, 0x00})},
	{"a key identifier", "", "extension_unlisted", extension(asn1.ObjectIdentifier{2, 5, 29, 14}, false, []byte{0x04, 0x01, 0x01})},
	{"an issuer's key identifier", "", "extension_unlisted", extension(asn1.ObjectIdentifier{2, 5, 29, 35}, false, []byte{0x30, 0x00})},
	{"an address of the CA", "", "extension_unlisted", extension(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}, false, []byte{0x30, 0x00})},
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, p := range shipped(t) {
		if name == "est-server" || name == "cfree-compat" {
			continue // takes its names from the registration alone, see TestNoIdentity; has rules of its own, see TestCFREE
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ownKey := "ec:P-256"
			if name == "iot-device-rsa2048" {
				ownKey = "rsa:2048"
			}
			in := profile.Input{Device: "dev-1", Issuer: issuer(), Now: now}
			build := func(r refusal) (*x509.Certificate, error) {
				if r.key == "" {
					r.key = ownKey
				}
				in := in
				in.CSR = request(t, "dev-1", r.key, r.edit)
				c, _, err := p.Build(in)
				return c, err
			}
			mustRefuse := func(r refusal) {
				c, err := build(r)
				var v *profile.Violation
				if !errors.As(err, &v) || v.Finding.Rule != r.rule || c != nil {
					t.Errorf("%s: %v, want %s", r.name, err, r.rule)
				}
			}
			if _, err := build(refusal{}); err != nil {
				t.Fatalf("a plain request: %v", err)
			}
			foreign := refusal{"server authentication", "", "extended_key_usage", extension(oidEKU, false, eku(1))}
			if p.Use() == profile.UseOCSP {
				never := slices.DeleteFunc(slices.Clone(never), func(r refusal) bool { return r.name == "OCSP signing" || r.key == "rsa:4096" })
				for _, r := range never {
					mustRefuse(r)
				}
				mustRefuse(foreign)
				return
			}
			if !p.ClientAuth() {
				foreign = refusal{"client authentication", "", "extended_key_usage", extension(oidEKU, false, eku(2))}
			}
			for _, r := range never {
				mustRefuse(r)
			}
			mustRefuse(foreign)
			if ownKey == "rsa:2048" {
				mustRefuse(refusal{"an EC key", "ec:P-256", "key_type", nil})
				mustRefuse(refusal{"RSA 3072", "rsa:3072", "key_type", nil})
			} else {
				mustRefuse(refusal{"key encipherment with EC", "", "key_usage", extension(oidKU, true, usage(0, 2))})
			}
			for _, r := range unlisted {
				switch {
				case name == "iot-device-rsa2048" && r.rule != "subject_unlisted":
					mustDrop(t, p, in, r)
				case name == "mqtt-server" && r.name == "a DNS name": // its own
				case name == "mqtt-server" && r.name == "an address":
					r.rule = "san_not_registered"
					mustRefuse(r)
				default:
					mustRefuse(r)
				}
			}
		})
	}
}

// mustDrop: the template is the one that a plain request with the same key gets.
func mustDrop(t *testing.T, p *profile.Profile, in profile.Input, r refusal) {
	t.Helper()
	in.CSR = request(t, "dev-1", "rsa:2048", r.edit)
	got, findings, err := p.Build(in)
	if err != nil {
		t.Errorf("%s: %v", r.name, err)
		return
	}
	if !slices.ContainsFunc(findings, func(f profile.Finding) bool {
		return f.Rule == r.rule && f.OK && strings.HasPrefix(f.Detail, "dropped: ")
	}) {
		t.Errorf("%s: nothing says that it was dropped: %v", r.name, findings)
	}
	key := in.CSR.PublicKey
	in.CSR = request(t, "dev-1", "", nil)
	setKey(in.CSR, key)
	plain, _, err := p.Build(in)
	if err != nil || !reflect.DeepEqual(got, plain) {
		t.Errorf("%s: %v; it left a trace:\n%+v\n%+v", r.name, err, got, plain)
	}
}

func TestServerNamesMustBeRegistered(t *testing.T) {
	t.Parallel()
	p := shipped(t)["mqtt-server"]
	for name, edit := range map[string]func(*x509.CertificateRequest){
		"another host":         func(r *x509.CertificateRequest) { r.DNSNames = []string{"mqtt.example.com", "www.example.com"} },
		"a wildcard":           func(r *x509.CertificateRequest) { r.DNSNames = []string{"*.example.com"} },
		"a trailing dot":       func(r *x509.CertificateRequest) { r.DNSNames = []string{"mqtt.example.com."} },
		"another address":      func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 8)} },
		"an address as a name": func(r *x509.CertificateRequest) { r.DNSNames = []string{"192.0.2.7"} },
	} {
		_, _, err := p.Build(profile.Input{Device: "mqtt.example.com", Registered: []string{"ip:192.0.2.7"}, CSR: request(t, "mqtt.example.com", "", edit), Issuer: issuer(), Now: now})
		var v *profile.Violation
		if !errors.As(err, &v) || v.Finding.Rule != "san_not_registered" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoIdentity(t *testing.T) {
	t.Parallel()
	profiles := shipped(t)
	for name, in := range map[string]profile.Input{
		"est-server": {Device: "natal-est-server", Registered: []string{"ip:192.0.2.7"}},
		"birth":      {},
		"iot-device": {},
	} {
		in.PublicKey, in.Issuer, in.Now = public(t, "ec:P-256"), issuer(), now
		_, _, err := profiles[name].Build(in)
		var v *profile.Violation
		if !errors.As(err, &v) || v.Finding.Rule != "subject_common_name" {
			t.Errorf("%s without an identity: %v", name, err)
		}
	}
	_, _, err := profiles["est-server"].Build(profile.Input{Device: "x", PublicKey: public(t, "ec:P-256"), Issuer: issuer(), Now: now})
	if err == nil {
		t.Error("a server certificate without a name")
	}
}

// The last second counts, and nothing outlives its issuer (INV-16).
func TestValidity(t *testing.T) {
	t.Parallel()
	p := shipped(t)["iot-device"]
	const year = 365 * 24 * time.Hour
	begin := now.Add(-5 * time.Minute)
	for _, tc := range []struct {
		name                 string
		issuerFrom, issuerTo time.Time
		from, to             time.Time // zero: refused
	}{
		{"inside", now.AddDate(-1, 0, 0), now.AddDate(5, 0, 0), begin, begin.Add(year - time.Second)},
		{"the issuer ends in the same second", now.AddDate(-1, 0, 0), begin.Add(year - time.Second), begin, begin.Add(year - time.Second)},
		{"the issuer ends a second earlier", now.AddDate(-1, 0, 0), begin.Add(year - 2*time.Second), begin, begin.Add(year - 2*time.Second)},
		{"the issuer ends in a minute", now.AddDate(-1, 0, 0), now.Add(time.Minute), begin, now.Add(time.Minute)},
		{"the issuer has just begun", now.Add(-time.Minute), now.AddDate(5, 0, 0), now.Add(-time.Minute), now.Add(-time.Minute).Add(year - time.Second)},
		{"the issuer ends now", now.AddDate(-1, 0, 0), now, time.Time{}, time.Time{}},
		{"the issuer has ended", now.AddDate(-2, 0, 0), now.AddDate(-1, 0, 0), time.Time{}, time.Time{}},
		{"the issuer begins tomorrow", now.AddDate(0, 0, 1), now.AddDate(5, 0, 0), time.Time{}, time.Time{}},
	} {
		ca := &x509.Certificate{NotBefore: tc.issuerFrom, NotAfter: tc.issuerTo}
		c, _, err := p.Build(profile.Input{Device: "dev-1", PublicKey: public(t, "ec:P-256"), Issuer: ca, Now: now.Add(123 * time.Millisecond)})
		if tc.from.IsZero() {
			var v *profile.Violation
			if !errors.As(err, &v) || v.Finding.Rule != "validity" {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil || !c.NotBefore.Equal(tc.from) || !c.NotAfter.Equal(tc.to) {
			t.Errorf("%s: %v; from %v to %v", tc.name, err, c.NotBefore, c.NotAfter)
		}
	}
}

// Whatever the request, the certificate is the authenticated device's own, and an end entity's.
func FuzzBuild(f *testing.F) {
	for _, r := range append(slices.Clone(never), unlisted...) {
		f.Add(testpki.CSR(f, testpki.Key(f, "ec:P-256"), "dev-1", r.edit))
	}
	profiles := shipped(f)
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			return
		}
		for name, p := range profiles {
			in := profile.Input{Device: "dev-1", Registered: []string{"dns:dev-1"}, CSR: csr, Issuer: issuer(), Now: now}
			c, findings, err := p.Build(in)
			if err != nil {
				if c != nil || !slices.ContainsFunc(findings, func(f profile.Finding) bool { return !f.OK }) {
					t.Errorf("%s: %v without a finding", name, err)
				}
				continue
			}
			in.CSR, in.PublicKey = nil, csr.PublicKey
			plain, _, err := p.Build(in)
			if err != nil || !reflect.DeepEqual(c, plain) {
				t.Errorf("%s: %v; the request left a trace:\n%+v\n%+v", name, err, c, plain)
			}
		}
	})
}

// The common name of a server is a registered one, wherever in its request it stands: what a request may choose names nobody.
func TestFirstDNSIsRegistered(t *testing.T) {
	t.Parallel()
	p, err := profile.Parse([]byte("name: web\nuse: management\nkeys: [ec:P-256]\nvalidity: 30d\nsubject: {common_name: first_dns}\nextended_key_usage: [serverAuth]\n" +
		"san:\n  registered: true\n  required: true\n  requested:\n    dns: {suffixes: [example.com]}\ncsr:\n  allow: [san.dns]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		asked []string
		want  string // "": refused
	}{
		{[]string{"own.example.com"}, "own.example.com"},
		{[]string{"chosen.example.com", "own.example.com"}, "own.example.com"},
		{[]string{"chosen.example.com"}, ""},
	} {
		der := testpki.CSR(t, testpki.Key(t, "ec:P-256"), "", func(r *x509.CertificateRequest) { r.DNSNames, r.Subject = tc.asked, pkix.Name{} })
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		template, _, err := p.Build(profile.Input{Device: "srv-1", Registered: []string{"dns:own.example.com"}, CSR: csr, Issuer: issuer(), Now: now})
		got := ""
		if err == nil {
			got = template.Subject.CommonName
		}
		if got != tc.want {
			t.Errorf("%v: named %q, want %q (%v)", tc.asked, got, tc.want, err)
		}
	}
}
