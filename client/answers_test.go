package client

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

func TestCACertsRefused(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	notCA := p.root.Leaf(t, "a leaf")
	for name, certs := range map[string][]*x509.Certificate{
		"no self-signed":          {p.ca.Certificate},
		"broken chain":            {p.root.Certificate, testpki.Root(t, "Other").Intermediate(t, "Elsewhere").Certificate},
		"same name, another root": {testpki.Root(t, "Root").Certificate, p.ca.Certificate},
		"expired intermediate":    {p.root.Certificate, p.root.Intermediate(t, "Old", testpki.Expired()).Certificate},
		"future intermediate":     {p.root.Certificate, p.root.Intermediate(t, "Soon", testpki.NotYetValid()).Certificate},
		"expired root":            {testpki.Root(t, "Old", testpki.Expired()).Certificate},
		"self-signed leaf":        {testpki.SelfSigned(t, "leaf").Certificate},
		"a leaf beside":           {p.root.Certificate, notCA.Certificate},
		"issuer is no CA":         {p.root.Certificate, p.root.Intermediate(t, "X", testpki.NotCA()).Certificate},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newPeer(t)
			q.on(wire.OpCACerts, q.certs(certs...))
			_, err := q.client().CACerts(testContext(t))
			var e *Error
			if !errors.As(err, &e) || e.Reason != "bad_answer" || e.Status != 200 {
				t.Errorf("got %v", err)
			}
			if _, err := q.client().Enroll(testContext(t), newKey(t), Request{}); err == nil {
				t.Error("enrolled all the same")
			}
			if len(q.saw(wire.OpSimpleEnroll)) != 0 {
				t.Error("a request was sent")
			}
		})
	}
}

// TestRootKeyUpdate has the four certificates of RFC 4210 section 4.4.
func TestRootKeyUpdate(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	next := testpki.Root(t, "Root", testpki.Valid(time.Now().Add(-time.Hour), time.Now().AddDate(20, 0, 0)))
	newWithOld := p.root.Intermediate(t, "Root", testpki.WithKey(next.Key))
	oldWithNew := next.Intermediate(t, "Root", testpki.WithKey(p.root.Key))
	newCA := next.Intermediate(t, "Devices 2")
	p.on(wire.OpCACerts, p.certs(p.root.Certificate, newWithOld.Certificate, oldWithNew.Certificate, next.Certificate, p.ca.Certificate, newCA.Certificate))
	certs, err := p.client().CACerts(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(certs) != 6 || !certs[0].Equal(next.Certificate) || !certs[1].Equal(p.root.Certificate) {
		t.Fatalf("%d certificates, first %s until %s: the newest root must come first", len(certs), certs[0].Subject, certs[0].NotAfter)
	}
	p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, r *http.Request) { writeCerts(w, p.certify(p.csr(r), newCA, nil)) })
	id, err := p.client().Enroll(testContext(t), newKey(t), Request{CommonName: "dev-1"})
	if err != nil {
		t.Fatal(err)
	}
	if len(id.Anchors) != 2 || !id.Anchors[0].Equal(next.Certificate) {
		t.Errorf("%d anchors", len(id.Anchors))
	}
	if len(id.Chain) < 2 || !id.Chain[1].Equal(newCA.Certificate) || slices.ContainsFunc(id.Chain, func(c *x509.Certificate) bool { return isSelfSigned(c) }) {
		t.Errorf("chain of %d", len(id.Chain))
	}
	// Presented to somebody who knows the old root alone.
	if _, err := verifyChain(id.Certificate, []*x509.Certificate{p.root.Certificate}, id.Chain[1:], time.Now()); err != nil {
		t.Error(err)
	}
}

// TestCAReplacedMeanwhile: the issuer is not in the /cacerts read before the request, but in the one after it.
func TestCAReplacedMeanwhile(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	next := p.root.Intermediate(t, "Devices 2")
	p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, r *http.Request) {
		p.on(wire.OpCACerts, p.certs(p.root.Certificate, next.Certificate))
		writeCerts(w, p.certify(p.csr(r), next, nil))
	})
	id, err := p.client().Enroll(testContext(t), newKey(t), Request{CommonName: "dev-1"})
	if err != nil {
		t.Fatal(err)
	}
	if !id.Chain[1].Equal(next.Certificate) {
		t.Errorf("chain ends in %s", id.Chain[1].Subject)
	}
}

// TestRootOutOfTheAnswer: the old root was withdrawn and is in /cacerts no more. What it certified of the new one still makes that an anchor, and
// without it the new root does not become one.
func TestRootOutOfTheAnswer(t *testing.T) {
	t.Parallel()
	for name, vouched := range map[string]bool{"new with old": true, "nothing": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			next := testpki.Root(t, "Root 2")
			newCA := next.Intermediate(t, "Devices 2")
			answer := []*x509.Certificate{next.Certificate, newCA.Certificate}
			if vouched {
				answer = append(answer, p.root.Intermediate(t, "Root 2", testpki.WithKey(next.Key)).Certificate)
			}
			p.on(wire.OpCACerts, p.certs(answer...))
			p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, r *http.Request) { writeCerts(w, p.certify(p.csr(r), newCA, nil)) })
			id, err := p.client().Enroll(testContext(t), newKey(t), Request{CommonName: "dev-1"})
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.ContainsFunc(id.Anchors, next.Certificate.Equal); got != vouched {
				t.Errorf("%d anchors, the new root among them: %t", len(id.Anchors), got)
			}
			if !slices.ContainsFunc(id.Anchors, p.root.Certificate.Equal) {
				t.Error("the root of the server is missing")
			}
		})
	}
}

// TestIssuingCAIsNoRoot: whoever has the key of an issuing CA can sign a root of its name and key, which lives for ever and below which there is no
// limit. The issuing CA's own certificate vouches for that as little as for a server.
func TestIssuingCAIsNoRoot(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]testpki.Option{
		"path length 0": testpki.PathLen(0), "path length 3": testpki.PathLen(3),
		"names":  testpki.Edit(func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"devices.example.com"} }),
		"usages": testpki.EKU(x509.ExtKeyUsageClientAuth),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			planted := testpki.Root(t, "Devices 2")
			limited := p.root.Intermediate(t, "Devices 2", testpki.WithKey(planted.Key), limits)
			p.on(wire.OpCACerts, p.certs(p.root.Certificate, limited.Certificate, planted.Certificate))
			p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, r *http.Request) { writeCerts(w, p.certify(p.csr(r), limited, nil)) })
			id, err := p.client().Enroll(testContext(t), newKey(t), Request{CommonName: "dev-1"})
			if err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(id.Anchors, planted.Certificate.Equal) {
				t.Error("the issuing CA made itself a root of the device")
			}
		})
	}
}

// TestServerRootIsKept: /cacerts of a label under another root must not make the device forget the server's own.
func TestServerRootIsKept(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	foreign := testpki.Root(t, "Foreign")
	ca := foreign.Intermediate(t, "Foreign devices")
	p.on(wire.OpCACerts, p.certs(foreign.Certificate, ca.Certificate))
	p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, r *http.Request) { writeCerts(w, p.certify(p.csr(r), ca, nil)) })
	id, err := p.client().Enroll(testContext(t), newKey(t), Request{CommonName: "dev-1"})
	if err != nil {
		t.Fatal(err)
	}
	if len(id.Anchors) != 1 || !id.Anchors[0].Equal(p.root.Certificate) {
		t.Errorf("%d anchors: want the root of the server alone, nothing vouches for the other", len(id.Anchors))
	}
}

func TestEnrollAnswerRefused(t *testing.T) {
	t.Parallel()
	html := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write([]byte("<html>please log in</html>"))
	}
	raw := func(contentType string, body []byte) func(*peer) http.HandlerFunc {
		return func(*peer) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", contentType)
				w.Write(body)
			}
		}
	}
	edited := func(edit func(*x509.Certificate)) func(*peer) http.HandlerFunc {
		return func(p *peer) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { writeCerts(w, p.certify(p.csr(r), p.ca, edit)) }
		}
	}
	stranger := newKey(t).Public()
	for name, c := range map[string]struct {
		handler func(*peer) http.HandlerFunc
		reason  string
	}{
		"another key": {edited(func(c *x509.Certificate) { c.PublicKey = stranger }), "bad_answer"},
		"two certificates": {func(p *peer) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				csr := p.csr(r)
				writeCerts(w, p.certify(csr, p.ca, nil), p.certify(csr, p.ca, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(99) }))
			}
		}, "bad_answer"},
		"only a CA":        {func(p *peer) http.HandlerFunc { return p.certs(p.ca.Certificate) }, "bad_answer"},
		"a CA for the key": {edited(func(c *x509.Certificate) { c.IsCA = true }), "bad_answer"},
		"expired":          {edited(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Unix(1e9, 0), time.Unix(1.1e9, 0) }), "bad_answer"},
		"empty":            {raw(wire.TypeCertsOnly, nil), "bad_answer"},
		"empty sequence":   {raw(wire.TypeCertsOnly, []byte("MAA=\n")), "bad_answer"},
		"not base64":       {raw(wire.TypeCertsOnly, []byte{0x30, 0x82, 0x01, 0x00}), "bad_answer"},
		"HTML":             {func(*peer) http.HandlerFunc { return html }, "bad_answer"},
		"HTML by any name": {raw(wire.TypeCertsOnly, []byte("<html></html>")), "bad_answer"},
		"no content type":  {raw("", wire.EncodeBase64([]byte{0x30, 0})), "bad_answer"},
		"too large":        {raw(wire.TypeCertsOnly, bytes.Repeat([]byte("A"), maxBodyBytes+1)), "too_large"},
		"unknown issuer": {func(p *peer) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				writeCerts(w, p.certify(p.csr(r), testpki.Root(p.t, "Root"), nil))
			}
		}, "bad_answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			p.on(wire.OpSimpleEnroll, c.handler(p))
			store := openStore(t, t.TempDir())
			before := keepPair(t, store, p.ca.Leaf(t, "dev-1"))
			_, err := store.Enroll(testContext(t), p.client(), "ec:P-256", Request{})
			var e *Error
			if !errors.As(err, &e) || e.Reason != c.reason {
				t.Errorf("got %v, want reason %s", err, c.reason)
			}
			if id, err := store.Load(); err != nil || !id.Certificate.Equal(before.Certificate) {
				t.Errorf("the certificate in force was not kept: %v", err)
			}
		})
	}
}

func TestEnrollAnswerTolerated(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]func(*peer) http.HandlerFunc{
		"chain certificates beside": func(p *peer) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				writeCerts(w, p.certify(p.csr(r), p.ca, nil), p.ca.Certificate, p.root.Certificate)
			}
		},
		"status 201": func(p *peer) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				cert := p.certify(p.csr(r), p.ca, nil)
				w.Header().Set("Content-Type", wire.TypePKCS7)
				w.WriteHeader(http.StatusCreated)
				writeCerts(w, cert)
			}
		},
		"server's clock ahead": func(p *peer) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				writeCerts(w, p.certify(p.csr(r), p.ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			p.on(wire.OpSimpleEnroll, handler(p))
			if _, err := p.client().Enroll(testContext(t), newKey(t), Request{CommonName: "dev-1"}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTransferForms: however an answer is wrapped (RFC 8951 section 3), it is read.
func TestTransferForms(t *testing.T) {
	t.Parallel()
	form := map[string]func(string) string{
		"one line":     func(s string) string { return s },
		"LF":           func(s string) string { return s[:64] + "\n" + s[64:] + "\n" },
		"CRLF":         func(s string) string { return s[:64] + "\r\n" + s[64:] + "\r\n" },
		"spaces":       func(s string) string { return " " + s[:64] + " \t" + s[64:] },
		"trailing NUL": func(s string) string { return s + "\n\x00" },
	}
	for name, wrap := range form {
		for _, encoding := range []string{"", "base64", "binary"} {
			t.Run(name+" "+encoding, func(t *testing.T) {
				t.Parallel()
				p := newPeer(t)
				der, err := wire.CertsOnly(p.root.Certificate, p.ca.Certificate)
				if err != nil {
					t.Fatal(err)
				}
				p.on(wire.OpCACerts, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/pkcs7-mime")
					if encoding != "" {
						w.Header().Set("Content-Transfer-Encoding", encoding)
					}
					body := wrap(base64.StdEncoding.EncodeToString(der))
					w.Write([]byte(body[:100]))
					w.(http.Flusher).Flush() // makes it chunked
					w.Write([]byte(body[100:]))
				})
				c := p.client()
				for range 2 { // the second time on the same connection: the chunks were read to their end
					if certs, err := c.CACerts(testContext(t)); err != nil || len(certs) != 2 {
						t.Errorf("%d certificates, %v", len(certs), err)
					}
				}
				if r := p.saw(""); r[0].remote != r[1].remote {
					t.Error("the connection was not kept")
				}
			})
		}
	}
}

func TestCSRAttrsAnswers(t *testing.T) {
	t.Parallel()
	body := func(b string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", wire.TypeCSRAttrs)
			w.Write([]byte(b))
		}
	}
	attrs := func(e ...wire.AttrOrOID) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { writeAttrs(w, e...) }
	}
	unknown := wire.AttrOrOID{OID: []int{1, 3, 6, 1, 1, 1, 1, 22}}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    Attributes
	}{
		"204":            {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, Attributes{}},
		"404":            {http.NotFound, Attributes{}},
		"empty":          {body("MAA=\n"), Attributes{}},
		"empty with NUL": {body("MAA=\n\x00"), Attributes{}},
		"nothing":        {body(""), Attributes{}},
		"unknown":        {attrs(unknown, wire.AttrOrOID{OID: []int{1, 2, 3}, Values: [][]byte{{5, 0}}}), Attributes{}},
		"RFC 7030 example": {body("MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw=="),
			Attributes{ChannelBinding: true, KeySpecs: []string{"ec:P-384"}, SignatureAlgorithm: x509.ECDSAWithSHA384}},
		"two kinds":     {attrs(wire.ECKey(wire.OIDCurveP256), wire.RSAKey(2048)), Attributes{KeySpecs: []string{"ec:P-256", "rsa:2048"}}},
		"any RSA":       {attrs(wire.AttrOrOID{OID: wire.OIDRSAEncryption}), Attributes{KeySpecs: []string{"rsa"}}},
		"unknown curve": {attrs(wire.ECKey([]int{1, 3, 132, 0, 10})), Attributes{KeySpecs: []string{"ec:1.3.132.0.10"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			p.on(wire.OpCSRAttrs, c.handler)
			got, err := p.client().CSRAttrs(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			got.Raw = nil
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
	for name, handler := range map[string]http.HandlerFunc{
		"503":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"HTML":     func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) },
		"not DER":  body("AAAA"),
		"trailing": body("MAAA"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			p.on(wire.OpCSRAttrs, handler)
			if _, err := p.client().CSRAttrs(testContext(t)); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// TestCSRAttrsChooseTheKey: the store makes the key that the server wants; a key given from outside that it does not want is not sent.
func TestCSRAttrsChooseTheKey(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	p.on(wire.OpCSRAttrs, func(w http.ResponseWriter, _ *http.Request) { writeAttrs(w, wire.ECKey(wire.OIDCurveP384)) })
	id, err := openStore(t, t.TempDir()).Enroll(testContext(t), p.client(), "ec:P-256", Request{})
	if err != nil || KeySpec(id.Key.Public()) != "ec:P-384" {
		t.Errorf("got %v, %v", id, err)
	}
	before := len(p.saw(wire.OpSimpleEnroll))
	var e *Error
	if _, err := p.client().Enroll(testContext(t), newKey(t), Request{}); !errors.As(err, &e) || e.Reason != "csrattrs" || !strings.Contains(e.Message, "ec:P-384") {
		t.Errorf("got %v", err)
	}
	if len(p.saw(wire.OpSimpleEnroll)) != before {
		t.Error("a request with the wrong key was sent")
	}
}

func TestChannelBinding(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, maxVersion(version))
			p.on(wire.OpCSRAttrs, func(w http.ResponseWriter, _ *http.Request) {
				writeAttrs(w, wire.AttrOrOID{OID: wire.OIDChallengePassword})
			})
			// The challenge comes with the end of its connection: the second request travels on another, and must be bound to that.
			challenge := p.requireCode(p.issue)
			p.on(wire.OpSimpleEnroll, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") == "" {
					w.Header().Set("Connection", "close")
				}
				challenge(w, r)
			})
			if _, err := p.client().Enroll(testContext(t), newKey(t), Request{DNSNames: []string{"dev-1.example"}}); err != nil {
				t.Fatal(err)
			}
			posts := p.saw(wire.OpSimpleEnroll)
			if len(posts) != 2 || posts[0].remote == posts[1].remote {
				t.Fatalf("%d posts: this test needs two connections", len(posts))
			}
			for _, r := range posts {
				want := r.tls.TLSUnique
				if version == tls.VersionTLS13 {
					var err error
					if want, err = r.tls.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
						t.Fatal(err)
					}
				}
				got := challengePassword(t, r.body)
				if got == "" || got != base64.StdEncoding.EncodeToString(want) {
					t.Errorf("challengePassword %q is not that of its connection", got)
				}
			}
		})
	}
}
