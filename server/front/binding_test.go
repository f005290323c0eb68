package front

import (
	"crypto/tls"
	"encoding/base64"
	"testing"
)

// The exporter of TLS 1.3 needs a real connection: cases I1, I2 and I7 have it.
func TestCheckBinding(t *testing.T) {
	t.Parallel()
	unique := []byte("twelve bytes")
	right := base64.StdEncoding.EncodeToString(unique)
	bound := &tls.ConnectionState{Version: tls.VersionTLS12, TLSUnique: unique}
	for _, tt := range []struct {
		name  string
		state *tls.ConnectionState
		shape requestShape
		want  Kind
	}{
		{"none", bound, requestShape{}, ""},
		{"right", bound, requestShape{challenge: right, hasChallenge: true}, ""},
		{"with a line end", bound, requestShape{challenge: right + "\r\n", hasChallenge: true}, ""},

		{"empty", bound, requestShape{hasChallenge: true}, BadBinding},
		{"raw bytes", bound, requestShape{challenge: string(unique), hasChallenge: true}, BadBinding},
		{"a prefix", bound, requestShape{challenge: right[:8], hasChallenge: true}, BadBinding},
		{"more after it", bound, requestShape{challenge: right + "x", hasChallenge: true}, BadBinding},
		{"of another connection", bound, requestShape{challenge: base64.StdEncoding.EncodeToString([]byte("other bytes!")), hasChallenge: true}, BadBinding},
		{"no tls-unique", &tls.ConnectionState{Version: tls.VersionTLS12}, requestShape{challenge: right, hasChallenge: true}, BadBinding},
		{"empty, no tls-unique", &tls.ConnectionState{Version: tls.VersionTLS12}, requestShape{hasChallenge: true}, BadBinding},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := kindOf(checkBinding(tt.state, tt.shape)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
