// One word for one cause: what explain says first is what the device is answered, what the metric counts and what the audit log holds.

package front_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// asks is one request: at which label, with which key, for what.
type asks struct {
	name, label, key string
	edit             func(*x509.CertificateRequest)
	word             string // "": issued
	der              func(der []byte) []byte
}

type edit = func(*x509.CertificateRequest)

func subject(oid asn1.ObjectIdentifier, values ...any) edit {
	return func(r *x509.CertificateRequest) {
		for _, v := range values {
			r.Subject.ExtraNames = append(r.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: oid, Value: v})
		}
	}
}

func extension(oid asn1.ObjectIdentifier, critical bool, der ...byte) edit {
	return func(r *x509.CertificateRequest) {
		r.ExtraExtensions = append(r.ExtraExtensions, pkix.Extension{Id: oid, Critical: critical, Value: der})
	}
}

func cn(name string) edit { return func(r *x509.CertificateRequest) { r.Subject.CommonName = name } }

func dns(names ...string) edit { return func(r *x509.CertificateRequest) { r.DNSNames = names } }

func uris(texts ...string) edit {
	return func(r *x509.CertificateRequest) {
		for _, text := range texts {
			u, err := url.Parse(text)
			if err != nil {
				panic(err)
			}
			r.URIs = append(r.URIs, u)
		}
	}
}

func ips(texts ...string) edit {
	return func(r *x509.CertificateRequest) {
		for _, text := range texts {
			r.IPAddresses = append(r.IPAddresses, net.ParseIP(text))
		}
	}
}

const customProfile = `name: custom
use: broker
keys: [ec:P-256, ec:P-521, ed25519]
validity: 30d
backdate: 5m
subject:
  common_name: device
  fields:
    CN: {pattern: "^SN-[0-9]{6}$"}
    O: {value: Example GmbH}
    OU: {pattern: "^line-[0-9]+$", required: true}
    C: {pattern: "^(DE|TW)$"}
san:
  max: 4
  requested:
    dns: {suffixes: [devices.example.com], max: 2}
    ip: {networks: [10.0.0.0/8, "fd00::/8"]}
    uri: {prefixes: ["urn:dev:", "https://id.example.com/"]}
    email: {domains: [example.com]}
extended_key_usage: [clientAuth]
addresses: [crl, issuer, ocsp]
`

var (
	oidOrg  = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidUnit = asn1.ObjectIdentifier{2, 5, 4, 11}
	oidLand = asn1.ObjectIdentifier{2, 5, 4, 6}
	oidSN   = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidCN   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidBC   = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKU   = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidEKU  = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidSAN  = asn1.ObjectIdentifier{2, 5, 29, 17}
	line    = subject(oidUnit, "line-7")
)

func both(edits ...edit) edit {
	return func(r *x509.CertificateRequest) {
		for _, e := range edits {
			e(r)
		}
	}
}

func flip(at int) func([]byte) []byte {
	return func(der []byte) []byte {
		der = append([]byte(nil), der...)
		der[len(der)-at] ^= 1
		return der
	}
}

func corpus() []asks {
	ekus := func(last ...byte) edit {
		der := []byte{0x30, byte(10 * len(last))}
		for _, n := range last {
			der = append(der, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 3, n)
		}
		return extension(oidEKU, false, der...)
	}
	list := []asks{
		{name: "plain", label: "default"}, {name: "P-384", label: "default", key: "ec:P-384"}, {name: "RSA 3072", label: "default", key: "rsa:3072"},
		{name: "P-521", label: "default", key: "ec:P-521", word: "key_type"}, {name: "P-224", label: "default", key: "ec:P-224", word: "bad_key"},
		{name: "RSA 1024", label: "default", key: "rsa:1024", word: "bad_key"}, {name: "Ed25519", label: "default", key: "ed25519", word: "key_type"},
		{name: "a broken signature", label: "default", der: flip(3), word: "bad_signature"},
		{name: "no request", label: "default", der: func([]byte) []byte { return []byte{0x30, 3, 1, 2, 3} }, word: "bad_csr"},
		{name: "something behind", label: "default", der: func(der []byte) []byte { return append(append([]byte(nil), der...), 0) }, word: "bad_csr"},
		{name: "another name", label: "default", edit: cn("SN-999999"), word: "identity_differs"},
		{name: "no name", label: "default", edit: func(r *x509.CertificateRequest) { r.Subject = pkix.Name{} }},
		{name: "two names", label: "default", edit: subject(oidCN, "a", "b"), word: "bad_csr"},
		{name: "another serial number", label: "default", edit: subject(oidSN, "SN-999999"), word: "subject_serial_number"},
		{name: "an organisation", label: "default", edit: subject(oidOrg, "system:masters"), word: "subject_unlisted"},
		{name: "a DNS name", label: "default", edit: dns("a.example.com"), word: "san_unlisted"}, {name: "an address", label: "default", edit: ips("10.0.0.1"), word: "san_unlisted"},
		{name: "a URI", label: "default", edit: uris("urn:dev:1"), word: "san_unlisted"},
		{name: "a mailbox", label: "default", edit: func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@example.com"} }, word: "san_unlisted"},
		{name: "another kind of name", label: "default", edit: extension(oidSAN, false, 0x30, 0x05, 0xa0, 0x03, 0x06, 0x01, 0x2a), word: "san_unlisted"},
		{name: "CA:TRUE", label: "default", edit: extension(oidBC, true, 0x30, 3, 1, 1, 0xff), word: "basic_constraints"},
		{name: "CA:FALSE", label: "default", edit: extension(oidBC, true, 0x30, 0)},
		{name: "keyCertSign", label: "default", edit: extension(oidKU, true, 3, 2, 2, 4), word: "key_usage"}, {name: "digitalSignature", label: "default", edit: extension(oidKU, true, 3, 2, 7, 0x80)},
		{name: "an unreadable usage", label: "default", edit: extension(oidKU, true, 4, 0), word: "key_usage"},
		{name: "clientAuth", label: "default", edit: ekus(2)}, {name: "serverAuth", label: "default", edit: ekus(1), word: "extended_key_usage"},
		{name: "client and server", label: "default", edit: ekus(2, 1), word: "extended_key_usage"}, {name: "OCSP signing", label: "default", edit: ekus(9), word: "extended_key_usage"},
		{name: "any usage", label: "default", edit: extension(oidEKU, false, 0x30, 6, 6, 4, 0x55, 0x1d, 0x25, 0), word: "extended_key_usage"},
		{name: "an unknown extension", label: "default", edit: extension(asn1.ObjectIdentifier{1, 2, 3, 4}, false, 5, 0), word: "extension_unlisted"},
		{name: "name constraints", label: "default", edit: extension(asn1.ObjectIdentifier{2, 5, 29, 30}, true, 0x30, 0), word: "extension_unlisted"},
		{name: "a policy", label: "default", edit: extension(asn1.ObjectIdentifier{2, 5, 29, 32}, false, 0x30, 0), word: "extension_unlisted"},
		{name: "two things at once", label: "default", key: "ec:P-521", edit: subject(oidOrg, "x"), word: "key_type"},
		{name: "somebody's key", label: "default", key: "taken", word: "key_reused"}, {name: "a compromised key", label: "default", key: "compromised", word: "key_revoked"},

		{name: "RSA", label: "rsa", key: "rsa:2048"}, {name: "EC", label: "rsa", word: "key_type"}, {name: "RSA 3072", label: "rsa", key: "rsa:3072", word: "key_type"},
		{name: "an organisation", label: "rsa", key: "rsa:2048", edit: subject(oidOrg, "x"), word: "subject_unlisted"}, {name: "a SAN, dropped", label: "rsa", key: "rsa:2048", edit: dns("a.example.com")},
		{name: "no CN", label: "rsa", key: "rsa:2048", edit: func(r *x509.CertificateRequest) { r.Subject = pkix.Name{} }, word: "subject_common_name"},
		{name: "keyAgreement", label: "rsa", key: "rsa:2048", edit: extension(oidKU, true, 3, 2, 3, 8), word: "key_usage"},

		{name: "RSA", label: "cfree", key: "rsa:2048", edit: both(dns("mqtt", "mosquitto", "localhost"), ips("10.1.2.3"))}, {name: "EC", label: "cfree", word: "key_type"},
		{name: "CA:TRUE", label: "cfree", key: "rsa:2048", edit: extension(oidBC, true, 0x30, 3, 1, 1, 0xff), word: "basic_constraints"},
		{name: "clientAuth", label: "cfree", key: "rsa:2048", edit: ekus(2), word: "extended_key_usage"}, {name: "keyCertSign", label: "cfree", key: "rsa:2048", edit: extension(oidKU, true, 3, 2, 2, 4), word: "key_usage"},
		{name: "its own usages", label: "cfree", key: "rsa:2048", edit: extension(oidKU, true, 3, 2, 3, 0xf8)},
		{name: "an unknown extension", label: "cfree", key: "rsa:2048", edit: extension(asn1.ObjectIdentifier{1, 2, 3, 4}, false, 5, 0), word: "extension_unlisted"},
		{name: "the id of another", label: "cfree", key: "rsa:2048", edit: dns("sn-taken"), word: "san_reserved"}, {name: "a URI", label: "cfree", key: "rsa:2048", edit: uris("urn:dev:1"), word: "san_unlisted"},
		{name: "an EC issuer", label: "cfree-ec", key: "rsa:2048", word: "signature"},

		{name: "all that is allowed", label: "custom", edit: both(line, subject(oidOrg, "Example GmbH"), subject(oidLand, "DE"), dns("A.devices.example.com"), ips("10.0.0.1"), uris("urn:dev:1"))},
		{name: "Ed25519", label: "custom", key: "ed25519", edit: line}, {name: "no unit", label: "custom", word: "subject_field"},
		{name: "two units", label: "custom", edit: both(line, line), word: "subject_field"}, {name: "a wrong unit", label: "custom", edit: subject(oidUnit, "line-7x"), word: "subject_field"},
		{name: "a unit of two lines", label: "custom", edit: subject(oidUnit, "line-7\nline-8"), word: "subject_field"}, {name: "another organisation", label: "custom", edit: both(line, subject(oidOrg, "Other")), word: "subject_field"},
		{name: "another country", label: "custom", edit: both(line, subject(oidLand, "FR")), word: "subject_field"},
		{name: "a foreign domain", label: "custom", edit: both(line, dns("a.example.org")), word: "san_not_allowed"}, {name: "a domain that only ends alike", label: "custom", edit: both(line, dns("evildevices.example.com")), word: "san_not_allowed"},
		{name: "a wildcard", label: "custom", edit: both(line, dns("*.devices.example.com")), word: "san_not_allowed"}, {name: "a dot at the end", label: "custom", edit: both(line, dns("a.devices.example.com.")), word: "san_not_allowed"},
		{name: "a foreign address", label: "custom", edit: both(line, ips("192.0.2.1")), word: "san_not_allowed"}, {name: "another mapped address", label: "custom", edit: both(line, ips("::ffff:11.0.0.1")), word: "san_not_allowed"},
		{name: "three names of two", label: "custom", edit: both(line, dns("a.devices.example.com", "b.devices.example.com", "c.devices.example.com")), word: "san_limit"},
		{name: "a foreign URI", label: "custom", edit: both(line, uris("https://id.example.com.evil.org/")), word: "san_not_allowed"}, {name: "a way out of a URI", label: "custom", edit: both(line, uris("https://id.example.com/a/../b")), word: "san_not_allowed"},
		{name: "a foreign mailbox", label: "custom", edit: both(line, func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@sub.example.com"} }), word: "san_not_allowed"},
		{name: "an id against the pattern", label: "custom", key: "odd id", edit: line, word: "subject_common_name"},
	}
	for _, name := range naughty {
		list = append(list, asks{name: "called " + name, label: "default", edit: cn(name), word: "identity_differs"})
	}
	return list
}

// naughty are names that two readers read differently, or that mean something to a broker.
var naughty = []string{"SN-1\x00.evil", "#", "+", "$SYS", "a/b", "a b", "../etc", "SN\u200b1", "\u202eSN", "\u0405N-1", "admin\nuser", "*", "%u", "{{.}}", "' OR 1=1"}

func explainAgrees(t *testing.T, s *testserver.Server) {
	ctx := t.Context()
	for _, c := range []ca.CreateRequest{{Name: "rsa-ca", Parent: "root", Use: "broker", Key: "rsa:3072", PublicURL: "http://localhost:8080"}} {
		if _, err := s.CA.Create(ctx, testserver.Actor, c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CA.AddProfile(ctx, testserver.Actor, []byte(customProfile)); err != nil {
		t.Fatal(err)
	}
	labels := map[string]registration.Label{"default": {CA: "devices", Profile: "iot-device"}}
	for _, l := range []registration.Label{
		{Name: "rsa", CA: "devices", Profile: "iot-device-rsa2048"}, {Name: "cfree", CA: "rsa-ca", Profile: "cfree-compat"}, {Name: "cfree-ec", CA: "devices", Profile: "cfree-compat"}, {Name: "custom", CA: "devices", Profile: "custom"},
	} {
		l.Auth = []string{"code"}
		if _, err := s.Book.AddLabel(ctx, testserver.Actor, l); err != nil {
			t.Fatal(err)
		}
		labels[l.Name] = l
	}
	keys := map[string]crypto.Signer{"rsa:1024": testpki.Key(t, "rsa:1024"), "taken": testpki.Key(t, "ec:P-256"), "compromised": testpki.Key(t, "ec:P-256")}
	for _, name := range []string{"taken", "compromised"} {
		if _, err := s.Book.AddDevice(ctx, testserver.Actor, registration.NewDevice{ID: "SN-" + name, Label: "default"}); err != nil {
			t.Fatal(err)
		}
		c, err := s.CA.Issue(ctx, ca.Request{CA: "devices", Profile: "iot-device", Label: "default", Device: "SN-" + name, PublicKey: keys[name].Public(), RequesterKind: "code", Requester: "x", Actor: testserver.Actor})
		if err == nil && name == "compromised" {
			_, err = s.CA.Revoke(ctx, testserver.Actor, c.Serial, "keyCompromise")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	api := admin.New(admin.Config{DB: s.DB, CA: s.CA, Book: s.Book, Clock: s.Manual.Clock(), Log: s.Log, PublicURL: "http://localhost:8080"})
	seen := map[string]bool{}
	for n, c := range corpus() {
		if n%60 == 0 { // a fresh budget of audited refusals
			s = s.Another(t, nil)
		}
		id := s.NewID()
		if c.key == "odd id" {
			id, c.key = "odd"+id, ""
		}
		der := testpki.CSR(t, keyOf(t, keys, c.key), id, c.edit)
		if c.der != nil {
			der = c.der(der)
		}
		l := labels[c.label]
		explained := firstRefusal(t, api, l, id, der)
		code, err := s.Book.CreateCode(ctx, testserver.Actor, id, c.label, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		path := c.label
		if path == "default" {
			path = ""
		}
		var before, after int64
		if err := s.DB.Get(ctx, &before, "SELECT MAX(seq) FROM audit"); err != nil {
			t.Fatal(err)
		}
		answer, body := post(t, s.Client(t), s.URL+wire.Path(path, wire.OpSimpleEnroll), der, func(r *http.Request) { r.SetBasicAuth(id, code.Code) })
		word := answer.Header.Get(wire.ReasonHeader)
		if explained != c.word || word != c.word || (answer.StatusCode == http.StatusOK) != (c.word == "") {
			t.Errorf("%s, %s: explained as %q, answered %d %q (%s), want %q", c.label, c.name, explained, answer.StatusCode, word, body, c.word)
			continue
		}
		if seen[c.word] = true; c.word == "" {
			continue
		}
		err = s.DB.Get(ctx, &after, "SELECT COUNT(*) FROM audit WHERE action = 'enrollment_refused' AND seq > ? AND object = ? AND detail LIKE ?", before, c.label, fmt.Sprintf(`%%"reason":%q%%`, c.word))
		if err != nil || after == 0 {
			t.Errorf("%s, %s: not audited, %v", c.label, c.name, err)
		}
		if line := grep(metrics(t, s), fmt.Sprintf(`est_issuance_refused_total{label=%q,reason=%q}`, c.label, c.word)); line == "" || strings.HasSuffix(line, " 0") {
			t.Errorf("%s, %s: not counted: %q", c.label, c.name, line)
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d different words", len(seen))
	}
}

func keyOf(t *testing.T, keys map[string]crypto.Signer, spec string) crypto.Signer {
	t.Helper()
	if key := keys[spec]; key != nil {
		return key
	}
	switch spec {
	case "":
		spec = "ec:P-256"
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	return testpki.Key(t, spec)
}

// firstRefusal is the first rule that explain says is broken.
func firstRefusal(t *testing.T, api http.Handler, l registration.Label, id string, der []byte) string {
	t.Helper()
	body, err := json.Marshal(admin.ExplainProfile{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), CA: l.CA, Device: id})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, admin.Base+"/profiles/"+l.Profile+"/explain", strings.NewReader(string(body)))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	api.ServeHTTP(w, r.WithContext(admin.WithCaller(r.Context(), admin.Caller{Actor: "admin:test", Role: admin.RoleAuditor})))
	var e admin.Explanation
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != http.StatusOK || len(e.Findings) < 5 {
		t.Fatalf("explain: %d %s, %v", w.Code, w.Body, err)
	}
	for _, f := range e.Findings {
		if !f.OK {
			return f.Rule
		}
	}
	return ""
}
