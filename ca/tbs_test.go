// The bytes that are signed: what each shipped profile encodes to, to the bit, and the form of serial numbers.

package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"flag"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/configs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fixedEC makes the same key each time.
func fixedEC(t *testing.T, curve elliptic.Curve, name string) *ecdsa.PrivateKey {
	t.Helper()
	sum := sha256.Sum256([]byte(name))
	raw := make([]byte, (curve.Params().BitSize+7)/8)
	copy(raw[len(raw)-32:], sum[:])
	key, err := ecdsa.ParseRawPrivateKey(curve, raw)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// fixedRSA makes a public key that nobody can use.
func fixedRSA(bits int) *rsa.PublicKey {
	var octets []byte
	for i := byte(0); len(octets) < bits/8; i++ {
		sum := sha256.Sum256([]byte{i})
		octets = append(octets, sum[:]...)
	}
	n := new(big.Int).SetBytes(octets[:bits/8])
	return &rsa.PublicKey{N: n.SetBit(n.SetBit(n, bits-1, 1), 0, 1), E: 65537}
}

var goldenNow = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func fixedIssuer(t *testing.T, key crypto.PublicKey) *x509.Certificate {
	t.Helper()
	id, err := profile.KeyID(key)
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{Subject: pkix.Name{CommonName: "Natal Device CA"}, SubjectKeyId: id, PublicKey: key,
		NotBefore: goldenNow.AddDate(-1, 0, 0), NotAfter: goldenNow.AddDate(30, 0, 0)}
}

func goldenSerial() *big.Int {
	return new(big.Int).SetBytes([]byte("\x01an example of 16"))
}

func TestGoldenTBS(t *testing.T) {
	t.Parallel()
	files, err := configs.Profiles()
	if err != nil {
		t.Fatal(err)
	}
	ec := fixedEC(t, elliptic.P256(), "device").Public()
	for _, tc := range []struct {
		name, profile string
		key, issuer   crypto.PublicKey
	}{
		{name: "iot-device"},
		{name: "iot-device-p384", profile: "iot-device", key: fixedEC(t, elliptic.P384(), "device").Public(), issuer: fixedEC(t, elliptic.P384(), "issuer").Public()},
		{name: "iot-device-rsa", profile: "iot-device", key: fixedRSA(3072), issuer: fixedRSA(4096)},
		{name: "iot-device-rsa2048", key: fixedRSA(2048), issuer: fixedRSA(4096)},
		{name: "birth"}, {name: "canary"}, {name: "bridge"}, {name: "admin"}, {name: "mqtt-server"}, {name: "est-server"}, {name: "ocsp-signer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if tc.profile == "" {
				tc.profile = tc.name
			}
			if tc.key == nil {
				tc.key = ec
			}
			if tc.issuer == nil {
				tc.issuer = fixedEC(t, elliptic.P256(), "issuer").Public()
			}
			var source []byte
			for _, content := range files {
				if p, err := profile.Parse(content); err == nil && p.Name() == tc.profile {
					source = content
				}
			}
			p, err := profile.Parse(source)
			if err != nil {
				t.Fatal(err)
			}
			issuer := fixedIssuer(t, tc.issuer)
			template, _, err := p.Build(profile.Input{Device: "SN-000001", Registered: []string{"dns:mqtt.example.com", "ip:192.0.2.7", "ip:2001:db8::7"}, PublicKey: tc.key,
				Issuer: issuer, PublicURL: "http://pki.example.com:8080", IssuerName: "devices", Now: goldenNow})
			if err != nil {
				t.Fatal(err)
			}
			template.SerialNumber = goldenSerial()
			tbs, err := toBeSigned(template, issuer, tc.key, tc.issuer)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", "tbs", tc.name+".hex"), tbs)
		})
	}
}

func compare(t *testing.T, path string, got []byte) {
	t.Helper()
	var text strings.Builder
	for rest := got; len(rest) > 0; {
		n := min(32, len(rest))
		text.WriteString(hex.EncodeToString(rest[:n]) + "\n")
		rest = rest[n:]
	}
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("%s: the bytes to be signed have changed (-update rewrites the file, once you know why):\n got %s\nwant %s", path, text.String(), want)
	}
}

// Dates until 2049 are UTCTime, later ones GeneralizedTime (RFC 5280 section 4.1.2.5).
func TestDatesAround2050(t *testing.T) {
	t.Parallel()
	key := fixedEC(t, elliptic.P256(), "device")
	parent := fixedIssuer(t, key.Public())
	for _, tc := range []struct {
		to   time.Time
		want string
	}{
		{time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), "\x17\x0d491231235959Z"},
		{time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC), "\x18\x0f20500101000000Z"},
		{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "\x18\x0f99991231235959Z"},
	} {
		tbs, err := toBeSigned(&x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: goldenNow, NotAfter: tc.to}, parent, key.Public(), key.Public())
		if err != nil || !bytes.Contains(tbs, []byte("\x17\x0d270301120000Z"+tc.want)) {
			t.Errorf("%v: %v, not encoded as %q", tc.to, err, tc.want)
		}
	}
}

// A key that signs wrongly, and one that signs what it was not given, put nothing into the world.
func TestWrongSignatureIsNotLetOut(t *testing.T) {
	t.Parallel()
	key := fixedEC(t, elliptic.P256(), "issuer")
	parent := fixedIssuer(t, key.Public())
	tbs, err := toBeSigned(&x509.Certificate{SerialNumber: goldenSerial(), NotBefore: goldenNow, NotAfter: goldenNow.AddDate(1, 0, 0)}, parent, key.Public(), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	der, err := sign(tbs, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil || !bytes.Equal(c.RawTBSCertificate, tbs) || parent.CheckSignature(c.SignatureAlgorithm, tbs, c.Signature) != nil {
		t.Fatalf("a good key: %v", err)
	}
	other := fixedEC(t, elliptic.P256(), "another")
	for name, bad := range map[string]crypto.Signer{
		"a key that computes wrongly": miscomputing{key},
		"another key":                 impostor{other, key.Public()},
		"a key that is away":          capturing(key.Public()),
	} {
		if der, err := sign(tbs, bad); err == nil || der != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func capturing(key crypto.PublicKey) crypto.Signer { return &capture{public: key} }

type miscomputing struct{ crypto.Signer }

func (m miscomputing) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	digest = bytes.Clone(digest)
	digest[0] ^= 1
	return m.Signer.Sign(r, digest, o)
}

type impostor struct {
	crypto.Signer
	public crypto.PublicKey
}

func (i impostor) Public() crypto.PublicKey { return i.public }

func TestSerialNumbers(t *testing.T) {
	t.Parallel()
	const count = 100_000
	seen := make(map[string]bool, count)
	var ones [128]int
	for range count {
		n, err := newSerial()
		if err != nil {
			t.Fatal(err)
		}
		text := SerialHex(n)
		if len(text) != 34 || !strings.HasPrefix(text, "01") || seen[text] || n.Sign() != 1 {
			t.Fatalf("serial number %s", text)
		}
		seen[text] = true
		for bit := range ones {
			ones[bit] += int(n.Bit(bit))
		}
	}
	// Each of the 128 bits is one in half of all numbers: six standard deviations (158 each) leave one false alarm in four million runs.
	for bit, n := range ones {
		if n < count/2-950 || n > count/2+950 {
			t.Errorf("bit %d is set in %d of %d", bit, n, count)
		}
	}
}

func TestParseSerial(t *testing.T) {
	t.Parallel()
	const full = "0123456789abcdef0123456789abcdef01"
	for given, want := range map[string]string{
		full:                  full,
		strings.ToUpper(full): full,
		"0x" + full:           full,
		"0X" + full:           full,
		"01:23:45:67:89:AB:CD:EF:01:23:45:67:89:ab:cd:ef:01": full,
		full[1:]: full, // as openssl prints it without the leading zero
		"1":      strings.Repeat("0", 33) + "1",
		"":       "", "0": "", "-1": "", "xyz": "", "12 34": "", "+5": "", "0x+5": "", strings.Repeat("f", 40): "",
	} {
		got, err := ParseSerial(given)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", given, got, err)
		}
	}
}

func TestParseSubject(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"CN=devices": "CN=devices",
		"CN=IoTDeviceIssuingCA,O=maksonlee.com,C=TW": "CN=IoTDeviceIssuingCA,O=maksonlee.com,C=TW",
		"cn=a, o=b":                     "CN=a,O=b",
		`CN=a\, b,O=c`:                  `CN=a\, b,O=c`,
		"O=only":                        "",
		"":                              "",
		"CN=":                           "",
		"CN":                            "",
		"CN=a,EMAIL=x":                  "",
		"CN=a,,O=b":                     "",
		"CN=" + strings.Repeat("x", 65): "",
	} {
		name, err := parseSubject(given)
		if got := name.String(); (err == nil) != (want != "") || (err == nil && got != want) {
			t.Errorf("%q: %q, %v", given, got, err)
		}
	}
}
