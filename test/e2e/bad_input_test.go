// What must not get in, against the built server on both databases: 4xx with a reason, never 5xx, never an empty 200, and nothing stored but lines
// of the audit log. test/conformance has the cases of the protocol; here are names, keys, credentials and sizes.

package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

// notNames are no device ids, each for a reason of its own: what other programs make of them, or what they look like.
var notNames = []string{
	" ", "a b", " SN-1", "SN-1 ", "a/b", "../SN-1", "SN-1/../admin", "%2e%2e%2fSN-1", "a,CN=admin", "a+CN=admin", "/CN=admin", "a\x00b", "SN-1\x00",
	"a\nuser b\ntopic readwrite #", "a\r\nX-Forwarded-For: b", "a\tb", "#", "+", "$SYS", "-a", ".a", "_a", "a:b", "a=b", "a;b", "a'b", `a"b`, `a\b`, "a|b", "a&b", "`id`",
	"'; DROP TABLE end_entities; --", "1' OR '1'='1", "{{.}}", "${jndi:ldap://127.0.0.1/a}", "%u", "%s%n", "<script>alert(1)</script>", "=cmd|' /C calc'!A0",
	"SN\u200b-1", "SN-1\u202e", "S\u041d-1", "ＳＮ-1", "é", "\U0001f4a9", "\xff\xfe", "SN-1\xc0\xaf", strings.Repeat("a", 65), strings.Repeat("a", 10000),
}

// badServer is a server, a good code that no refusal may use up, and how to talk to it.
type badServer struct {
	*harness.Server
	client  *http.Client
	factory *testpki.Authority
	key     crypto.Signer
	code    string
}

const honest = "SN-1"

func startBad(t *testing.T, env ...string) *badServer {
	t.Helper()
	s := harness.StartServer(t, harness.ServerOptions{Env: env})
	b := &badServer{Server: s, factory: factory(t, s), key: testpki.Key(t, "ec:P-256"), client: s.HTTP(t)}
	b.client.Transport.(*http.Transport).DisableKeepAlives = false
	t.Cleanup(b.client.CloseIdleConnections)
	s.MustCLI(t, "label", "add", "plant-a", "--ca", "devices", "--profile", "iot-device", "--auth", "code,birth")
	b.code = strings.TrimSpace(readText(t, s.CodeFile(t, honest)))
	return b
}

// said is an answer, reduced to what a client can tell apart.
type said struct {
	status int
	reason string
	body   string
	header string
}

func (b *badServer) send(t *testing.T, client *http.Client, path, user, code string, body []byte) (said, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.URL()+"/.well-known/est/"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	if user != "" || code != "" {
		req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+code)))
	}
	answer, err := client.Do(req)
	if err != nil {
		return said{}, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return said{}, err
	}
	answer.Header.Del("Date")
	var header bytes.Buffer
	if err := answer.Header.Write(&header); err != nil {
		t.Fatal(err)
	}
	return said{answer.StatusCode, answer.Header.Get("Est-Reason"), string(text), header.String()}, nil
}

// refused wants a 4xx with a reason in plain text.
func (b *badServer) refused(t *testing.T, what string, got said, err error, statuses ...int) {
	t.Helper()
	switch {
	case err != nil:
		t.Errorf("%s: no answer: %v", what, err)
	case !slices.Contains(statuses, got.status):
		t.Errorf("%s: %d %q, want %v", what, got.status, got.body, statuses)
	case got.reason == "" || !strings.HasPrefix(got.body, got.reason+": ") || strings.Count(got.body, "\n") != 1:
		t.Errorf("%s: %d without a reason in one line: %q, Est-Reason %q", what, got.status, got.body, got.reason)
	}
}

func encoded(der []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(der)) }

// stored is everything that the administration shows.
func (b *badServer) stored(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, list := range []string{"ca", "label", "profile", "device", "code", "cert", "birth-ca", "crl", "admin"} {
		all.WriteString(b.MustCLI(t, list, "list", "--json").Stdout)
	}
	return all.String()
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	databases := map[string]func(t *testing.T) []string{
		"sqlite":   func(*testing.T) []string { return nil },
		"postgres": func(t *testing.T) []string { return []string{"NATAL_DATABASE_URL=" + harness.PostgresURL(t)} },
	}
	for name, env := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBad(t, env(t)...)
			b.names(t, b.stored(t))
			b.keys(t)
			b.requests(t)
			b.sizes(t)
			b.certificates(t)
			b.codes(t)
			b.administration(t)

			// After all of that the good code is as good as before, and the server well.
			got, err := b.send(t, b.client, "simpleenroll", honest, b.code, encoded(testpki.CSR(t, b.key, honest, nil)))
			if err != nil || got.status != http.StatusOK || got.body == "" {
				t.Errorf("the good code: %d %q, %v", got.status, got.body, err)
			}
			if status := httpStatus("http://" + b.Metrics + "/healthz"); status != http.StatusOK {
				t.Errorf("/healthz: %d", status)
			}
			b.MustCLI(t, "audit", "verify")
			for _, line := range outputLines(b.Process) {
				if strings.Contains(line, "level=ERROR") || strings.Contains(line, "panic") {
					t.Errorf("the server's log has: %s", line)
				}
			}
		})
	}
}

// names sends every wrong name in every place.
func (b *badServer) names(t *testing.T, before string) {
	t.Helper()
	for n, name := range notNames {
		body := encoded(rawCSR(t, b.key, subjectOf(t, asn1.TagUTF8String, name), nil))
		got, err := b.send(t, b.client, "simpleenroll", honest, b.code, body)
		b.refused(t, fmt.Sprintf("CSR for %.40q", name), got, err, http.StatusBadRequest, http.StatusForbidden)
		if n%2 == 0 { // wrong credentials are throttled by address
			got, err = b.send(t, b.client, "simpleenroll", name, b.code, encoded(testpki.CSR(t, b.key, honest, nil)))
			b.refused(t, fmt.Sprintf("user %.40q", name), got, err, http.StatusUnauthorized)
		}
		if got, err := b.send(t, b.client, percent(name)+"/simpleenroll", honest, b.code, body); err != nil || got.status/100 != 4 {
			t.Errorf("label %.40q: %d, %v", name, got.status, err)
		}
	}
	for encoding, subject := range map[string][]byte{
		"two names":       subjectOf(t, asn1.TagUTF8String, honest, "admin"),
		"UniversalString": subjectOf(t, 28, "\x00\x00\x00S\x00\x00\x00N"), "BMPString": subjectOf(t, asn1.TagBMPString, "\x00S\x00N"), "T61String": subjectOf(t, asn1.TagT61String, honest),
	} {
		got, err := b.send(t, b.client, "simpleenroll", honest, b.code, encoded(rawCSR(t, b.key, subject, nil)))
		b.refused(t, encoding, got, err, http.StatusBadRequest)
	}
	for _, name := range []string{"a b", "../SN-2", "a\nuser b", "#", "natal-x", strings.Repeat("a", 65)} {
		birth := b.factory.Birth(t, name)
		got, err := b.send(t, b.HTTP(t, birth.TLS()), "simpleenroll", "", "", encoded(testpki.CSR(t, b.key, name, nil)))
		b.refused(t, fmt.Sprintf("birth certificate of %.40q", name), got, err, http.StatusUnauthorized)
	}
	if after := b.stored(t); after != before {
		t.Errorf("refusals have left something behind:\n%s\nbefore:\n%s", after, before)
	}
}

// percent writes every byte of a label as %XX.
func percent(name string) string {
	if len(name) > 200 {
		name = name[:200]
	}
	return strings.ToUpper(strings.TrimSuffix("%"+strings.ReplaceAll(fmt.Sprintf("% x", name), " ", "%"), "%"))
}

// keys sends keys that are weak, odd or not on their curve.
func (b *badServer) keys(t *testing.T) {
	t.Helper()
	before := b.stored(t)
	for what, spki := range badKeys(t) {
		began := time.Now()
		got, err := b.send(t, b.client, "simpleenroll", honest, b.code, encoded(rawCSR(t, b.key, subjectOf(t, asn1.TagUTF8String, honest), spki)))
		b.refused(t, what, got, err, http.StatusBadRequest)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: refused after %v", what, took)
		}
	}
	if after := b.stored(t); after != before {
		t.Errorf("bad keys have left something behind:\n%s", after)
	}
}

// requests asks for what a device's profile does not give.
func (b *badServer) requests(t *testing.T) {
	t.Helper()
	before := b.stored(t)
	extension := func(critical bool, value string, oid ...int) pkix.Extension {
		return pkix.Extension{Id: oid, Critical: critical, Value: []byte(value)}
	}
	eku := func(last byte) string { return "\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03" + string([]byte{last}) }
	for what, e := range map[string]pkix.Extension{
		"CA:TRUE":                    extension(true, "\x30\x03\x01\x01\xff", 2, 5, 29, 19),
		"CA:TRUE, pathlen":           extension(true, "\x30\x06\x01\x01\xff\x02\x01\x05", 2, 5, 29, 19),
		"keyCertSign":                extension(true, "\x03\x02\x02\x04", 2, 5, 29, 15),
		"cRLSign":                    extension(true, "\x03\x02\x01\x02", 2, 5, 29, 15),
		"serverAuth":                 extension(false, eku(1), 2, 5, 29, 37),
		"codeSigning":                extension(false, eku(3), 2, 5, 29, 37),
		"OCSPSigning":                extension(false, eku(9), 2, 5, 29, 37),
		"anyExtendedKeyUsage":        extension(false, "\x30\x06\x06\x04\x55\x1d\x25\x00", 2, 5, 29, 37),
		"DNS name":                   extension(false, "\x30\x0b\x82\x09localhost", 2, 5, 29, 17),
		"IP address":                 extension(false, "\x30\x06\x87\x04\x7f\x00\x00\x01", 2, 5, 29, 17),
		"URI":                        extension(false, "\x30\x07\x86\x05urn:a", 2, 5, 29, 17),
		"mail address":               extension(false, "\x30\x07\x81\x05a@b.c", 2, 5, 29, 17),
		"directory name":             extension(false, "\x30\x04\xa4\x02\x30\x00", 2, 5, 29, 17),
		"empty DNS name":             extension(false, "\x30\x02\x82\x00", 2, 5, 29, 17),
		"broken names":               extension(false, "\x30\x7f\x82", 2, 5, 29, 17),
		"name constraints":           extension(true, "\x30\x00", 2, 5, 29, 30),
		"authority key id":           extension(false, "\x30\x00", 2, 5, 29, 35),
		"unknown critical extension": extension(true, "\x05\x00", 1, 3, 6, 1, 4, 1, 99999, 1),
		"unknown extension":          extension(false, "\x05\x00", 1, 3, 6, 1, 4, 1, 99999, 2),
	} {
		csr := testpki.CSR(t, b.key, honest, func(r *x509.CertificateRequest) { r.ExtraExtensions = []pkix.Extension{e} })
		got, err := b.send(t, b.client, "simpleenroll", honest, b.code, encoded(csr))
		b.refused(t, "CSR with "+what, got, err, http.StatusBadRequest)
	}
	for what, name := range map[string]pkix.Name{
		"organization": {CommonName: honest, Organization: []string{"system:masters"}}, "unit": {CommonName: honest, OrganizationalUnit: []string{"admin,CN=admin"}},
		"serial number": {CommonName: honest, SerialNumber: "SN-2"},
	} {
		csr := testpki.CSR(t, b.key, "", func(r *x509.CertificateRequest) { r.Subject = name })
		got, err := b.send(t, b.client, "simpleenroll", honest, b.code, encoded(csr))
		b.refused(t, "CSR with "+what, got, err, http.StatusBadRequest, http.StatusForbidden)
	}
	if after := b.stored(t); after != before {
		t.Errorf("refused requests have left something behind:\n%s", after)
	}
}

// sizes sends what is large in one way or another.
func (b *badServer) sizes(t *testing.T) {
	t.Helper()
	before := b.stored(t)
	nested := []byte{}
	for range 15000 { // each SEQUENCE around the one before
		if len(nested) > 40000 {
			break
		}
		nested = append(derHeader(0x30, len(nested)), nested...)
	}
	names := testpki.CSR(t, b.key, honest, func(r *x509.CertificateRequest) {
		for n := range 1500 {
			r.DNSNames = append(r.DNSNames, fmt.Sprintf("name-%d.example", n))
		}
	})
	for what, body := range map[string][]byte{
		"nothing":                 nil,
		"white space":             bytes.Repeat([]byte(" \r\n"), 10000),
		"64 KiB of BEGIN":         bytes.Repeat([]byte("-----BEGIN CERTIFICATE REQUEST-----\n"), 1800),
		"nested sequences":        encoded(nested),
		"empty sequences":         encoded(append(derHeader(0x30, 40000), bytes.Repeat([]byte{0x30, 0}, 20000)...)),
		"a length of 4 GiB":       encoded([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x30, 0x00}),
		"an indefinite length":    encoded([]byte{0x30, 0x80, 0x30, 0x00, 0x00, 0x00}),
		"1500 names":              encoded(names),
		"one byte short":          encoded(names[:len(names)-1]),
		"a certificate":           encoded(b.factory.Certificate.Raw),
		"a key":                   []byte("-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"),
		"binary":                  bytes.Repeat([]byte{0, 0xff, 0x80}, 1000),
		"just over what is read":  bytes.Repeat([]byte("A"), 64<<10+1),
		"far over what is read":   bytes.Repeat([]byte("A"), 8<<20),
		"two requests in one":     append(encoded(testpki.CSR(t, b.key, honest, nil)), encoded(testpki.CSR(t, b.key, honest, nil))...),
		"a request and something": encoded(append(testpki.CSR(t, b.key, honest, nil), 0x05, 0x00)),
	} {
		began := time.Now()
		got, err := b.send(t, b.HTTP(t), "simpleenroll", honest, b.code, body)
		if err != nil && len(body) > 64<<10 {
			continue // it hung up while we were sending, and the answer got lost: it does not read all of that
		}
		b.refused(t, what, got, err, http.StatusBadRequest, http.StatusRequestEntityTooLarge)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: refused after %v", what, took)
		}
	}
	if after := b.stored(t); after != before {
		t.Errorf("large bodies have left something behind:\n%s", after)
	}
}

// certificates presents client certificates that count for nothing. A server may end the handshake instead of answering.
func (b *badServer) certificates(t *testing.T) {
	t.Helper()
	before := b.stored(t)
	deep := b.factory.Intermediate(t, "1")
	for n := range 20 {
		deep = deep.Intermediate(t, fmt.Sprint(n+2))
	}
	many := func(c *x509.Certificate) {
		for n := range 1500 {
			c.DNSNames = append(c.DNSNames, fmt.Sprintf("name-%d.example", n))
		}
	}
	noCA := b.factory.Intermediate(t, "no CA", testpki.NotCA())
	own := testpki.ParsePEM(t, []byte(readText(t, filepath.Join(b.Data, "ca", "devices.pem"))))[0]
	imitation := testpki.Root(t, "", testpki.Subject(own.Subject))
	for what, leaf := range map[string]*testpki.Leaf{
		"foreign":                 testpki.Root(t, "Factory birth CA").Birth(t, "SN-9"),
		"self-signed":             testpki.SelfSigned(t, "SN-9"),
		"expired":                 b.factory.Birth(t, "SN-9", testpki.Expired()),
		"not yet valid":           b.factory.Birth(t, "SN-9", testpki.NotYetValid()),
		"for servers only":        b.factory.Birth(t, "SN-9", testpki.EKU(x509.ExtKeyUsageServerAuth)),
		"a CA":                    b.factory.Birth(t, "SN-9", testpki.Edit(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign })),
		"weak key":                b.factory.Birth(t, "SN-9", testpki.KeySpec("ec:P-224")),
		"no name":                 b.factory.Birth(t, "SN-9", testpki.Subject(pkix.Name{Organization: []string{"x"}})),
		"two names":               b.factory.Birth(t, "SN-9", testpki.Edit(func(c *x509.Certificate) { c.RawSubject = subjectOf(t, asn1.TagUTF8String, "SN-9", "SN-1") })),
		"under something no CA":   noCA.Birth(t, "SN-9"),
		"22 deep":                 deep.Birth(t, "SN-9"),
		"1500 names":              testpki.Root(t, "elsewhere").Birth(t, "SN-9", testpki.Edit(many)),
		"our issuing CA, forged":  imitation.Leaf(t, honest),
		"our EST server's, by us": testpki.SelfSigned(t, "localhost"),
	} {
		for _, operation := range []string{"simpleenroll", "simplereenroll"} {
			cn := "SN-9"
			if leaf.Certificate.Subject.CommonName == honest {
				cn = honest
			}
			began := time.Now()
			got, err := b.send(t, b.HTTP(t, leaf.TLS()), operation, "", "", encoded(testpki.CSR(t, b.key, cn, nil)))
			if err == nil {
				b.refused(t, what+", "+operation, got, err, http.StatusUnauthorized)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%s, %s: refused after %v", what, operation, took)
			}
		}
	}
	if after := b.stored(t); after != before {
		t.Errorf("refused certificates have left something behind:\n%s", after)
	}
	// The CAs themselves are reached with such a certificate: a device must be able to learn whom to trust.
	expired := b.factory.Birth(t, "SN-9", testpki.Expired())
	answer, err := b.HTTP(t, expired.TLS()).Get(b.URL() + "/.well-known/est/cacerts")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("/cacerts with an expired certificate: %d", answer.StatusCode)
	}
}

// codes shows that nobody can tell what is wrong with a code.
func (b *badServer) codes(t *testing.T) {
	t.Helper()
	code := func(device string, args ...string) string {
		return strings.TrimSpace(readText(t, b.CodeFile(t, device, args...)))
	}
	expired := code("SN-expired", "--expires", "1s")
	csr := func(cn string) []byte { return encoded(testpki.CSR(t, testpki.Key(t, "ec:P-256"), cn, nil)) }
	used, revoked, elsewhere, replaced, gone := code("SN-used"), code("SN-revoked"), code("SN-elsewhere", "--label", "plant-a"), code("SN-replaced"), code("SN-gone")
	if got, err := b.send(t, b.client, "simpleenroll", "SN-used", used, csr("SN-used")); err != nil || got.status != http.StatusOK {
		t.Fatalf("a good code: %d %s, %v", got.status, got.body, err)
	}
	b.MustCLI(t, "code", "revoke", "SN-revoked")
	code("SN-replaced")
	b.MustCLI(t, "device", "revoke", "SN-gone", "--reason", "cessationOfOperation")
	before := b.stored(t)
	var first said
	wait := time.Now().Add(2 * time.Second)
	for n, c := range []struct{ what, user, code, cn string }{
		{"wrong", honest, "0" + b.code[1:], honest},
		{"one character more", honest, b.code + "a", honest},
		{"upper case", honest, strings.ToUpper(b.code), honest},
		{"empty", honest, "", honest},
		{"low entropy", honest, "dojot", honest},
		{"of another device", "SN-used", b.code, "SN-used"},
		{"of a device that does not exist", "nobody", b.code, "nobody"},
		{"used, with another key", "SN-used", used, "SN-used"},
		{"revoked", "SN-revoked", revoked, "SN-revoked"},
		{"replaced", "SN-replaced", replaced, "SN-replaced"},
		{"of another label", "SN-elsewhere", elsewhere, "SN-elsewhere"},
		{"of a revoked device", "SN-gone", gone, "SN-gone"},
		{"reserved", "natal-bridge", b.code, "natal-bridge"},
		{"with a NUL", honest + "\x00", b.code, honest},
		{"with a NUL in the code", honest, b.code + "\x00", honest},
		{"not UTF-8", "SN\xff", "\xfe\xff", honest},
		{"expired", "SN-expired", expired, "SN-expired"},
	} {
		if c.what == "expired" {
			time.Sleep(time.Until(wait)) // its one second has to be over
		}
		for _, operation := range []string{"simpleenroll", "simplereenroll"} {
			got, err := b.send(t, b.client, operation, c.user, c.code, csr(c.cn))
			b.refused(t, "code "+c.what, got, err, http.StatusUnauthorized)
			if n == 0 && operation == "simpleenroll" {
				first = got
			}
			if got != first {
				t.Errorf("code %s: the answer differs from that to a wrong code:\n%+v\n%+v", c.what, got, first)
			}
		}
	}
	b.refusedAlike(t, first)
	expiredNow := strings.NewReplacer(`"state": "expired"`, `"state": "active"`, `"state":"expired"`, `"state":"active"`)
	if after := b.stored(t); expiredNow.Replace(after) != expiredNow.Replace(before) {
		t.Errorf("wrong codes have left something behind:\n%s\nbefore:\n%s", after, before)
	}
}

// administration sends the wrong names to the API.
func (b *badServer) administration(t *testing.T) {
	t.Helper()
	before := b.stored(t)
	client := socketClient(t, b.Server)
	for _, name := range notNames {
		text, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ method, path, body string }{
			{"GET", "/devices/" + percent(name), ""}, {"GET", "/certificates/" + percent(name), ""}, {"GET", "/cas/" + percent(name), ""}, {"DELETE", "/codes/" + percent(name), ""},
			{"POST", "/devices/" + percent(name) + "/revoke", `{"reason":"keyCompromise"}`}, {"POST", "/devices", `{"id":` + string(text) + `,"label":"default"}`},
			{"POST", "/codes", `{"device":"SN-2","label":` + string(text) + `}`}, {"GET", "/devices?label=" + percent(name), ""}, {"GET", "/devices?after=" + percent(name), ""},
		} {
			req, err := http.NewRequestWithContext(t.Context(), c.method, "http://admin/api/v1"+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			answer, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			list := strings.HasPrefix(c.path, "/devices?")
			if err != nil || answer.StatusCode/100 != 4 && !(list && answer.StatusCode == http.StatusOK) {
				t.Errorf("%s %.80s %.80s: %d %.200s, %v", c.method, c.path, c.body, answer.StatusCode, text, err)
			}
		}
	}
	if after := b.stored(t); after != before {
		t.Errorf("wrong names have left something behind:\n%s\nbefore:\n%s", after, before)
	}
}

// refusedAlike: no credential at all, and a certificate that does not count, get the same answer.
func (b *badServer) refusedAlike(t *testing.T, first said) {
	t.Helper()
	csr := encoded(testpki.CSR(t, b.key, honest, nil))
	for what, client := range map[string]*http.Client{"none": b.client, "foreign": b.HTTP(t, testpki.SelfSigned(t, honest).TLS())} {
		got, err := b.send(t, client, "simpleenroll", "", "", csr)
		got.header = strings.ReplaceAll(got.header, "Connection: close\r\n", "")
		if err != nil || got != first {
			t.Errorf("certificate %s: %+v, %v; want the answer to a wrong code, %+v", what, got, err, first)
		}
	}
}

// subjectOf is a name of common names, DER, each in an RDN of its own.
func subjectOf(t *testing.T, tag int, names ...string) []byte {
	t.Helper()
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	var rdns []asn1.RawValue
	for _, name := range names {
		ava, err := asn1.Marshal(attribute{asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.RawValue{Tag: tag, Bytes: []byte(name)}})
		if err != nil {
			t.Fatal(err)
		}
		rdns = append(rdns, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: ava})
	}
	der, err := asn1.Marshal(rdns)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// rawCSR is a request with any subject and any public key (nil: the signer's), signed by signer.
func rawCSR(t *testing.T, signer crypto.Signer, subject, spki []byte) []byte {
	t.Helper()
	if spki == nil {
		var err error
		if spki, err = x509.MarshalPKIXPublicKey(signer.Public()); err != nil {
			t.Fatal(err)
		}
	}
	info, err := asn1.Marshal(struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes asn1.RawValue
	}{0, asn1.RawValue{FullBytes: subject}, asn1.RawValue{FullBytes: spki}, asn1.RawValue{FullBytes: []byte{0xa0, 0}}})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(info)
	signature, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: info}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, asn1.BitString{Bytes: signature, BitLength: len(signature) * 8}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// badKeys are SubjectPublicKeyInfos that no profile takes.
func badKeys(t *testing.T) map[string][]byte {
	t.Helper()
	info := func(algorithm []byte, key []byte) []byte {
		der, err := asn1.Marshal(struct {
			Algorithm asn1.RawValue
			Key       asn1.BitString
		}{asn1.RawValue{FullBytes: algorithm}, asn1.BitString{Bytes: key, BitLength: len(key) * 8}})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	algorithm := func(oid asn1.ObjectIdentifier, parameters any) []byte {
		full := asn1.NullRawValue
		if parameters != nil {
			der, err := asn1.Marshal(parameters)
			if err != nil {
				t.Fatal(err)
			}
			full = asn1.RawValue{FullBytes: der}
		}
		der, err := asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: full})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	odd := func(bits int) *big.Int {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
		if err != nil {
			t.Fatal(err)
		}
		return n.SetBit(n.SetBit(n, bits-1, 1), 0, 1)
	}
	rsaKey := func(n, e *big.Int) []byte {
		der, err := asn1.Marshal(struct{ N, E *big.Int }{n, e})
		if err != nil {
			t.Fatal(err)
		}
		return info(algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, nil), der)
	}
	ecOID, p256 := asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	good, err := testpki.Key(t, "ec:P-256").Public().(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	off := bytes.Clone(good)
	off[len(off)-1] ^= 1
	prime, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	next := new(big.Int).Add(prime, big.NewInt(2))
	for !next.ProbablyPrime(10) {
		next.Add(next, big.NewInt(2))
	}
	e := big.NewInt(65537)
	return map[string][]byte{
		"RSA 512": rsaKey(odd(512), e), "RSA 1024": rsaKey(odd(1024), e), "RSA 2047": rsaKey(odd(2047), e), "RSA 4096": rsaKey(odd(4096), e), "RSA 16384": rsaKey(odd(16384), e),
		"RSA with e=1": rsaKey(odd(2048), big.NewInt(1)), "RSA with e=2": rsaKey(odd(2048), big.NewInt(2)), "RSA with a huge e": rsaKey(odd(2048), odd(2040)),
		"RSA with an even n": rsaKey(new(big.Int).Add(odd(2048), big.NewInt(1)), e), "RSA with a negative n": rsaKey(new(big.Int).Neg(odd(2048)), e),
		"RSA with close primes": rsaKey(new(big.Int).Mul(prime, next), e), "RSA without content": info(algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, nil), nil),
		"P-224":     mustPKIX(t, testpki.Key(t, "ec:P-224").Public()),
		"P-521":     mustPKIX(t, testpki.Key(t, "ec:P-521").Public()),
		"Ed25519":   mustPKIX(t, testpki.Key(t, "ed25519").Public()),
		"secp256k1": info(algorithm(ecOID, asn1.ObjectIdentifier{1, 3, 132, 0, 10}), good), "SM2": info(algorithm(ecOID, asn1.ObjectIdentifier{1, 2, 156, 10197, 1, 301}), good),
		"a point off its curve": info(algorithm(ecOID, p256), off), "the point (0,0)": info(algorithm(ecOID, p256), append([]byte{4}, make([]byte, 64)...)),
		"the point at infinity": info(algorithm(ecOID, p256), []byte{0}), "a compressed point": info(algorithm(ecOID, p256), elliptic.MarshalCompressed(elliptic.P256(), new(big.Int).SetBytes(good[1:33]), new(big.Int).SetBytes(good[33:]))),
		"a point of another curve": info(algorithm(ecOID, asn1.ObjectIdentifier{1, 3, 132, 0, 34}), good), "an EC key without a curve": info(algorithm(ecOID, nil), good),
		"explicit parameters": info(algorithm(ecOID, struct{ Version int }{1}), good),
		"X25519":              info(algorithm(asn1.ObjectIdentifier{1, 3, 101, 110}, nil), make([]byte, 32)),
		"DSA":                 info(algorithm(asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}, struct{ P, Q, G *big.Int }{odd(1024), odd(160), big.NewInt(2)}), []byte{2, 1, 5}),
		"an unknown kind":     info(algorithm(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999}, nil), []byte{1, 2, 3}),
	}
}

func mustPKIX(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// derHeader is a tag and a length.
func derHeader(tag byte, length int) []byte {
	switch {
	case length < 0x80:
		return []byte{tag, byte(length)}
	case length < 0x100:
		return []byte{tag, 0x81, byte(length)}
	}
	return []byte{tag, 0x82, byte(length >> 8), byte(length)}
}
