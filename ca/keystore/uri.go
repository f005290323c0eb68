// Key URIs: RFC 7512 for tokens, and its form for the others.

package keystore

import (
	"fmt"
	"net/url"
	"strings"
)

// Sibling returns the URI of another key in the same place as the one at uri: another file, another object of the same token. Cloud services
// name their keys themselves; beside one of theirs the other key is a file.
func Sibling(uri, name string) (string, error) {
	scheme, _, ok := strings.Cut(uri, ":")
	if !ok {
		return "", fmt.Errorf("key %q: want SCHEME:...", uri)
	}
	switch scheme {
	case "pkcs11":
		return with(uri, "object", name, "id"), nil
	case "tpmkms":
		return with(uri, "name", name, ""), nil
	}
	return "file:keys/" + name + ".pem", nil
}

// with returns uri with an attribute set to value and another left out.
func with(uri, attribute, value, leaveOut string) string {
	scheme, rest, _ := strings.Cut(uri, ":")
	rest, query, hasQuery := strings.Cut(rest, "?")
	set := attribute + "=" + url.PathEscape(value)
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
