// The description of the API, OpenAPI 3.1: made from the registered operations, served at /api/v1/openapi.json to whoever may call at all, and kept
// as docs/openapi.json ("make openapi"; a test finds it out of date).

package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// tags are what the operations are sorted by: the first part of their paths, and what the objects are.
var tags = map[string]string{
	"admins":       "Administrators and bridges: who may use this API or the feed from elsewhere.",
	"audit":        "The audit log: hash-chained, exported as JSON lines.",
	"birth-cas":    "CAs whose birth certificates a label accepts.",
	"backup":       "A consistent, encrypted copy of the database and the keys.",
	"bridges":      "Broker bridges and how far each has brought its broker.",
	"cas":          "Issuing and root CAs.",
	"certificates": "Every certificate that was ever issued here.",
	"codes":        "One-time enrollment codes. A code is in the answer that makes it and nowhere else: it is stored as a keyed hash.",
	"crls":         "Revocation lists.",
	"devices":      "End entities: the devices as the registration authority knows them.",
	"imports":      "Many devices at once, all or none, with a code each.",
	"labels":       "Path segments of EST: which CA, which profile and whose authentication each stands for.",
	"profiles":     "Certificate profiles, versioned.",
}

// created are the collections in which a POST makes an object with an address of its own.
var created = []string{"/devices", "/codes", "/labels", "/profiles", "/cas", "/admins"}

// reasons are the stable words of refusals by status, those that every client should know; a refusal by a profile has the rule's name.
var reasons = map[int][]string{
	http.StatusBadRequest: {"invalid", "device_id", "device_id_reserved", "service", "san", "state", "serial", "reason", "bad_csr", "code_life", "label_auth", "label_name", "after"},

	http.StatusUnauthorized:          {"not_authenticated"},
	http.StatusForbidden:             {"not_authorized", "administrator_only", "local_only"},
	http.StatusNotFound:              {"unknown_device", "unknown_label", "unknown_certificate", "unknown_ca", "unknown_profile", "not_found", "unknown_path"},
	http.StatusConflict:              {"device_exists", "device_state", "device_label", "label_exists", "label_changed", "certificate_state", "conflict"},
	http.StatusPreconditionFailed:    {"label_changed"},
	http.StatusUnprocessableEntity:   {"shape", "lint", "the name of a profile rule"},
	http.StatusRequestEntityTooLarge: {"too_large"},
	http.StatusUnsupportedMediaType:  {"media_type"},
	http.StatusInternalServerError:   {"internal"},
	http.StatusServiceUnavailable:    {"storage", "ca_key_unavailable"},
}

// shapeReasons are the words for requests that no operation has seen: what they ask has not the described shape.
var shapeReasons = map[int]string{
	http.StatusBadRequest: "shape", http.StatusUnprocessableEntity: "shape", http.StatusRequestEntityTooLarge: "too_large", http.StatusUnsupportedMediaType: "media_type",
	http.StatusNotAcceptable: "media_type", http.StatusRequestTimeout: "timeout",
}

// asProblem gives the refusals of requests that have not the described shape the form of all others.
func asProblem(_ huma.Context, status string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	code, _ := strconv.Atoi(status)
	p := newProblem(code, shapeReasons[code], e.Detail)
	for _, field := range e.Errors {
		p.Errors = append(p.Errors, ProblemField{Message: field.Message, Location: field.Location})
	}
	return p, nil
}

// describe completes what the registration of the operations left open.
func (a *API) describe() {
	doc := a.huma.OpenAPI()
	doc.Info.Description = "Devices, codes, certificates, authorities, labels, profiles and CRLs of one server. On DIR/admin.sock the caller is the local administrator; " +
		"on the admin address he is who his client certificate says. x-roles lists who may call an operation; an operator acts on what is for devices only. " +
		"Refusals are problem documents (RFC 9457) whose reason is a stable word. Lists come in pages: next, when there is one, is the value of after for the page behind."
	doc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"administrator": {Type: "mutualTLS", Description: "A certificate of the management CA: DIR/admin/, or est-server admin add."},
	}
	doc.Security = []map[string][]string{{"administrator": {}}}
	doc.Tags = nil
	for name, text := range tags {
		doc.Tags = append(doc.Tags, &huma.Tag{Name: name, Description: text})
	}
	slices.SortFunc(doc.Tags, func(x, y *huma.Tag) int { return strings.Compare(x.Name, y.Name) })
	problem := doc.Components.Schemas.Schema(problemType, true, "Problem")
	for path, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op != nil {
				describeOperation(op, strings.TrimPrefix(path, Base), problem)
			}
		}
	}
	schemas := doc.Components.Schemas.Map()
	delete(schemas, "ErrorModel")
	delete(schemas, "ErrorDetail")
}

func describeOperation(op *huma.Operation, path string, problem *huma.Schema) {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	op.Tags = []string{first}
	op.OperationID = strings.ToLower(op.Method) + strings.NewReplacer("/", "-", "{", "", "}", "").Replace(path)
	statuses := []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusInternalServerError, http.StatusServiceUnavailable}
	if strings.Contains(path, "{") || op.Method == http.MethodPost {
		statuses = append(statuses, http.StatusNotFound)
	}
	if op.Method != http.MethodGet {
		statuses = append(statuses, http.StatusConflict)
	}
	if op.RequestBody != nil {
		statuses = append(statuses, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity)
	}
	if slices.ContainsFunc(op.Parameters, func(p *huma.Param) bool { return p.Name == "If-Match" }) {
		statuses = append(statuses, http.StatusPreconditionFailed)
	}
	delete(op.Responses, "default")
	if ok := op.Responses["200"]; ok != nil {
		if op.Method != http.MethodPost || !slices.Contains(created, path) {
			delete(ok.Headers, "Location")
		}
		if first != "labels" && first != "profiles" {
			delete(ok.Headers, "ETag")
		}
	}
	for _, status := range statuses {
		op.Responses[strconv.Itoa(status)] = &huma.Response{
			Description: fmt.Sprintf("%s. reason: %s", http.StatusText(status), strings.Join(reasons[status], ", ")),
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: problem}},
		}
	}
	if secretAnswers[op.Method+" "+path] {
		op.Description = "The answer holds a secret that is not stored and cannot be read again. Keep it out of logs, arguments and histories: write it to a file of mode 0600, " +
			"or hand it on through a pipe."
	}
}

// secretAnswers are the operations whose answers hold a secret.
var secretAnswers = map[string]bool{"POST /codes": true, "POST /devices": true, "POST /devices/{id}/reissue": true, "POST /imports": true, "POST /devices/{id}/bundle": true}

// WriteOpenAPI returns the description as it is kept in docs/openapi.json.
func (a *API) WriteOpenAPI() ([]byte, error) {
	content, err := json.MarshalIndent(a.OpenAPI(), "", "  ")
	return append(content, '\n'), err
}
