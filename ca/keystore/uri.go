// Key URIs: RFC 7512 for PKCS#11, and its form for the others.

package keystore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.step.sm/crypto/kms/uri"
)

// address is where a key is: all of its URI but what names the key among others.
type address struct {
	scheme    string
	backend   string        // URI that opens the backend
	library   string        // what is opened and closed with others
	pinSource string        // where the PIN is; "" if there is none
	shown     string        // for people
	turns     int64         // signatures at a time
	pause     time.Duration // least time between two checks
}

const (
	maxTurns   = 8
	spare      = 4 // sessions besides those that sign: the one that holds the login, for checks, to make a key
	cloudPause = 30 * time.Second
)

// attributes are what a URI may hold. Others are refused: one that is misspelt would be ignored, and another key used.
var attributes = map[string][]string{
	"pkcs11": {"module-path", "token", "serial", "slot-id", "max-sessions", "id", "object", "pin-source"},
	"tpmkms": {"name", "device", "storage-directory"},
}

// Schemes that exist, and what it takes to have them in the binary.
var schemes = map[string]string{
	"pkcs11":   "this binary was built without cgo, which PKCS#11 needs: build it with `make build CGO_ENABLED=1`",
	"tpmkms":   "this binary was built without TPM support",
	"awskms":   "this binary was built without it: build with `make build TAGS=awskms`",
	"azurekms": "this binary was built without it: build with `make build TAGS=azurekms`",
	"cloudkms": "this binary was built without it: build with `make build TAGS=cloudkms`",
}

func notBuilt(scheme string) error { return fmt.Errorf("%s keys: %s", scheme, schemes[scheme]) }

// CheckURI refuses what cannot be the URI of a key, one that holds a PIN, and one whose kind this binary does not have.
func CheckURI(raw string) error {
	if IsFile(raw) {
		_, err := (&Store{}).filePath(raw)
		return err
	}
	a, err := parseRemote(raw)
	if err != nil {
		return err
	}
	if openers[a.scheme] == nil {
		return notBuilt(a.scheme)
	}
	return nil
}

// CheckStore refuses what cannot be the place of an installation's keys: the URI of a key, which may leave the key's own name out.
func CheckStore(raw string) error {
	if raw == "" {
		return nil
	}
	uri, err := Sibling(raw, "x")
	if err != nil {
		return err
	}
	return CheckURI(uri)
}

func parseRemote(raw string) (address, error) {
	scheme, _, _ := strings.Cut(raw, ":")
	if _, known := schemes[scheme]; !known {
		return address{}, fmt.Errorf("key %q: want file:, %s", shown(raw), strings.Join(slices.Sorted(maps.Keys(schemes)), ":, ")+":")
	}
	u, err := uri.ParseWithScheme(scheme, raw)
	if err != nil {
		return address{}, fmt.Errorf("key %q: it cannot be read as a URI", shown(raw))
	}
	values := uri.Values(u)
	if values.Has("pin-value") || values.Has("pin-prompt") {
		return address{}, errors.New("key URI: a PIN never stands in a URI, which is stored and shown: name its file with ?pin-source=/path")
	}
	for name, v := range values {
		if allowed := attributes[scheme]; allowed != nil && (!slices.Contains(allowed, name) || len(v) != 1 || v[0] == "") {
			return address{}, fmt.Errorf("key %q: attribute %q is not one of %s, or not once with a value", shown(raw), name, strings.Join(allowed, ", "))
		}
	}
	switch scheme {
	case "pkcs11":
		return parsePKCS11(raw, values)
	case "tpmkms":
		return parseTPM(raw, values)
	}
	return address{scheme: scheme, backend: raw, library: raw, shown: shown(raw), turns: maxTurns, pause: cloudPause}, nil
}

func parsePKCS11(raw string, values url.Values) (address, error) {
	a := address{scheme: "pkcs11", turns: maxTurns, pinSource: values.Get("pin-source"), library: "pkcs11:" + values.Get("module-path")}
	if !values.Has("object") && !values.Has("id") {
		return a, fmt.Errorf("key %q: want object=NAME or id=ID", shown(raw))
	}
	token := 0
	for _, name := range []string{"token", "serial", "slot-id"} {
		if values.Has(name) {
			token++
			a.shown = name + " " + values.Get(name)
		}
	}
	if token != 1 {
		return a, fmt.Errorf("key %q: want one of token=, serial= and slot-id=", shown(raw))
	}
	if a.pinSource != "" {
		if _, err := pinFile(a.pinSource); err != nil {
			return a, err
		}
	}
	if !values.Has("max-sessions") {
		values.Set("max-sessions", strconv.Itoa(maxTurns+spare))
	}
	sessions, err := strconv.Atoi(values.Get("max-sessions"))
	if err != nil || sessions < 2 {
		return a, fmt.Errorf("key %q: max-sessions is a number from 2", shown(raw))
	}
	a.turns = int64(max(1, min(maxTurns, sessions-spare)))
	values.Del("object")
	values.Del("id")
	values.Del("pin-source")
	a.backend = "pkcs11:" + strings.ReplaceAll(values.Encode(), "&", ";")
	return a, nil
}

func parseTPM(raw string, values url.Values) (address, error) {
	a := address{scheme: "tpmkms", turns: 1, shown: "TPM " + values.Get("device")}
	if !values.Has("name") {
		return a, fmt.Errorf("key %q: want name=NAME", shown(raw))
	}
	if d := values.Get("storage-directory"); d != "" && !filepath.IsAbs(d) {
		return a, fmt.Errorf("key %q: storage-directory is an absolute path", shown(raw))
	}
	values.Del("name")
	a.backend = "tpmkms:" + strings.ReplaceAll(values.Encode(), "&", ";")
	a.library = a.backend
	return a, nil
}

// shown is a URI without its query, where people put PINs by mistake, and without those in front of it.
func shown(raw string) string {
	raw, _, _ = strings.Cut(raw, "?")
	raw, _, _ = strings.Cut(raw, "pin-value")
	return raw
}

// keyName is what the backend is asked for.
func keyName(raw string) string {
	raw, _, _ = strings.Cut(raw, "?")
	return raw
}

// withID gives a PKCS#11 key that is about to be made an id, so that it is found again beside another of the same name.
func withID(raw string) string {
	if !strings.HasPrefix(raw, "pkcs11:") {
		return raw
	}
	u, err := uri.Parse(raw)
	if err != nil || u.Has("id") {
		return raw
	}
	id := make([]byte, 8)
	rand.Read(id)
	id[0] = 0x01 // what would pass for hex digits would be taken for them
	encoded := ""
	for _, b := range id {
		encoded += fmt.Sprintf("%%%02X", b)
	}
	return with(raw, "id", encoded, "")
}

// Sibling returns the URI of another key in the same place as the one at uri: another file, another object of the same token. Cloud services
// name their keys themselves; beside one of theirs the other key is a file.
func Sibling(uri, name string) (string, error) {
	scheme, _, ok := strings.Cut(uri, ":")
	if !ok {
		return "", fmt.Errorf("key %q: want SCHEME:NAME", uri)
	}
	switch scheme {
	case "pkcs11":
		return with(uri, "object", url.PathEscape(name), "id"), nil
	case "tpmkms":
		return with(uri, "name", url.PathEscape(name), ""), nil
	}
	return "file:keys/" + name + ".pem", nil
}

// with returns uri with an attribute set to an encoded value and another left out.
func with(uri, attribute, value, leaveOut string) string {
	scheme, rest, _ := strings.Cut(uri, ":")
	rest, query, hasQuery := strings.Cut(rest, "?")
	set := attribute + "=" + value
	var kept []string
	for _, a := range strings.Split(rest, ";") {
		switch name, _, _ := strings.Cut(a, "="); name {
		case attribute:
			kept, set = append(kept, set), ""
		case leaveOut, "":
		default:
			kept = append(kept, a)
		}
	}
	if set != "" {
		kept = append(kept, set)
	}
	uri = scheme + ":" + strings.Join(kept, ";")
	if hasQuery {
		uri += "?" + query
	}
	return uri
}
