package wire

import (
	"bytes"
	"testing"
)

func FuzzDecodeBase64(f *testing.F) {
	for _, seed := range []string{"", "MAA=", "MAA=\r\n\x00", " Y Q = = ", "YR==", "\x00\x00", rfc7030Example} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		der, err := DecodeBase64(body)
		if err != nil {
			return
		}
		back, err := DecodeBase64(EncodeBase64(der))
		if err != nil || !bytes.Equal(back, der) {
			t.Fatalf("%x does not come back: %x, %v", der, back, err)
		}
	})
}

func FuzzParseCertsOnly(f *testing.F) {
	one, err := CertsOnly(testCert(f, "a"))
	if err != nil {
		f.Fatal(err)
	}
	two, err := CertsOnly(testCert(f, "a"), testCert(f, "b"))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, {0x30, 0x02, 0x30, 0x82}, {0x30, 0x80, 0, 0}, one, two, one[:40]} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		certs, err := ParseCertsOnly(der)
		if err != nil {
			return
		}
		again, err := CertsOnly(certs...)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		back, err := ParseCertsOnly(again)
		if err != nil || len(back) != len(certs) {
			t.Fatalf("what was written cannot be read: %d of %d, %v", len(back), len(certs), err)
		}
	})
}

func FuzzParseCSRAttrs(f *testing.F) {
	full, err := EncodeCSRAttrs([]AttrOrOID{{OID: OIDChallengePassword}, ECKey(OIDCurveP256), RSAKey(2048)})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, {0x30, 0}, {0x30, 0x80, 0, 0}, full, full[:9]} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		elements, err := ParseCSRAttrs(der)
		if err != nil {
			return
		}
		for _, e := range elements {
			e.Curve()
			e.RSABits()
		}
		back, err := EncodeCSRAttrs(elements)
		if err != nil || !bytes.Equal(back, der) {
			t.Fatalf("%x comes back as %x, %v", der, back, err)
		}
	})
}
