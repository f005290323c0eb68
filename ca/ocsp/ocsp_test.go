package ocsp

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/clock"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	xocsp "golang.org/x/crypto/ocsp"
)

var start = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// rig is a CA with a signer, a device certificate and a table of states.
type rig struct {
	clock     *clock.Manual
	issuer    *x509.Certificate
	leaf      *x509.Certificate
	authority Authority
	responder *Responder
	status    map[string]Status
	err       error
	asked     int
}

func certificate(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template.NotBefore = start.Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = start.Add(30 * 24 * time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newRig(t testing.TB, key crypto.Signer) *rig {
	t.Helper()
	r := &rig{clock: clock.NewManual(start), status: map[string]Status{}}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	r.issuer = certificate(t, root, root, caKey.Public(), caKey)
	r.leaf = certificate(t, &x509.Certificate{SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "leaf"}}, r.issuer, caKey.Public(), caKey)
	signer := certificate(t, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "signer"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}}, r.issuer, key.Public(), caKey)
	if r.authority.Issuer, err = NewIssuer("ca", r.issuer); err != nil {
		t.Fatal(err)
	}
	if r.authority.Signer, err = NewSigner(key, signer, r.issuer); err != nil {
		t.Fatal(err)
	}
	r.authority.Status = func(_ context.Context, serial *big.Int) (Status, error) {
		r.asked++
		return r.status[serial.String()], r.err
	}
	r.responder = NewResponder(r.clock.Clock(), slog.New(slog.DiscardHandler))
	return r
}

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (r *rig) respond(t *testing.T, der []byte) Response {
	t.Helper()
	return r.responder.Respond(t.Context(), r.authority, der)
}

func (r *rig) request(t testing.TB, hash crypto.Hash) []byte {
	t.Helper()
	der, err := xocsp.CreateRequest(r.leaf, r.issuer, &xocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// withExtensions adds requestExtensions to a request.
func withExtensions(t testing.TB, der []byte, extensions ...pkix.Extension) []byte {
	t.Helper()
	var request, tbs cryptobyte.String
	input := cryptobyte.String(der)
	if !input.ReadASN1(&request, cbasn1.SEQUENCE) || !request.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		t.Fatal("not a request")
	}
	list, err := asn1.Marshal(extensions)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			b.AddASN1(explicit(2), func(b *cryptobyte.Builder) { b.AddBytes(list) })
		})
	})
	return b.BytesOrPanic()
}

func nonce(content []byte) pkix.Extension {
	value, err := asn1.Marshal(content)
	if err != nil {
		panic(err)
	}
	return pkix.Extension{Id: oidNonce, Value: value}
}

// parse reads an answer with somebody else's parser and checks its signature.
func (r *rig) parse(t *testing.T, response Response) *xocsp.Response {
	t.Helper()
	parsed, err := xocsp.ParseResponseForCert(response.DER, r.leaf, r.issuer)
	if err != nil {
		t.Fatalf("%s: %v", response.Outcome, err)
	}
	return parsed
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	revokedAt := start.Add(-3 * time.Hour)
	end := start.Add(20 * time.Minute)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t), "P-384": p384, "RSA": rsaKey} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, key)
			for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
				delete(r.status, "77")
				unknown := r.respond(t, r.request(t, hash))
				if got := r.parse(t, unknown); got.Status != xocsp.Unknown || unknown.Shared || unknown.Outcome != OutcomeUnknown {
					t.Errorf("%v: status %d, outcome %s, shared %v", hash, got.Status, unknown.Outcome, unknown.Shared)
				}
				r.status["77"] = Status{State: Good, NotAfter: end.Unix()}
				good := r.respond(t, r.request(t, hash))
				got := r.parse(t, good)
				if got.Status != xocsp.Good || !got.ProducedAt.Equal(start) || !got.ThisUpdate.Equal(start.Add(-5*time.Minute)) || !got.NextUpdate.Equal(end) || got.IssuerHash != hash {
					t.Errorf("%v: %+v", hash, got)
				}
				if !good.Shared || good.ETag == "" || !good.NextUpdate.Equal(end) || good.Outcome != OutcomeGood || !bytes.Equal(got.ResponderKeyHash, r.authority.Signer.keyHash) {
					t.Errorf("%v: %+v", hash, good)
				}
				r.status["77"] = Status{State: Revoked, RevokedAt: revokedAt.Unix(), Reason: 1}
				got = r.parse(t, r.respond(t, r.request(t, hash)))
				if got.Status != xocsp.Revoked || !got.RevokedAt.Equal(revokedAt) || got.RevocationReason != 1 || !got.NextUpdate.Equal(start.Add(time.Hour)) {
					t.Errorf("%v: %+v", hash, got)
				}
			}
		})
	}
}

// An answer is signed once while nothing changes, and never given out after something did.
func TestKeptAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t, ecKey(t))
	request := r.request(t, crypto.SHA1)
	ask := func() Response {
		t.Helper()
		response := r.respond(t, request)
		r.parse(t, response)
		return response
	}
	r.status["77"] = Status{State: Good, NotAfter: start.Add(24 * time.Hour).Unix()}
	first := ask()
	if again := ask(); !first.Signed || again.Signed || !bytes.Equal(first.DER, again.DER) || r.asked != 2 {
		t.Errorf("signed %v then %v, the state looked up %d times", first.Signed, again.Signed, r.asked)
	}
	r.status["77"] = Status{State: Revoked, RevokedAt: start.Unix(), Reason: 6}
	if held := ask(); held.Outcome != OutcomeRevoked {
		t.Errorf("held: %s", held.Outcome)
	}
	r.status["77"] = Status{State: Good, NotAfter: start.Add(24 * time.Hour).Unix()}
	if back := ask(); back.Outcome != OutcomeGood {
		t.Errorf("taken back: %s", back.Outcome)
	}
	r.clock.Advance(keep)
	if later := ask(); !later.Signed || !later.ProducedAt.Equal(start.Add(keep)) {
		t.Errorf("after %v: signed %v", keep, later.Signed)
	}
	r.clock.Advance(-time.Hour)
	if earlier := ask(); !earlier.Signed || earlier.ThisUpdate.After(r.clock.Clock().Now()) {
		t.Error("an answer from the future was kept")
	}
	r.err = errors.New("the database is away")
	if lost := r.respond(t, request); lost.Outcome != OutcomeTryLater || !bytes.Equal(lost.DER, []byte{0x30, 3, 0x0a, 1, 3}) || lost.Shared {
		t.Errorf("without the records: %+v", lost)
	}
	r.err = nil
	r.clock.Advance(31 * 24 * time.Hour)
	if ended := r.respond(t, request); ended.Outcome != OutcomeTryLater {
		t.Errorf("after the signer's end: %s", ended.Outcome)
	}
}

func TestManyKeptAnswersAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, ecKey(t))
	for n := range 3 * generation {
		r.responder.store(string(rune(n))+"x", &kept{})
	}
	if n := len(r.responder.newer) + len(r.responder.older); n > 2*generation {
		t.Errorf("%d answers kept", n)
	}
}

func TestNonce(t *testing.T) {
	t.Parallel()
	r := newRig(t, ecKey(t))
	r.status["77"] = Status{State: Good, NotAfter: start.Add(24 * time.Hour).Unix()}
	plain := r.request(t, crypto.SHA256)
	for _, length := range []int{1, 32, 128} {
		n := bytes.Repeat([]byte{0x5a}, length)
		response := r.respond(t, withExtensions(t, plain, nonce(n)))
		r.parse(t, response)
		want, err := asn1.Marshal(nonce(n))
		if err != nil || !bytes.Contains(response.DER, want) || response.Shared || !response.Signed {
			t.Errorf("nonce of %d octets: %s, shared %v", length, response.Outcome, response.Shared)
		}
	}
	for name, extensions := range map[string][]pkix.Extension{
		"empty":              {nonce([]byte{})},
		"129 octets":         {nonce(bytes.Repeat([]byte{1}, 129))},
		"no OCTET STRING":    {{Id: oidNonce, Value: []byte{2, 1, 5}}},
		"no value":           {{Id: oidNonce}},
		"trailing octet":     {{Id: oidNonce, Value: []byte{4, 1, 5, 0}}},
		"two":                {nonce([]byte{1}), nonce([]byte{2})},
		"critical, unknown":  {{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}},
		"critical of a kind": {nonce([]byte{1}), {Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 4}, Critical: true, Value: []byte{0x30, 0}}},
	} {
		if response := r.respond(t, withExtensions(t, plain, extensions...)); response.Outcome != OutcomeMalformed {
			t.Errorf("%s: %s", name, response.Outcome)
		}
	}
	// openssl and others send extensions that nobody needs to understand.
	if response := r.respond(t, withExtensions(t, plain, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}})); response.Outcome != OutcomeGood || !response.Shared {
		t.Errorf("an unknown extension: %s", response.Outcome)
	}
}

// Another issuer's certificate, by name or by key, is not ours to know.
func TestOtherIssuer(t *testing.T) {
	t.Parallel()
	r, other := newRig(t, ecKey(t)), newRig(t, ecKey(t))
	r.status["77"] = Status{State: Good, NotAfter: start.Add(24 * time.Hour).Unix()}
	response := r.respond(t, other.request(t, crypto.SHA1)) // the same name, serial number 77, another key
	if response.Outcome != OutcomeUnknown || r.asked != 0 {
		t.Errorf("%s, %d look-ups", response.Outcome, r.asked)
	}
}

func TestSeveralInOneRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t, ecKey(t))
	r.status["77"] = Status{State: Good, NotAfter: start.Add(24 * time.Hour).Unix()}
	one, err := ParseRequest(r.request(t, crypto.SHA1))
	if err != nil {
		t.Fatal(err)
	}
	build := func(count int) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					for range count {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(one.certificates[0].raw) })
					}
				})
			})
		})
		return b.BytesOrPanic()
	}
	response := r.respond(t, build(maxCertificates))
	if r.parse(t, response); response.Shared || r.asked != maxCertificates {
		t.Errorf("shared %v, %d look-ups", response.Shared, r.asked)
	}
	for _, count := range []int{0, maxCertificates + 1} {
		if response := r.respond(t, build(count)); response.Outcome != OutcomeMalformed {
			t.Errorf("%d certificates: %s", count, response.Outcome)
		}
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	r := newRig(t, ecKey(t))
	valid := r.request(t, crypto.SHA1)
	for n := range len(valid) {
		if response := r.respond(t, valid[:n]); response.Outcome != OutcomeMalformed {
			t.Errorf("cut after %d octets: %s", n, response.Outcome)
		}
	}
	for name, der := range map[string][]byte{
		"nothing":        nil,
		"trailing octet": append(bytes.Clone(valid), 0),
		"too long":       make([]byte, MaxRequestBytes+1),
		"text":           []byte("<html>"),
	} {
		if response := r.respond(t, der); response.Outcome != OutcomeMalformed || r.asked != 0 {
			t.Errorf("%s: %s", name, response.Outcome)
		}
	}
}

func TestSignerIsCheckedBeforeItAnswers(t *testing.T) {
	t.Parallel()
	r, other := newRig(t, ecKey(t)), newRig(t, ecKey(t))
	signer := r.authority.Signer
	for name, try := range map[string]func() error{
		"another key":        func() error { _, err := NewSigner(ecKey(t), signer.Certificate, r.issuer); return err },
		"another issuer":     func() error { _, err := NewSigner(signer.key, signer.Certificate, other.issuer); return err },
		"a leaf, no signer":  func() error { _, err := NewSigner(signer.key, r.leaf, r.issuer); return err },
		"a key that is gone": func() error { _, err := NewSigner(gone{signer.key}, signer.Certificate, r.issuer); return err },
	} {
		if try() == nil {
			t.Errorf("%s was taken", name)
		}
	}
	broken := *signer
	broken.key = gone{signer.key}
	r.authority.Signer = &broken
	response := r.respond(t, r.request(t, crypto.SHA1))
	if response.Outcome != OutcomeTryLater || !errors.Is(response.Err, ErrKey) {
		t.Errorf("%s, %v", response.Outcome, response.Err)
	}
}

type gone struct{ crypto.Signer }

func (gone) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("token removed")
}

func FuzzRequest(f *testing.F) {
	r := newRig(f, ecKey(f))
	r.status["77"] = Status{State: Good, NotAfter: start.Add(24 * time.Hour).Unix()}
	valid := r.request(f, crypto.SHA1)
	f.Add(valid)
	f.Add(r.request(f, crypto.SHA256))
	f.Add(withExtensions(f, valid, nonce([]byte("0123456789abcdef"))))
	f.Add(withExtensions(f, valid, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		response := r.responder.Respond(t.Context(), r.authority, der)
		if response.Outcome == OutcomeMalformed {
			return
		}
		if _, err := xocsp.ParseResponse(response.DER, nil); err != nil {
			var several xocsp.ParseError
			if !errors.As(err, &several) {
				t.Fatalf("the answer cannot be read: %v", err)
			}
		}
	})
}

func BenchmarkSigned(b *testing.B) {
	r := newRig(b, ecKey(b))
	der := r.request(b, crypto.SHA1)
	for b.Loop() {
		r.responder.Respond(b.Context(), r.authority, der)
	}
}
