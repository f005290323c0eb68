// Which revocations end a session, whatever the server says about a newer certificate.

package bridge

import "testing"

// The thief of an old key is connected with it; that the device has renewed since does not make him harmless.
func TestOnlyAReplacedCertificateKeepsItsSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dev-good")
	r.startBridge()
	r.ready()
	for _, c := range []struct {
		reason     string
		superseded bool
		stays      bool
	}{
		{"keyCompromise", true, false},
		{"cACompromise", true, false},
		{"cessationOfOperation", true, false},
		{"certificateHold", true, false},
		{"privilegeWithdrawn", true, false},
		{"aACompromise", true, false},
		{"unspecified", true, false},
		{"", true, false},
		{"Superseded", true, false}, // no reason of RFC 5280
		{"superseded", false, false},
		{"affiliationChanged", false, false},
		{"superseded", true, true},
		{"affiliationChanged", true, true},
	} {
		id := "dev-" + c.reason + map[bool]string{true: "-newer"}[c.superseded]
		old, newer := r.device(id), r.device(id)
		session := r.connect(old)
		r.feed.Revoke(old, c.reason, c.superseded)
		if c.stays {
			r.ready()
		} else {
			eventually(t, patience, c.reason+": the session is ended", func() bool { return !session.alive() })
		}
		if session.alive() != c.stays {
			t.Errorf("%s, superseded %v: session alive: %v", c.reason, c.superseded, session.alive())
		}
		if _, err := r.dial(old); err == nil {
			t.Errorf("%s: the revoked certificate is accepted", c.reason)
		}
		r.connect(newer).conn.Close()
	}
}
