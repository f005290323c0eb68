package auth_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/natal-pki/natal/server/auth"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/testpki"
	"github.com/natal-pki/natal/test/testserver"
)

// Who is let in, by what it shows and where.
func TestAuthenticate(t *testing.T) {
	t.Parallel()
	s := testserver.Start(t, nil)
	s.AddLabel(t, "plant-a", "ca-a")
	other := testpki.Root(t, "Factory CA") // same name, other key
	sub := s.Factory.Intermediate(t, "Factory Line 1")
	code := func(label string) (string, string) {
		id := s.NewID()
		c, err := s.Book.CreateCode(t.Context(), testserver.Actor, id, label, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		return id, c.Code
	}
	header := func(id, secret string) []string {
		return []string{"Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))}
	}
	id, secret := code("default")
	idA, secretA := code("plant-a")
	shown := func(certs ...*x509.Certificate) *tls.ConnectionState {
		return &tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: certs}
	}
	factory := s.Factory.Certificate
	var long []*x509.Certificate
	long = append(long, s.Factory.Birth(t, "SN-x").Certificate)
	for i := range 12 {
		long = append(long, s.Factory.Intermediate(t, fmt.Sprint("CA ", i)).Certificate)
	}
	birth := func(id string, options ...testpki.Option) *x509.Certificate {
		return s.Factory.Birth(t, id, options...).Certificate
	}

	for _, tt := range []struct {
		name          string
		label         string
		renew         bool
		tls           *tls.ConnectionState
		authorization []string
		kind          string // empty: refused
		id            string
	}{
		{"code", "default", false, shown(), header(id, secret), registration.KindCode, id},
		{"code of a label", "plant-a", false, shown(), header(idA, secretA), registration.KindCode, idA},
		{"birth certificate", "default", false, shown(birth("SN-b1")), nil, registration.KindBirth, "SN-b1"},
		{"birth certificate and root", "default", false, shown(birth("SN-b2"), factory), nil, registration.KindBirth, "SN-b2"},
		{"birth certificate of an intermediate", "default", false, shown(sub.Birth(t, "SN-b3").Certificate, sub.Certificate, factory), nil, registration.KindBirth, "SN-b3"},

		{"nothing", "default", false, shown(), nil, "", ""},
		{"no TLS", "default", false, nil, nil, "", ""},
		{"wrong code", "default", false, shown(), header(id, "x"), "", ""},
		{"code of another device", "default", false, shown(), header(idA, secret), "", ""},
		{"code at another label", "plant-a", false, shown(), header(id, secret), "", ""},
		{"code in other case", "default", false, shown(), header(strings.ToLower(id), secret), "", ""},
		{"code for renewal", "default", true, shown(), header(id, secret), "", ""},
		{"empty Authorization beside a birth certificate", "default", false, shown(birth("SN-c1")), []string{""}, "", ""},
		{"birth certificate for renewal", "default", true, shown(birth("SN-c2")), nil, "", ""},
		{"birth certificate at a label without birth CAs", "plant-a", false, shown(birth("SN-c3")), nil, "", ""},
		{"birth certificate at a label for codes only", "bridge", false, shown(birth("SN-c4")), nil, "", ""},
		{"expired birth certificate", "default", false, shown(birth("SN-c5", testpki.Expired())), nil, "", ""},
		{"future birth certificate", "default", false, shown(birth("SN-c6", testpki.NotYetValid())), nil, "", ""},
		{"birth certificate for servers", "default", false, shown(birth("SN-c7", testpki.EKU(x509.ExtKeyUsageServerAuth))), nil, "", ""},
		{"birth certificate without its intermediate", "default", false, shown(sub.Birth(t, "SN-c8").Certificate), nil, "", ""},
		{"birth CA of the same name", "default", false, shown(other.Birth(t, "SN-c9").Certificate, other.Certificate), nil, "", ""},
		{"birth CA itself", "default", false, shown(factory), nil, "", ""},
		{"intermediate itself", "default", false, shown(sub.Certificate), nil, "", ""},
		{"self-signed", "default", false, shown(testpki.SelfSigned(t, "SN-c10").Certificate), nil, "", ""},
		{"twelve intermediates", "default", false, shown(long...), nil, "", ""},
		{"name that is no id", "default", false, shown(birth("SN/../admin")), nil, "", ""},
		{"reserved name", "default", false, shown(birth("natal-bridge")), nil, "", ""},
		{"root of the server", "default", false, shown(s.Anchor(t)), nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			label, err := s.Book.Label(t.Context(), tt.label)
			if err != nil {
				t.Fatal(err)
			}
			got, err := auth.New(s.Book).Authenticate(t.Context(), auth.Request{Label: label, Renew: tt.renew, TLS: tt.tls, Authorization: tt.authorization})
			if got.Kind != tt.kind || got.Device != tt.id {
				t.Fatalf("%q %q, %v", got.Kind, got.Device, err)
			}
			var refused *registration.Error
			if tt.kind == "" && (!errors.As(err, &refused) || refused.Kind != registration.NotAuthenticated) {
				t.Fatalf("refused with %v", err)
			}
		})
	}
}
