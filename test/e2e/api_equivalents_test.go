// docs/api.md says what stands here for each call of EJBCA. Each of those calls is done, over TLS with the first administrator's certificate.

package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/testpki"
)

func TestEquivalentsOfEJBCA(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	admin, err := tls.LoadX509KeyPair(filepath.Join(s.Data, "admin", "cert.pem"), filepath.Join(s.Data, "admin", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	client := s.HTTP(t, admin)
	tried := map[string]bool{}
	call := func(form, path string, in, out any) {
		t.Helper()
		tried[form] = true
		method, _, _ := strings.Cut(form, " ")
		var body io.Reader
		if in != nil {
			content, err := json.Marshal(in)
			if err != nil {
				t.Fatal(err)
			}
			body = bytes.NewReader(content)
		}
		request, err := http.NewRequestWithContext(t.Context(), method, "https://"+s.Admin+"/api/v1"+path, body)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		content, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode/100 != 2 {
			t.Fatalf("%s %s: %d %s, %v", method, path, answer.StatusCode, content, err)
		}
		if out != nil {
			if err := json.Unmarshal(content, out); err != nil {
				t.Fatalf("%s %s: %s: %v", method, path, content, err)
			}
		}
	}
	want := func(what string, got, want any) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	type object struct {
		ID, Device, Code, State, Serial, Reason, Name, YAML, Certificate string
		Number                                                           int64
	}
	type list struct{ Items []object }

	var device, code object
	call("POST /devices", "/devices", map[string]string{"id": "u-1"}, &device)
	want("a new device", device.State, "new")
	call("POST /codes", "/codes", map[string]string{"device": "u-1"}, &code)

	key := testpki.Key(t, "ec:P-256")
	enroll := func() (int, []byte) {
		tried["POST /.well-known/est/simpleenroll"] = true
		csr := base64.StdEncoding.EncodeToString(testpki.CSR(t, key, "u-1", nil))
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/.well-known/est/simpleenroll", strings.NewReader(csr))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/pkcs10")
		request.SetBasicAuth("u-1", code.Code)
		answer, err := s.HTTP(t).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, body
	}
	status, first := enroll()
	want("enrollment", status, 200)
	status, again := enroll()
	want("the same key again", fmt.Sprint(status, string(again)), fmt.Sprint(200, string(first)))
	key = testpki.Key(t, "ec:P-256")
	status, _ = enroll()
	want("the same code for another key", status, 401)

	var found, some list
	call("GET /devices/{id}", "/devices/u-1", nil, &device)
	want("after enrollment", device.State, "generated")
	call("GET /devices", "/devices?state=generated", nil, &found)
	want("devices that have a certificate", fmt.Sprintf("%d %s", len(found.Items), found.Items[0].ID), "1 u-1")
	call("GET /certificates", "/certificates?device=u-1", nil, &found)
	want("its certificates", len(found.Items), 1)
	serial := found.Items[0].Serial
	call("GET /certificates", "/certificates?expiring=366d&profile=iot-device", nil, &some)
	want("certificates that end within a year", len(some.Items), 1)
	var cert object
	call("GET /certificates/{serial}", "/certificates/"+serial, nil, &cert)
	if block, _ := pem.Decode([]byte(cert.Certificate)); block == nil || cert.State != "issued" {
		t.Errorf("certificate: %+v", cert)
	}
	call("GET /cas", "/cas", nil, &found)
	want("CAs", len(found.Items), 3)
	call("GET /cas/{name}", "/cas/devices", nil, &cert)
	want("a CA", cert.Name+" "+cert.State, "devices active")

	call("POST /certificates/{serial}/revoke", "/certificates/"+serial+"/revoke", map[string]string{"reason": "certificateHold"}, &cert)
	want("held", cert.State+" "+cert.Reason, "held certificateHold")
	call("POST /certificates/{serial}/unhold", "/certificates/"+serial+"/unhold", nil, &cert)
	want("back", cert.State, "issued")
	var before, after object
	call("GET /crls/{name}", "/crls/devices", nil, &before)
	call("POST /crls/{name}", "/crls/devices", nil, nil)
	call("GET /crls/{name}", "/crls/devices", nil, &after)
	want("a newer CRL", after.Number > before.Number, true)

	call("POST /devices/{id}/reissue", "/devices/u-1/reissue", nil, &code)
	want("a new code", code.Device, "u-1")
	call("POST /devices/{id}/revoke", "/devices/u-1/revoke", map[string]string{"reason": "keyCompromise"}, &device)
	want("revoked", device.State, "revoked")
	call("GET /certificates/{serial}", "/certificates/"+serial, nil, &cert)
	want("its certificate", cert.State+" "+cert.Reason, "revoked superseded")
	call("DELETE /devices/{id}", "/devices/u-1", nil, nil)
	call("DELETE /devices/{id}", "/devices/u-1", nil, nil)
	call("GET /devices/{id}", "/devices/u-1", nil, &device)
	want("removed", device.State, "historical")

	var profile object
	call("GET /profiles/{name}", "/profiles/cfree-compat", nil, &profile)
	call("POST /profiles", "/profiles", map[string]string{"yaml": strings.Replace(profile.YAML, "name: cfree-compat", "name: cfree-copy", 1)}, &profile)
	want("the copy", profile.Name, "cfree-copy")
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: testpki.CSR(t, key, "x", nil)})
	call("POST /admins", "/admins", map[string]string{"name": "olga", "role": "operator", "csr": string(csr)}, &cert)
	block, _ := pem.Decode([]byte(cert.Certificate))
	if leaf, err := x509.ParseCertificate(block.Bytes); err != nil || leaf.Subject.CommonName != "natal-admin-olga" {
		t.Errorf("administrator: %v", err)
	}

	_, table, _ := strings.Cut(readText(t, filepath.Join(harness.Root(), "docs", "api.md")), "## Coming from EJBCA")
	rows := 0
	for line := range strings.Lines(table) {
		if columns := strings.Split(line, "|"); len(columns) == 4 && strings.Contains(columns[2], "`") {
			rows++
			for _, form := range regexp.MustCompile("`((?:GET|POST|PUT|DELETE) /[^`]*)`").FindAllStringSubmatch(columns[2], -1) {
				if !tried[form[1]] {
					t.Errorf("%s of docs/api.md was not tried", form[1])
				}
			}
		}
	}
	if rows < 15 {
		t.Errorf("only %d rows found in docs/api.md", rows)
	}
}
