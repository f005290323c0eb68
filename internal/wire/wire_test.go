package wire

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testCert(t testing.TB, cn string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7),
		Subject:      pkix.Name{CommonName: cn},
		NotBefore:    time.Unix(1_700_000_000, 0),
		NotAfter:     time.Unix(1_800_000_000, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestDecodeBase64(t *testing.T) {
	t.Parallel()
	want := []byte("a certificate request, or nearly")
	one := base64.StdEncoding.EncodeToString(want)
	accepted := map[string]string{
		"one line":          one,
		"LF lines":          one[:8] + "\n" + one[8:] + "\n",
		"CRLF lines":        one[:8] + "\r\n" + one[8:] + "\r\n",
		"lone CR":           one[:8] + "\r" + one[8:],
		"spaces and tabs":   " " + one[:3] + "\t" + one[3:] + " \t",
		"trailing NUL":      one + "\n\x00",
		"NUL then new line": one + "\x00\n",
	}
	for name, body := range accepted {
		got, err := DecodeBase64([]byte(body))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	refused := map[string]string{
		"empty":             "",
		"white space only":  " \r\n",
		"NUL only":          "\x00",
		"form feed":         one[:8] + "\f" + one[8:],
		"vertical tab":      one[:8] + "\v" + one[8:],
		"byte order mark":   "\ufeff" + one,
		"no-break space":    one[:8] + "\u00a0" + one[8:],
		"NUL inside":        one[:8] + "\x00" + one[8:],
		"no padding":        "YQ",
		"too much padding":  "YQ===",
		"padding inside":    "YQ==YQ==",
		"non-zero pad bits": "YR==",
		"URL alphabet":      "-_-_",
		"PEM":               "-----BEGIN CERTIFICATE REQUEST-----\n" + one,
		"truncated":         one[:len(one)-2],
	}
	for name, body := range refused {
		if got, err := DecodeBase64([]byte(body)); err == nil {
			t.Errorf("%s: accepted as %q", name, got)
		}
	}
}

func TestEncodeBase64(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 56, 57, 58, 114, 1000} {
		der := bytes.Repeat([]byte{0xa5}, n)
		out := EncodeBase64(der)
		for line := range strings.SplitSeq(strings.TrimSuffix(string(out), "\n"), "\n") {
			if len(line) > 76 {
				t.Errorf("%d bytes: a line of %d characters", n, len(line))
			}
		}
		if n == 0 {
			if len(out) != 0 {
				t.Errorf("nothing encodes as %q", out)
			}
			continue
		}
		if out[len(out)-1] != '\n' {
			t.Errorf("%d bytes: no final new line", n)
		}
		back, err := DecodeBase64(out)
		if err != nil || !bytes.Equal(back, der) {
			t.Errorf("%d bytes: round trip: %v", n, err)
		}
	}
}

func TestCertsOnlyRoundTrip(t *testing.T) {
	t.Parallel()
	a, b, c := testCert(t, "a"), testCert(t, "b"), testCert(t, "c")
	first, err := CertsOnly(a, b, c)
	if err != nil {
		t.Fatal(err)
	}
	second, err := CertsOnly(c, a, b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the order given changes the message")
	}
	got, err := ParseCertsOnly(first)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 {
		t.Fatalf("%d certificates, want 3", len(got))
	}
	for _, want := range []*x509.Certificate{a, b, c} {
		found := false
		for _, g := range got {
			found = found || g.Equal(want)
		}
		if !found {
			t.Errorf("%s is missing", want.Subject)
		}
	}
	if _, err := CertsOnly(); err == nil {
		t.Error("an empty message was made")
	}
	if _, err := CertsOnly(&x509.Certificate{}); err == nil {
		t.Error("a certificate without DER was taken")
	}
}

// TestCertsOnlyOpenSSL has openssl read what we make, and us what openssl makes.
func TestCertsOnlyOpenSSL(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	cert := testCert(t, "device-1")
	dir := t.TempDir()
	ours := filepath.Join(dir, "ours.p7")
	der, err := CertsOnly(cert, testCert(t, "device-2"))
	if err != nil {
		t.Fatal(err)
	}
	pemFile := filepath.Join(dir, "cert.pem")
	for path, data := range map[string][]byte{ours: der, pemFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(openssl, "pkcs7", "-inform", "DER", "-in", ours, "-print_certs", "-noout").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "device-1") || !strings.Contains(string(out), "device-2") {
		t.Errorf("openssl pkcs7: %v\n%s", err, out)
	}
	out, err = exec.Command(openssl, "crl2pkcs7", "-nocrl", "-certfile", pemFile, "-outform", "DER").Output()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCertsOnly(out)
	if err != nil || len(got) != 1 || !got[0].Equal(cert) {
		t.Errorf("what openssl made: %v, %v", got, err)
	}
}

func TestParseCertsOnlyRefuses(t *testing.T) {
	t.Parallel()
	cert := testCert(t, "a")
	good, err := CertsOnly(cert)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*signedData)) []byte {
		emptySet := asn1.RawValue{Tag: asn1.TagSet, IsCompound: true}
		sd := signedData{Version: 1, DigestAlgorithms: emptySet, SignerInfos: emptySet, EncapContentInfo: encapContentInfo{Type: oidData},
			Certificates: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: cert.Raw}}
		change(&sd)
		return wrap(t, oidSignedData, sd)
	}
	if !bytes.Equal(good, changed(func(*signedData) {})) {
		t.Fatal("the unchanged message is not the good one: the cases below prove nothing")
	}
	cases := map[string][]byte{
		"nothing":           nil,
		"four bytes":        {0x30, 0x02, 0x30, 0x82},
		"truncated":         good[:len(good)-1],
		"trailing byte":     append(bytes.Clone(good), 0),
		"indefinite length": append(append([]byte{0x30, 0x80}, good[4:]...), 0, 0),
		"a bare cert":       cert.Raw,
		"too large":         make([]byte, maxCertsOnlyBytes+1),
		"not SignedData":    wrap(t, oidData, signedData{}),
		"version 9":         changed(func(sd *signedData) { sd.Version = 9 }),
		"no certificate":    changed(func(sd *signedData) { sd.Certificates.Bytes = nil }),
		"no certificates":   changed(func(sd *signedData) { sd.Certificates = asn1.RawValue{} }),
		"a signer":          changed(func(sd *signedData) { sd.SignerInfos.Bytes = []byte{0x30, 0} }),
		"signers no SET":    changed(func(sd *signedData) { sd.SignerInfos = asn1.RawValue{Tag: asn1.TagInteger, Bytes: []byte{1}} }),
		"other content":     changed(func(sd *signedData) { sd.EncapContentInfo.Type = oidSignedData }),
		"some content": changed(func(sd *signedData) {
			sd.EncapContentInfo.Content = asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: []byte{4, 1, 0}}
		}),
		"attribute cert":   changed(func(sd *signedData) { sd.Certificates.Bytes = []byte{0xa2, 2, 5, 0} }),
		"garbage cert":     changed(func(sd *signedData) { sd.Certificates.Bytes = []byte{0x30, 3, 2, 1, 1} }),
		"65 certificates":  changed(func(sd *signedData) { sd.Certificates.Bytes = bytes.Repeat(cert.Raw, maxCertificates+1) }),
		"half certificate": changed(func(sd *signedData) { sd.Certificates.Bytes = cert.Raw[:100] }),
	}
	for name, der := range cases {
		if certs, err := ParseCertsOnly(der); err == nil {
			t.Errorf("%s: accepted with %d certificates", name, len(certs))
		}
	}
}

func wrap(t testing.TB, oid asn1.ObjectIdentifier, sd signedData) []byte {
	t.Helper()
	if sd.EncapContentInfo.Type == nil {
		sd.EncapContentInfo.Type = oidData
	}
	for _, set := range []*asn1.RawValue{&sd.DigestAlgorithms, &sd.SignerInfos} {
		if set.Tag == 0 {
			*set = asn1.RawValue{Tag: asn1.TagSet, IsCompound: true}
		}
	}
	inner, err := asn1.Marshal(sd)
	if err != nil {
		t.Fatal(err)
	}
	out, err := asn1.Marshal(struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{oid, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: inner}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCSRAttrs(t *testing.T) {
	t.Parallel()
	elements := []AttrOrOID{{OID: OIDChallengePassword}, ECKey(OIDCurveP384), RSAKey(4096), {OID: OIDECDSAWithSHA384}}
	der, err := EncodeCSRAttrs(elements)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCSRAttrs(der)
	if err != nil || len(got) != 4 {
		t.Fatalf("got %d elements, %v", len(got), err)
	}
	if !got[0].IsOID(OIDChallengePassword) || !got[3].IsOID(OIDECDSAWithSHA384) || got[1].IsOID(OIDECPublicKey) {
		t.Errorf("OIDs: %+v", got)
	}
	if curve, ok := got[1].Curve(); !ok || !curve.Equal(OIDCurveP384) {
		t.Errorf("curve: %v, %t", curve, ok)
	}
	if bits, ok := got[2].RSABits(); !ok || bits != 4096 {
		t.Errorf("bits: %d, %t", bits, ok)
	}
	if _, ok := got[0].Curve(); ok {
		t.Error("an OID has a curve")
	}
	empty, err := EncodeCSRAttrs(nil)
	if err != nil || string(EncodeBase64(empty)) != "MAA=\n" {
		t.Errorf("empty: %x, %v", empty, err)
	}
	if got, err := ParseCSRAttrs(empty); err != nil || len(got) != 0 {
		t.Errorf("empty: %v, %v", got, err)
	}
	if _, err := EncodeCSRAttrs([]AttrOrOID{{OID: asn1.ObjectIdentifier{9}}}); err == nil {
		t.Error("an impossible OID was encoded")
	}
}

// rfc7030Example is the /csrattrs answer printed in RFC 7030 section 4.5.2,
// which has elements that no client needs to know.
const rfc7030Example = "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw=="

func TestParseCSRAttrsKnowsTheRFCExample(t *testing.T) {
	t.Parallel()
	der, err := DecodeBase64([]byte(rfc7030Example))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCSRAttrs(der)
	if err != nil || len(got) != 4 || !got[0].IsOID(OIDChallengePassword) || !got[2].OID.Equal(OIDExtensionRequest) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestParseCSRAttrsKeepsUnknown(t *testing.T) {
	t.Parallel()
	// 2.25.(2^64): an arc that encoding/asn1 does not hold; an attribute with an empty set; an attribute of another type.
	big := []byte{0x06, 0x0b, 0x69, 0x82, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00}
	var body []byte
	body = append(body, big...)
	body = append(body, 0x30, 0x0f)
	body = append(append(body, big...), 0x31, 0x00)
	body = append(body, 0x30, 0x09, 0x06, 0x03, 0x2a, 0x03, 0x04, 0x31, 0x02, 0x05, 0x00)
	der := append([]byte{0x30, byte(len(body))}, body...)
	got, err := ParseCSRAttrs(der)
	if err != nil || len(got) != 3 {
		t.Fatalf("got %+v, %v", got, err)
	}
	back, err := EncodeCSRAttrs(got)
	if err != nil || !bytes.Equal(back, der) {
		t.Errorf("round trip: %x, %v", back, err)
	}
}

func TestParseCSRAttrsRefuses(t *testing.T) {
	t.Parallel()
	for name, der := range map[string][]byte{
		"nothing":         nil,
		"not a SEQUENCE":  {0x31, 0x00},
		"trailing byte":   {0x30, 0x00, 0x00},
		"truncated":       {0x30, 0x05, 0x06, 0x03, 0x2a},
		"an INTEGER":      {0x30, 0x03, 0x02, 0x01, 0x01},
		"no SET":          {0x30, 0x07, 0x30, 0x05, 0x06, 0x03, 0x2a, 0x03, 0x04},
		"SET is SEQUENCE": {0x30, 0x09, 0x30, 0x07, 0x06, 0x03, 0x2a, 0x03, 0x04, 0x30, 0x00},
		"indefinite":      {0x30, 0x80, 0x00, 0x00},
		"257 elements":    append([]byte{0x30, 0x82, 0x05, 0x05}, bytes.Repeat([]byte{0x06, 0x03, 0x2a, 0x03, 0x04}, 257)...),
	} {
		if got, err := ParseCSRAttrs(der); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestPath(t *testing.T) {
	t.Parallel()
	if got := Path("", OpCACerts); got != "/.well-known/est/cacerts" {
		t.Error(got)
	}
	if got := Path("line-2", OpSimpleEnroll); got != "/.well-known/est/line-2/simpleenroll" {
		t.Error(got)
	}
	if !IsOperation("cacerts") || IsOperation("my-cacerts-ca") || IsOperation("") {
		t.Error("IsOperation")
	}
}
