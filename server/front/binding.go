// Linking identity and proof-of-possession: a request that carries the channel binding of its own TLS connection in
// challengePassword cannot have been made for another one.

package front

import (
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"strings"
)

var errNoBinding = errors.New("no tls-unique")

const (
	exporterLabel = "EXPORTER-Channel-Binding" // RFC 9266 section 2
	exporterBytes = 32
)

// checkBinding verifies challengePassword if there is one: "the EST server MUST verify" it (RFC 7030 section 3.5). On TLS 1.2 it is
// the base64 of tls-unique; TLS 1.3 has none, and the base64 of tls-exporter (RFC 9266) takes its place. Any other value is refused.
func checkBinding(state *tls.ConnectionState, shape requestShape) error {
	if !shape.hasChallenge {
		return nil
	}
	binding, err := channelBinding(state)
	if err != nil {
		return &Error{Kind: BadBinding, Detail: "this connection has no channel binding; leave challengePassword out", Err: err}
	}
	want := base64.StdEncoding.EncodeToString(binding)
	given := strings.TrimRight(shape.challenge, " \t\r\n") // base64 encoders end their last line
	if subtle.ConstantTimeCompare([]byte(given), []byte(want)) != 1 {
		return &Error{Kind: BadBinding, Detail: "challengePassword is not the channel binding of this connection (TLS 1.2: tls-unique, TLS 1.3: tls-exporter)"}
	}
	return nil
}

func channelBinding(state *tls.ConnectionState) ([]byte, error) {
	if state.Version < tls.VersionTLS13 {
		if len(state.TLSUnique) == 0 {
			return nil, errNoBinding
		}
		return state.TLSUnique, nil
	}
	return state.ExportKeyingMaterial(exporterLabel, nil, exporterBytes)
}
