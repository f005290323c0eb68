// What is out of an operator's reach: every way to become a bridge or a server, or to end one.

package admin

import (
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/testpki"
)

// scoped is an API with something of each kind to act on: a label, an end entity and a certificate of every use.
func scoped(t *testing.T) (*API, map[string]string) {
	t.Helper()
	a, i := newAPI(t)
	ctx := t.Context()
	if _, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "factory", Parent: "root", Use: "birth"}); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.AddLabel(ctx, "test", registration.Label{Name: "factory", CA: "factory", Profile: "birth", Auth: []string{"code"}}); err != nil {
		t.Fatal(err)
	}
	serials := map[string]string{}
	for _, l := range []struct{ label, id string }{{"default", "SN-1"}, {"factory", "SN-2"}, {"bridge", "mqtt.example.com"}} {
		serials[l.label] = enroll(t, i, l.label, l.id)
	}
	serials["admin"] = addAdmin(t, a, "olga", RoleOperator).Serial
	certs, err := i.CA.Certificates(ctx, ca.Filter{Profile: "ca"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range certs {
		serials["CA "+c.Requester] = c.Serial
	}
	if len(certs) != 4 {
		t.Fatalf("certificates of CAs: %v", serials)
	}
	return a, serials
}

func enroll(t *testing.T, i *installation.Installation, label, id string) (serial string) {
	t.Helper()
	ctx := t.Context()
	code, err := i.Book.CreateCode(ctx, "test", id, label, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := i.Book.Label(ctx, label)
	if err != nil {
		t.Fatal(err)
	}
	r, err := i.Book.CheckCode(ctx, l, id, code.Code)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := i.Book.Enroll(ctx, r, l, installation.CSR(t, installation.Key(t), id, nil), false)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Serial
}

func addAdmin(t *testing.T, a *API, name, role string) ca.Certificate {
	t.Helper()
	csr := testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-256"), "x", nil))
	body, err := json.Marshal(NewAdministrator{Name: name, Role: role, CSR: string(csr)})
	if err != nil {
		t.Fatal(err)
	}
	w := request(a, RoleAdministrator, "POST", Base+"/admins", string(body))
	var identity Identity
	if err := json.Unmarshal(w.Body.Bytes(), &identity); err != nil || w.Code != 200 {
		t.Fatalf("add %s: %d %s", name, w.Code, w.Body)
	}
	cert, err := a.cfg.CA.ByDER(t.Context(), testpki.ParsePEM(t, []byte(identity.Certificate))[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func reasonIn(w interface{ Bytes() []byte }) string {
	var p Problem
	json.Unmarshal(w.Bytes(), &p)
	return p.Reason
}

// The second half of the matrix: the same operation on what is for devices and on what is not. An operator's refusal changes nothing, so
// that the administrator's call right after it succeeds.
func TestOperatorsKeepToDevices(t *testing.T) {
	t.Parallel()
	a, serials := scoped(t)
	for _, c := range []struct {
		method, path, body string
		operator           bool
	}{
		{"POST", "/codes", `{"device":"est.example.com","label":"bridge","sans":["dns:est.example.com"]}`, false},
		{"POST", "/codes", `{"device":"SN-3","label":"default"}`, true},
		{"POST", "/codes", `{"device":"SN-3"}`, true},
		{"POST", "/codes", `{"device":"SN-4","label":"factory"}`, true},
		{"POST", "/devices", `{"id":"a.example.com","label":"bridge"}`, false},
		{"POST", "/devices", `{"id":"b.example.com","label":"mqtt-server"}`, false},
		{"POST", "/devices", `{"id":"SN-5"}`, true},
		{"POST", "/codes", `{"device":"a.example.com"}`, false}, // the label is the end entity's own
		{"DELETE", "/codes/a.example.com", "", false},
		{"DELETE", "/codes/SN-3", "", true},
		{"POST", "/certificates/" + serials["bridge"] + "/revoke", `{"reason":"certificateHold"}`, false},
		{"POST", "/certificates/" + serials["bridge"] + "/unhold", "", false},
		{"POST", "/certificates/" + serials["default"] + "/revoke", `{"reason":"certificateHold"}`, true},
		{"POST", "/certificates/" + serials["default"] + "/unhold", "", true},
		{"POST", "/certificates/" + serials["factory"] + "/revoke", `{"reason":"superseded"}`, true},
		{"POST", "/certificates/" + serials["admin"] + "/revoke", `{"reason":"keyCompromise"}`, false},
		{"POST", "/crls/devices", "", true},
		{"POST", "/crls/factory", "", true},
		{"POST", "/crls/management", "", false},
		{"POST", "/crls/root", "", false},
		{"POST", "/imports", `{"rows":[{"id":"SN-10"},{"id":"mq.example.com","label":"bridge"}]}`, false},
		{"POST", "/imports", `{"rows":[{"id":"SN-20"},{"id":"SN-21","label":"factory"}]}`, true},
		{"POST", "/devices/c.example.com/bundle", `{"label":"bridge"}`, false},
		{"POST", "/devices/SN-20/bundle", "", true},
		{"POST", "/devices/SN-22/bundle", `{"key":"ec:P-384"}`, true},
		{"POST", "/devices/mqtt.example.com/suspend", "", false},
		{"POST", "/devices/mqtt.example.com/resume", "", false},
		{"POST", "/devices/SN-1/suspend", "", true},
		{"POST", "/devices/SN-1/resume", "", true},
		{"POST", "/devices", `{"id":"SN-23","with_code":true}`, true},
		{"POST", "/devices", `{"id":"d.example.com","label":"bridge","with_code":true}`, false},
		{"POST", "/devices/mqtt.example.com/reissue", "", false},
		{"POST", "/devices/mqtt.example.com/revoke", `{"reason":"keyCompromise"}`, false},
		{"DELETE", "/devices/mqtt.example.com", "", false},
		{"POST", "/devices/SN-1/reissue", "", true},
		{"POST", "/devices/SN-1/revoke", `{"reason":"keyCompromise"}`, true},
		{"DELETE", "/devices/SN-1", "", true},
		{"POST", "/certificates/" + serials["CA factory"] + "/revoke", `{"reason":"cessationOfOperation"}`, false},
	} {
		w := request(a, RoleOperator, c.method, Base+c.path, c.body)
		if c.operator {
			if w.Code/100 != 2 {
				t.Errorf("%s %s %s as operator: %d %s", c.method, c.path, c.body, w.Code, w.Body)
			}
			continue
		}
		if reason := reasonIn(w.Body); w.Code != http.StatusForbidden || reason != "administrator_only" && (reason != "import" || !strings.Contains(w.Body.String(), "administrator_only")) {
			t.Errorf("%s %s %s as operator: %d %s", c.method, c.path, c.body, w.Code, w.Body)
		}
		if w := request(a, RoleAdministrator, c.method, Base+c.path, c.body); w.Code/100 != 2 {
			t.Errorf("%s %s %s as administrator: %d %s", c.method, c.path, c.body, w.Code, w.Body)
		}
	}
	for name, serial := range serials {
		if strings.HasPrefix(name, "CA ") {
			if w := request(a, RoleOperator, "POST", Base+"/certificates/"+serial+"/revoke", `{"reason":"keyCompromise"}`); reasonIn(w.Body) != "administrator_only" {
				t.Errorf("operator revokes %s: %d %s", name, w.Code, w.Body)
			}
		}
	}
}

// The EST server's names are no operator's to give away, not even to a device; a broker on the same machine, made by an administrator, has them.
func TestOperatorsCannotTakeTheServersNames(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	leaf := &x509.Certificate{
		DNSNames: []string{"est.example.com", "localhost"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1), net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	a.cfg.ServerCertificate = func() *x509.Certificate { return leaf }
	for body, operator := range map[string]bool{
		`{"id":"est.example.com"}`:                                false,
		`{"id":"EST.Example.com"}`:                                false,
		`{"id":"192.0.2.1"}`:                                      false,
		`{"id":"SN-1","sans":["dns:SN-1","dns:est.example.com"]}`: false,
		`{"id":"SN-2","sans":["dns:*.example.com"]}`:              false,
		`{"id":"SN-3","sans":["ip:192.0.2.1"]}`:                   false,
		`{"id":"localhost","sans":["dns:localhost","ip:127.0.0.1","ip:127.0.1.1","ip:::1"]}`:  true,
		`{"id":"SN-4","sans":["dns:www.example.com","dns:*.www.example.com","ip:192.0.2.2"]}`: true,
	} {
		for path, body := range map[string]string{"/devices": body, "/codes": strings.Replace(body, `"id"`, `"device"`, 1)} {
			w := request(a, RoleOperator, "POST", Base+path, body)
			if operator && w.Code != 200 || !operator && reasonIn(w.Body) != "administrator_only" {
				t.Errorf("%s %s as operator: %d %s", path, body, w.Code, w.Body)
			}
			if operator {
				request(a, RoleOperator, "DELETE", Base+"/devices/SN-4", "")
				request(a, RoleOperator, "DELETE", Base+"/devices/localhost", "")
			}
		}
	}
	if w := request(a, RoleAdministrator, "POST", Base+"/codes", `{"device":"est.example.com","label":"bridge","sans":["ip:192.0.2.1"]}`); w.Code != 200 {
		t.Errorf("administrator: %d %s", w.Code, w.Body)
	}
}
