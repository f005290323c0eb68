// A service that registers devices over the REST API: each has exactly its block in the broker's access list within two seconds, for the
// topics of its own service and id, and loses exactly that block, its certificates and its session with the registration.

package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// restAnswer is a call of the administration API over its socket.
func restAnswer(t *testing.T, client *http.Client, method, path string, body any) (status int, answer []byte) {
	t.Helper()
	content, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://admin/api/v1"+path, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if answer, err = io.ReadAll(response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, answer
}

func TestServiceRegistersDevicesOverREST(t *testing.T) {
	t.Parallel()
	s := harness.StartServer(t, harness.ServerOptions{})
	b := startBroker(t, s, brokerOptions{topics: []string{"write /{service}/{id}/attrs"}, head: "user iotagent\ntopic read /#\n"})
	witness := b.witness(t, "-t", "#")
	client := socketClient(t, s)
	const mark = "# devices: written by broker-bridge, changes here are lost\n"
	services := map[string]string{"device-1": ""} // `run` makes it, for trying out
	wantLists := func(what string, began time.Time) {
		t.Helper()
		blocks := mark
		for _, id := range slices.Sorted(maps.Keys(services)) {
			blocks += "user " + id + "\n"
			if services[id] != "" {
				blocks += "topic write /" + services[id] + "/" + id + "/attrs\n"
			}
		}
		harness.Eventually(t, patience, "the access lists: "+what, func() bool {
			return readText(t, b.path("devices.acl")) == blocks && readText(t, b.path("services.acl")) == "user iotagent\ntopic read /#\n"+blocks
		})
		if took := time.Since(began); took > follows {
			t.Errorf("%s: the lists took %v, want at most %v", what, took, follows)
		}
	}

	// Ids and services that contain each other: what is left out or taken away is a whole block, never a line that looks alike.
	for i := range 44 {
		services[fmt.Sprintf("dev-%d", i)] = []string{"admin", "adm", "admin2"}[i%3]
	}
	maps.Copy(services, map[string]string{"24f6": "admin", "24f60": "admin", "124f6": "admin", "admin": "24f6", "attrs": "admin", "none": ""})
	for id, service := range services {
		if id == "device-1" {
			continue
		}
		if status, answer := restAnswer(t, client, http.MethodPost, "/devices", map[string]string{"id": id, "service": service}); status/100 != 2 || !bytes.Contains(answer, []byte(`"state":"new"`)) {
			t.Fatalf("POST /devices %s: %d %s", id, status, answer)
		}
	}
	wantLists("50 devices added", time.Now())

	for _, bad := range []string{"a b", "#", "+", "a/b", "a\nuser x", "a\x00", "-a", ".", "ä", strings.Repeat("a", 65)} {
		if status, answer := restAnswer(t, client, http.MethodPost, "/devices", map[string]string{"id": "good", "service": bad}); status != http.StatusBadRequest || !bytes.Contains(answer, []byte(`"reason":"service"`)) {
			t.Errorf("service %q: %d %s", bad, status, answer)
		}
		if status, answer := restAnswer(t, client, http.MethodPost, "/devices", map[string]string{"id": bad, "service": "admin"}); status != http.StatusBadRequest || !bytes.Contains(answer, []byte(`"reason":"device_id"`)) {
			t.Errorf("id %q: %d %s", bad, status, answer)
		}
	}

	dir := enrollDevice(t, s, "24f6")
	b.publishUntilSeen(t, witness, dir, "/admin/24f6/attrs", "own-topic")
	for _, foreign := range []string{"/adm/24f6/attrs", "/admin/24f60/attrs", "/admin/24f6/attrs/more", "v1/devices/me/telemetry"} {
		b.publish(t, dir, foreign, "foreign-topic")
	}
	b.publishUntilSeen(t, witness, dir, "/admin/24f6/attrs", "after-the-others")
	if strings.Contains(witness.Output(), "foreign-topic") {
		t.Errorf("what no rule allows arrived:\n%s", witness.Output())
	}

	live := b.mustConnect(t, dir)
	began := time.Now()
	for _, id := range []string{"24f6", "dev-1", "dev-43", "admin"} {
		if status, answer := restAnswer(t, client, http.MethodDelete, "/devices/"+id, nil); status != http.StatusNoContent {
			t.Fatalf("DELETE /devices/%s: %d %s", id, status, answer)
		}
		delete(services, id)
	}
	live.waitEnd(t, began)
	wantLists("4 devices removed", began)
	if _, err := b.connect(t, dir, tls.VersionTLS12); alertOf(err) != 44 {
		t.Errorf("the removed device connects: %v, want alert 44", err)
	}
	for _, c := range certificates(t, s, "--device", "24f6") {
		if c.State != "revoked" {
			t.Errorf("certificate %s of the removed device is %s", c.Serial, c.State)
		}
	}
	services["24f6"] = "adm" // registered again, for another service
	restAnswer(t, client, http.MethodPost, "/devices", map[string]string{"id": "24f6", "service": "adm"})
	wantLists("one added again", time.Now())
}
