// The API's rights and refusals: every operation against every role, and no operation without a caller.

package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/server/feed"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

func newAPI(t *testing.T) (*API, *installation.Installation) {
	t.Helper()
	i := installation.New(t, storage.Open(t, database.SQLite))
	return New(Config{
		DB: i.DB, CA: i.CA, Book: i.Book, Clock: i.Clock.Clock(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		PublicURL: "http://pki.example.com:8080", CodeExpires: 24 * 3600e9,
	}), i
}

// request calls the API as a role ("" = nobody).
func request(a *API, role, method, path, body string) *httptest.ResponseRecorder {
	return serve(a, newRequest(role, method, path, body))
}

func serve(a *API, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w
}

func newRequest(role, method, path, body string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if role != "" {
		r = r.WithContext(WithCaller(r.Context(), Caller{Actor: "admin:test", Role: role}))
	}
	return r
}

// The matrix is written out, so that a change of rights shows here.
var rights = map[string][]string{
	"GET /cas": readers, "POST /cas": administrators, "GET /cas/{name}": readers, "GET /cas/{name}/csr": readers,
	"POST /cas/{name}/import": administrators, "POST /cas/{name}/sign": administrators, "POST /cas/{name}/sign-ocsp": administrators, "POST /cas/{name}/offline": administrators,
	"POST /cas/{name}/rollover": administrators, "POST /cas/{name}/activate": administrators, "POST /cas/{name}/retire": administrators, "POST /cas/{name}/revoke": administrators,
	"GET /crls": readers, "GET /crls/{name}": readers, "POST /crls/{name}": operators, "PUT /crls/{name}/schedule": administrators,
	"GET /labels": readers, "POST /labels": administrators, "GET /labels/{name}": readers, "PATCH /labels/{name}": administrators, "DELETE /labels/{name}": administrators,
	"GET /profiles": readers, "POST /profiles": administrators, "GET /profiles/{name}": readers, "GET /profiles/{name}/versions": readers, "POST /profiles/{name}/explain": readers,
	"GET /birth-cas": readers, "POST /birth-cas": administrators, "DELETE /birth-cas/{label}/{fingerprint}": administrators,
	"GET /devices": readers, "POST /devices": operators, "GET /devices/{id}": readers, "DELETE /devices/{id}": operators,
	"POST /devices/{id}/revoke": operators, "POST /devices/{id}/suspend": operators, "POST /devices/{id}/resume": operators, "POST /devices/{id}/reissue": operators,
	"POST /devices/{id}/bundle": operators, "POST /imports": operators,
	"GET /codes": readers, "POST /codes": operators, "DELETE /codes/{device}": operators,
	"GET /certificates": readers, "GET /certificates/{serial}": readers, "POST /certificates/{serial}/revoke": operators, "POST /certificates/{serial}/unhold": operators,
	"GET /admins": readers, "POST /admins": administrators, "DELETE /admins/{name}": administrators,
	"GET /bridges": readers, "GET /audit/head": auditors, "POST /backup": administrators, "POST /audit/accept-clock": administrators, "GET /audit/verify": auditors, "GET /audit/export": auditors,
}

func TestEveryOperationChecksTheRole(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	seen := 0
	for path, item := range a.OpenAPI().Paths {
		for method, op := range map[string]any{"GET": item.Get, "POST": item.Post, "PUT": item.Put, "PATCH": item.Patch, "DELETE": item.Delete} {
			if fmt.Sprint(op) == "<nil>" {
				continue
			}
			seen++
			key := method + " " + strings.TrimPrefix(path, Base)
			allowed, known := rights[key]
			if !known {
				t.Errorf("%s is not in the matrix", key)
				continue
			}
			url := strings.NewReplacer("{name}", "nobody", "{id}", "nobody", "{serial}", "12", "{label}", "nowhere", "{device}", "nobody", "{fingerprint}", "00").Replace(path)
			for _, role := range []string{RoleAdministrator, RoleOperator, RoleAuditor, RoleBridge, "owner"} {
				got := request(a, role, method, url, "").Code
				if want := slices.Contains(allowed, role); want == (got == http.StatusForbidden) {
					t.Errorf("%s as %s: status %d, allowed: %v", key, role, got, want)
				}
			}
			if got := request(a, "", method, url, "").Code; got != http.StatusUnauthorized {
				t.Errorf("%s as nobody: status %d, want 401", key, got)
			}
		}
	}
	if seen != len(rights) {
		t.Errorf("%d operations, %d in the matrix", seen, len(rights))
	}
}

// What is no operation is refused, and nothing answers a stranger: not the description either.
func TestNothingElseAnswers(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	for _, path := range []string{"/", "/docs", "/schemas", "/openapi.json", Base, Base + "/", Base + "/cas/", Base + "//cas", Base + "/CAS", "/api/v2/cas"} {
		if w := request(a, RoleAdministrator, http.MethodGet, path, ""); w.Code != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, w.Code)
		}
	}
	for _, method := range []string{http.MethodPut, http.MethodTrace, "PURGE"} {
		if w := request(a, RoleAdministrator, method, Base+"/cas", ""); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s /cas: %d", method, w.Code)
		}
	}
	if w := request(a, "", http.MethodGet, Base+"/openapi.json", ""); w.Code != http.StatusUnauthorized {
		t.Errorf("description for nobody: %d", w.Code)
	}
	if w := request(a, RoleAuditor, http.MethodGet, Base+"/openapi.json", ""); w.Code != http.StatusOK || strings.Contains(w.Body.String(), "$schema") {
		t.Errorf("description: %d %.80s", w.Code, w.Body)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		reason             string
	}{
		"unknown CA":             {"GET", "/cas/nope", "", 404, "unknown_ca"},
		"unknown label":          {"GET", "/labels/nope", "", 404, "unknown_label"},
		"unknown profile":        {"GET", "/profiles/nope", "", 404, "unknown_profile"},
		"unknown device":         {"GET", "/devices/nope", "", 404, "unknown_device"},
		"unknown certificate":    {"GET", "/certificates/12", "", 404, "unknown_certificate"},
		"not a serial number":    {"GET", "/certificates/xyz", "", 400, "serial"},
		"bad id":                 {"POST", "/devices", `{"id":"a b"}`, 400, "device_id"},
		"reserved id":            {"POST", "/devices", `{"id":"Natal-Canary-1"}`, 400, "device_id_reserved"},
		"reserved by settings":   {"POST", "/devices", `{"id":"IotAgent"}`, 400, "device_id_reserved"},
		"unknown field":          {"POST", "/devices", `{"id":"a","colour":"red"}`, 422, "shape"},
		"no body":                {"POST", "/devices", "", 400, "shape"},
		"not JSON":               {"POST", "/devices", "{", 400, "shape"},
		"unknown query":          {"GET", "/devices?colour=red", "", 422, "shape"},
		"bad duration":           {"POST", "/codes", `{"device":"a","expires":"soon"}`, 400, "invalid"},
		"code at unknown label":  {"POST", "/codes", `{"device":"a","label":"nope"}`, 404, "unknown_label"},
		"code at codeless label": {"POST", "/codes", `{"device":"a","label":"mqtt-server"}`, 409, "label_auth"},
		"bad reason":             {"POST", "/devices/a/revoke", `{"reason":"boredom"}`, 400, "reason"},
		"CA with two parents":    {"POST", "/cas", `{"name":"x","parent":"root","external":true}`, 400, "invalid"},
		"CA under nobody":        {"POST", "/cas", `{"name":"x","parent":"nope"}`, 404, "unknown_ca"},
		"CA name taken":          {"POST", "/cas", `{"name":"devices","parent":"root"}`, 409, "ca_exists"},
		"CA with a weak key":     {"POST", "/cas", `{"name":"x","parent":"root","key":"rsa:1024"}`, 400, "ca_key"},
		"import into active":     {"POST", "/cas/devices/import", `{"certificate":"x"}`, 409, "ca_state"},
		"offline from elsewhere": {"POST", "/cas/root/offline", `{"out":"/tmp/x"}`, 403, "local_only"},
		"CSR that is none":       {"POST", "/profiles/iot-device/explain", `{"csr":"x"}`, 400, "bad_csr"},
		"bad role":               {"POST", "/admins", `{"name":"a","role":"owner","csr":"x"}`, 422, "shape"},
		"admin without CSR":      {"POST", "/admins", `{"name":"a","role":"auditor","csr":"x"}`, 400, "bad_csr"},
		"unknown admin":          {"DELETE", "/admins/nope", "", 404, "not_found"},
		"birth CA that is none":  {"POST", "/birth-cas", `{"label":"default","pem":"x"}`, 400, "birth_ca"},
		"CRL times":              {"PUT", "/crls/devices/schedule", `{"valid":"24h","interval":"13h"}`, 400, "crl_interval"},
	} {
		t.Run(name, func(t *testing.T) {
			w := request(a, RoleAdministrator, c.method, Base+c.path, c.body)
			var p Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
				t.Fatalf("status %d, not a problem document: %s", w.Code, w.Body)
			}
			if w.Code != c.status || p.Status != c.status || p.Reason != c.reason || p.Detail == "" {
				t.Errorf("got %d %s; want %d %s", w.Code, w.Body, c.status, c.reason)
			}
			if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("content type %q", got)
			}
		})
	}
}

// Every kind of the domain packages has a status of its own making; what has none is a 500 that tells a stranger nothing.
func TestErrorKinds(t *testing.T) {
	t.Parallel()
	a := &API{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	for _, kind := range []ca.Kind{ca.ProfileViolation, ca.Conflict, ca.NotFound, ca.Invalid, ca.Unavailable} {
		var p *Problem
		if err := a.problem(Caller{}, fmt.Errorf("wrapped: %w", &ca.Error{Kind: kind, Rule: "r", Detail: "d", Err: errors.New("secret")})); !errors.As(err, &p) || p.Status == 500 || p.Reason != "r" || p.Detail != "d" {
			t.Errorf("ca %s: %+v", kind, p)
		}
	}
	for _, kind := range []registration.Kind{registration.NotAuthenticated, registration.NotAuthorized, registration.UnknownLabel, registration.NotFound, registration.Conflict, registration.Invalid} {
		var p *Problem
		if err := a.problem(Caller{}, &registration.Error{Kind: kind, Reason: "r", Detail: "d", Err: errors.New("secret")}); !errors.As(err, &p) || p.Status == 500 || p.Reason != "r" {
			t.Errorf("registration %s: %+v", kind, p)
		}
	}
	var p *Problem
	if err := a.problem(Caller{}, errors.New("secret")); !errors.As(err, &p) || p.Status != 500 || strings.Contains(p.Detail, "secret") {
		t.Errorf("untyped error: %+v", p)
	}
	if err := a.problem(Caller{Local: true}, errors.New("what happened")); !errors.As(err, &p) || !strings.Contains(p.Detail, "what happened") {
		t.Errorf("untyped error, local caller: %+v", p)
	}
}

func TestAdministrators(t *testing.T) {
	t.Parallel()
	a, i := newAPI(t)
	csr := string(testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-256"), "whatever the CSR says", nil)))
	body, err := json.Marshal(NewAdministrator{Name: "operator-1", Role: RoleOperator, CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	w := request(a, RoleAdministrator, "POST", Base+"/admins", string(body))
	var identity Identity
	if err := json.Unmarshal(w.Body.Bytes(), &identity); err != nil || w.Code != 200 {
		t.Fatalf("add: %d %s", w.Code, w.Body)
	}
	leaf := testpki.ParsePEM(t, []byte(identity.Certificate))[0]
	if leaf.Subject.String() != "CN=natal-admin-operator-1" {
		t.Errorf("subject %s", leaf.Subject)
	}
	if w := request(a, RoleAdministrator, "POST", Base+"/admins", string(body)); w.Code != http.StatusConflict {
		t.Errorf("added twice: %d", w.Code)
	}
	// A device of the same name is somebody else, and its end is not hers.
	if _, err := i.Book.AddDevice(t.Context(), "test", registration.NewDevice{ID: "operator-1", Label: registration.Default}); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.RevokeDevice(t.Context(), "test", "operator-1", "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	record, err := i.CA.ByDER(t.Context(), leaf)
	if err != nil || record.State != ca.Issued {
		t.Fatalf("her certificate is %s, %v", record.State, err)
	}
	remote := a.Remote(func(*http.Request) (ca.Certificate, error) { return record, nil })
	get := func(path string) int {
		w := httptest.NewRecorder()
		remote.ServeHTTP(w, httptest.NewRequest("GET", Base+path, nil))
		return w.Code
	}
	if got := get("/devices"); got != 200 {
		t.Errorf("operator reads devices: %d", got)
	}
	if got := get("/audit/verify"); got != 403 {
		t.Errorf("operator reads the audit log: %d", got)
	}
	if w := request(a, RoleAdministrator, "DELETE", Base+"/admins/operator-1", ""); w.Code != 204 {
		t.Fatalf("remove: %d %s", w.Code, w.Body)
	}
	if got := get("/devices"); got != 401 {
		t.Errorf("removed administrator: %d", got)
	}
	if record, err = i.CA.ByDER(t.Context(), leaf); err != nil || record.State != ca.Revoked {
		t.Errorf("after removal the certificate is %s, %v", record.State, err)
	}
}

// Removal is whole or it is not: the record, the certificates, a bridge's canaries. A name that comes back does not bring an old key back.
func TestRemovingAnAdministrator(t *testing.T) {
	t.Parallel()
	a, i := newAPI(t)
	ctx := t.Context()
	execute := func(statement string) {
		t.Helper()
		err := i.DB.Write(ctx, "test", func(tx *database.Tx) error {
			_, err := tx.Exec(statement)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	old, bridge := addAdmin(t, a, "operator-1", RoleOperator), addAdmin(t, a, "mqtt", RoleBridge)
	canary, err := i.CA.Issue(ctx, ca.Request{
		CA: "devices", Profile: feed.CanaryProfile, Device: feed.CanaryPrefix + "1", PublicKey: installation.Key(t).Public(),
		RequesterKind: feed.RequesterKind, Requester: bridge.Device, Actor: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	execute("CREATE TRIGGER broken BEFORE UPDATE ON certificates BEGIN SELECT RAISE(ABORT, 'broken'); END")
	for _, name := range []string{"operator-1", "mqtt"} {
		if w := request(a, RoleAdministrator, "DELETE", Base+"/admins/"+name, ""); w.Code != 500 {
			t.Errorf("remove %s while nothing can be revoked: %d", name, w.Code)
		}
	}
	if got, role, err := a.roleOf(ctx, old); got != "operator-1" || role != RoleOperator || err != nil {
		t.Errorf("half removed: %q %q %v", got, role, err)
	}
	execute("DROP TRIGGER broken")
	since, err := i.CA.Changes().Seq(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"operator-1", "mqtt"} {
		if w := request(a, RoleAdministrator, "DELETE", Base+"/admins/"+name, ""); w.Code != 204 {
			t.Fatalf("remove %s: %d %s", name, w.Code, w.Body)
		}
	}
	for _, c := range []ca.Certificate{old, bridge, canary} {
		record, err := i.CA.Certificate(ctx, c.Serial)
		crl, crlErr := i.CA.CurrentCRL(ctx, c.Issuer)
		if err != nil || crlErr != nil || record.State != ca.Revoked || record.Reason != "privilegeWithdrawn" || crl.Entries == 0 {
			t.Errorf("%s is %s (%s), the CRL has %d entries: %v, %v", c.Device, record.State, record.Reason, crl.Entries, err, crlErr)
		}
	}
	told, err := i.CA.Changes().Since(ctx, since, 10)
	if err != nil || !slices.ContainsFunc(told, func(c feedapi.Change) bool { return c.Revoked != nil && c.Revoked.Serial == canary.Serial }) {
		t.Errorf("bridges are not told of the canary: %+v, %v", told, err)
	}
	i.Clock.Advance(time.Second)
	again := addAdmin(t, a, "operator-1", RoleAdministrator)
	if _, role, err := a.roleOf(ctx, again); role != RoleAdministrator || err != nil {
		t.Errorf("added again: %q, %v", role, err)
	}
	if _, _, err := a.roleOf(ctx, old); err == nil {
		t.Error("the old certificate serves again")
	}
}

// When the certificate cannot be made there is no administrator either, and one that was there stays.
func TestAddingAnAdministratorFails(t *testing.T) {
	t.Parallel()
	a, i := newAPI(t)
	first := addAdmin(t, a, "operator-1", RoleOperator)
	csr := string(testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-256"), "x", nil)))
	add := func(name string) int {
		body, err := json.Marshal(NewAdministrator{Name: name, Role: RoleAdministrator, CSR: csr})
		if err != nil {
			t.Fatal(err)
		}
		return request(a, RoleAdministrator, "POST", Base+"/admins", string(body)).Code
	}
	err := i.DB.Write(t.Context(), "test", func(tx *database.Tx) error {
		_, err := tx.Exec("CREATE TRIGGER broken BEFORE UPDATE ON certificates WHEN new.state = 'issued' BEGIN SELECT RAISE(ABORT, 'broken'); END")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := add("operator-1"); got != http.StatusConflict {
		t.Errorf("a second operator-1: %d", got)
	}
	if got := add("otto"); got != http.StatusServiceUnavailable {
		t.Errorf("otto: %d", got)
	}
	if _, role, err := a.roleOf(t.Context(), first); role != RoleOperator || err != nil {
		t.Errorf("the first operator-1: %q, %v", role, err)
	}
	var names []string
	if err := i.DB.Select(t.Context(), &names, "SELECT name FROM administrators"); err != nil || !slices.Equal(names, []string{"operator-1"}) {
		t.Errorf("administrators: %v, %v", names, err)
	}
	certs, err := i.CA.Certificates(t.Context(), ca.Filter{Device: "natal-admin-otto"})
	if err != nil || len(certs) != 1 || certs[0].State != ca.Revoked {
		t.Errorf("otto's certificate: %+v, %v", certs, err)
	}
}

// Certificates that are ours, but not an administrator's.
func TestRemoteRefusesOtherCertificates(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	for name, record := range map[string]ca.Certificate{
		"device":                  {Profile: "iot-device", Device: "natal-admin-admin"},
		"bridge":                  {Profile: "bridge", Device: "mqtt.example.com"},
		"EST server":              {Profile: "est-server", Device: "natal-est-server"},
		"admin without record":    {Profile: "admin", Device: "natal-admin-ghost"},
		"admin of another prefix": {Profile: "admin", Device: "admin"},
	} {
		w := httptest.NewRecorder()
		a.Remote(func(*http.Request) (ca.Certificate, error) { return record, nil }).ServeHTTP(w, httptest.NewRequest("GET", Base+"/cas", nil))
		if w.Code != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
}

// Whoever connects to the socket is known by what the kernel says.
func TestSocketTellsTheUser(t *testing.T) {
	t.Parallel()
	a, i := newAPI(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: a, ConnContext: SocketContext}
	go server.Serve(l)
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", l.Addr().String()) }}}
	answer, err := client.Post("http://socket"+Base+"/devices", "application/json", strings.NewReader(`{"id":"SN-1"}`))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	var actor string
	if err := i.DB.Get(t.Context(), &actor, "SELECT actor FROM audit ORDER BY seq DESC LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("cli:uid=%d", os.Getuid()); answer.StatusCode != 200 || actor != want {
		t.Errorf("status %d, audited as %q, want %q", answer.StatusCode, actor, want)
	}
}

func TestCodeIsShownOnce(t *testing.T) {
	t.Parallel()
	a, i := newAPI(t)
	w := request(a, RoleOperator, "POST", Base+"/codes", `{"device":"SN-1"}`)
	var code Code
	if err := json.Unmarshal(w.Body.Bytes(), &code); err != nil || len(code.Code) < 26 || code.Label != "default" || code.Device != "SN-1" {
		t.Fatalf("create: %d %s", w.Code, w.Body)
	}
	for _, path := range []string{"/codes", "/codes?device=SN-1", "/devices/SN-1", "/audit/export"} {
		if w := request(a, RoleAdministrator, "GET", Base+path, ""); w.Code != 200 || strings.Contains(w.Body.String(), code.Code) {
			t.Errorf("%s: %d, or it shows the code", path, w.Code)
		}
	}
	// Without a label the next code is for the device's own.
	if _, err := i.Book.AddDevice(t.Context(), "test", registration.NewDevice{ID: "mqtt.example.com", Label: "bridge"}); err != nil {
		t.Fatal(err)
	}
	w = request(a, RoleAdministrator, "POST", Base+"/codes", `{"device":"mqtt.example.com"}`)
	if err := json.Unmarshal(w.Body.Bytes(), &code); err != nil || code.Label != "bridge" {
		t.Errorf("code for a bridge: %d %s", w.Code, w.Body)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	csr := string(testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "rsa:2048"), "SN-1", nil)))
	for _, c := range []struct {
		profile, device string
		ok              bool
		rule            string
	}{{"iot-device", "", true, ""}, {"iot-device", "SN-2", false, "subject_common_name"}, {"canary", "", false, "key_type"}} {
		body, _ := json.Marshal(ExplainProfile{CSR: csr, Device: c.device})
		w := request(a, RoleAuditor, "POST", Base+"/profiles/"+c.profile+"/explain", string(body))
		var e Explanation
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.OK != c.ok {
			t.Errorf("%s as %q: %d %s", c.profile, c.device, w.Code, w.Body)
		}
		if c.rule != "" && !slices.ContainsFunc(e.Findings, func(f Finding) bool { return f.Rule == c.rule && !f.OK }) {
			t.Errorf("%s as %q does not name %s: %s", c.profile, c.device, c.rule, w.Body)
		}
	}
}

// A broken log is an answer, not a failure; an export that breaks off breaks the connection.
func TestAuditVerifyFindsAChange(t *testing.T) {
	t.Parallel()
	a, i := newAPI(t)
	if w := request(a, RoleAuditor, "GET", Base+"/audit/verify", ""); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	err := i.DB.Write(t.Context(), "test", func(tx *database.Tx) error {
		_, err := tx.Exec("UPDATE audit SET actor = 'nobody' WHERE seq = 3")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w := request(a, RoleAuditor, "GET", Base+"/audit/verify", "")
	if w.Code != http.StatusConflict || !bytes.Contains(w.Body.Bytes(), []byte("entry 3 was changed")) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	export := request(a, RoleAuditor, "GET", Base+"/audit/export", "")
	lines := 0
	for d := json.NewDecoder(export.Body); ; lines++ {
		var entry map[string]any
		if err := d.Decode(&entry); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if lines < 5 {
		t.Errorf("%d entries exported", lines)
	}
}
