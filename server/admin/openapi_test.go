// The description: complete, the same as docs/openapi.json, and of exactly the operations that answer.

package admin

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
)

var update = flag.Bool("update", false, "write docs/openapi.json")

const committed = "../../docs/openapi.json"

func TestOpenAPIIsCommitted(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	want, err := a.WriteOpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(committed, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(committed)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("docs/openapi.json is not what the server serves (%v): make openapi", err)
	}
	var served, kept any
	w := request(a, RoleAuditor, http.MethodGet, Base+"/openapi.json", "")
	if err := json.Unmarshal(w.Body.Bytes(), &served); err != nil || json.Unmarshal(want, &kept) != nil || fmt.Sprint(served) != fmt.Sprint(kept) {
		t.Errorf("another description is served: %d %v", w.Code, err)
	}
	if bytes.Contains(want, []byte("ErrorModel")) || bytes.Contains(want, []byte("$schema")) {
		t.Error("the description names what is not used")
	}
}

// operations are those of the description, by method and path.
func operations(a *API) map[string]*huma.Operation {
	list := map[string]*huma.Operation{}
	for path, item := range a.OpenAPI().Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op != nil {
				list[op.Method+" "+path] = op
			}
		}
	}
	return list
}

func TestDescriptionAndRouterAgree(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	described := operations(a)
	routed := map[string]bool{}
	err := chi.Walk(a.router, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if !strings.HasPrefix(route, Base+"/openapi") {
			routed[method+" "+route] = true
		}
		return nil
	})
	if err != nil || len(routed) < 30 {
		t.Fatalf("%d routes, %v", len(routed), err)
	}
	for key := range routed {
		if described[key] == nil {
			t.Errorf("%s is not described", key)
		}
	}
	for key := range described {
		if !routed[key] {
			t.Errorf("%s is described and not routed", key)
		}
	}
}

func TestEveryOperationIsDescribed(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	ids := map[string]string{}
	form := regexp.MustCompile(`^[a-z]+(-[a-z]+)+$`)
	for key, op := range operations(a) {
		if op.Summary == "" || len(op.Tags) != 1 || tags[op.Tags[0]] == "" {
			t.Errorf("%s: summary %q, tags %q (a new tag goes into openapi.go)", key, op.Summary, op.Tags)
		}
		if other := ids[op.OperationID]; other != "" || !form.MatchString(op.OperationID) {
			t.Errorf("%s: operation id %q, also of %q", key, op.OperationID, other)
		}
		ids[op.OperationID] = key
		if op.Responses["default"] != nil || op.Responses["401"] == nil || op.Responses["403"] == nil || (op.RequestBody != nil) != (op.Responses["422"] != nil) {
			t.Errorf("%s: its refusals are not described", key)
		}
		for status, r := range op.Responses {
			if status >= "400" && (r.Content["application/problem+json"] == nil || !strings.Contains(r.Description, "reason: ")) {
				t.Errorf("%s: %s has no reasons", key, status)
			}
		}
	}
	for key := range secretAnswers {
		method, path, _ := strings.Cut(key, " ")
		if op := operations(a)[method+" "+Base+path]; op != nil && op.Description == "" {
			t.Errorf("%s does not tell of its secret", key)
		}
	}
}

// Whatever is wrong with a request, the refusal has the one form and a word.
func TestRefusalOfAShape(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	for name, c := range map[string]struct {
		method, path, body, reason string
		status                     int
	}{
		"no JSON":         {"POST", "/devices", "{", "shape", 400},
		"a wrong type":    {"POST", "/devices", `{"id": 1}`, "shape", 422},
		"a missing field": {"POST", "/devices", `{}`, "shape", 422},
		"a field more":    {"POST", "/devices", `{"id": "a", "tenant": "b"}`, "shape", 422},
		"a parameter":     {"GET", "/devices?lable=x", "", "shape", 422},
		"a limit":         {"GET", "/devices?limit=0", "", "shape", 422},
		"too much":        {"POST", "/devices", `{"id": "` + strings.Repeat("a", 1<<20) + `"}`, "too_large", 413},
		"a state":         {"GET", "/devices?state=old", "", "state", 400},
		"another state":   {"GET", "/certificates?state=old", "", "state", 400},
		"an unknown page": {"GET", "/certificates?state=revoked&after=12", "", "after", 400},
	} {
		w := request(a, RoleAdministrator, c.method, Base+c.path, c.body)
		var p Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != c.status || p.Status != c.status || p.Reason != c.reason || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s %s", name, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
	}
}

func TestPagesLocationsAndVersions(t *testing.T) {
	t.Parallel()
	a, _ := newAPI(t)
	for _, id := range []string{"a", "b", "c"} {
		w := request(a, RoleOperator, http.MethodPost, Base+"/devices", `{"id":"`+id+`","service":"admin"}`)
		if w.Code != http.StatusOK || w.Header().Get("Location") != Base+"/devices/"+id || !strings.Contains(w.Body.String(), `"service":"admin"`) {
			t.Errorf("%d %s %s", w.Code, w.Header(), w.Body)
		}
		if w := request(a, RoleOperator, http.MethodGet, w.Header().Get("Location"), ""); w.Code != http.StatusOK || w.Header().Get("Location") != "" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	if w := request(a, RoleOperator, http.MethodPost, Base+"/devices", `{"id":"a","service":"admin"}`); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), `"reason":"device_exists"`) {
		t.Errorf("a second time: %d %s", w.Code, w.Body)
	}
	var seen []string
	for after := ""; ; {
		var list List[Device]
		w := request(a, RoleAuditor, http.MethodGet, Base+"/devices?limit=2&after="+after, "")
		if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list.Items) > 2 {
			t.Fatalf("%v %s", err, w.Body)
		}
		for _, d := range list.Items {
			seen = append(seen, d.ID)
		}
		if after = list.Next; after == "" {
			break
		}
	}
	if !slices.Equal(seen, []string{"a", "b", "c"}) {
		t.Errorf("pages held %q", seen)
	}

	w := request(a, RoleAdministrator, http.MethodGet, Base+"/labels/default", "")
	tag := w.Header().Get("ETag")
	change := func(match string) int {
		r := newRequest(RoleAdministrator, http.MethodPatch, Base+"/labels/default", `{"auth":["code"]}`)
		r.Header.Set("If-Match", match)
		w = serve(a, r)
		return w.Code
	}
	if tag != `"1"` || change(tag) != http.StatusOK || w.Header().Get("ETag") != `"2"` {
		t.Errorf("%s: %d %s", tag, w.Code, w.Body)
	}
	if change(tag) != http.StatusPreconditionFailed || !strings.Contains(w.Body.String(), `"reason":"label_changed"`) {
		t.Errorf("an old version: %d %s", w.Code, w.Body)
	}
	if w := request(a, RoleAuditor, http.MethodGet, Base+"/profiles/iot-device", ""); len(w.Header().Get("ETag")) != 66 {
		t.Errorf("profile: ETag %s", w.Header().Get("ETag"))
	}
}
