package client

import (
	"net/http"
	"testing"
	"time"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/testpki"
)

func FuzzReadCACerts(f *testing.F) {
	root := testpki.Root(f, "Root")
	good, err := wire.CertsOnly(root.Certificate, root.Intermediate(f, "Devices").Certificate)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, []byte("MAA="), wire.EncodeBase64(good), wire.EncodeBase64(good[:100]), wire.EncodeBase64([]byte{0x30, 0x02, 0x30, 0x82})} {
		f.Add(seed)
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, body []byte) {
		certs, err := readCACerts(body, nil, now)
		if err == nil && (len(certs) == 0 || checkRoot(certs[0], now) != nil) {
			t.Fatal("accepted without a root")
		}
		findRoot(body, Fingerprint(root.Certificate), now)
	})
}

func FuzzParseAttributes(f *testing.F) {
	for _, seed := range []string{"", "MAA=", "MAA=\n\x00", "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw=="} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := parseAttributes(body)
		if err != nil {
			return
		}
		if spec := a.ChooseKey("ec:P-256"); spec == "" {
			t.Fatal("no key at all")
		}
	})
}

func FuzzStatusError(f *testing.F) {
	f.Add("not_authenticated", "text/plain", "5", []byte("not_authenticated: no\n"))
	f.Add("Bad Word", "text/html; x", "Mon, 01 Mar 2027 12:00:30 GMT", []byte("<html>\xff"))
	f.Fuzz(func(t *testing.T, reason, contentType, retry string, body []byte) {
		h := http.Header{"Est-Reason": {reason}, "Content-Type": {contentType}, "Retry-After": {retry}, "Www-Authenticate": {reason}}
		offersBasic(h)
		e := statusError("cacerts", &http.Response{StatusCode: 503, Header: h}, body, time.Now())
		if e.RetryAfter < 0 || e.RetryAfter > maxRetryAfter {
			t.Fatalf("retry after %s", e.RetryAfter)
		}
		for _, r := range e.Error() {
			if r < ' ' {
				t.Fatalf("control character in %q", e.Error())
			}
		}
	})
}
