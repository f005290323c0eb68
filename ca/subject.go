// Distinguished names as people type them (RFC 4514).

package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var errSubject = errors.New("want a subject such as CN=NAME,O=ORGANISATION,C=DE")

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// parseSubject reads "CN=a,O=b,C=DE" (RFC 4514, with the attributes that a CA's name has).
func parseSubject(s string) (pkix.Name, error) {
	var name pkix.Name
	types := map[string][]int{"CN": {2, 5, 4, 3}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "C": {2, 5, 4, 6}, "ST": {2, 5, 4, 8}, "L": {2, 5, 4, 7}, "SERIALNUMBER": {2, 5, 4, 5}}
	for _, part := range splitEscaped(s) {
		key, value, ok := strings.Cut(part, "=")
		oid, known := types[strings.ToUpper(strings.TrimSpace(key))]
		value = strings.TrimSpace(value)
		if !ok || !known || value == "" || len(value) > 64 {
			return name, fmt.Errorf("%w: %q", errSubject, part)
		}
		name.ExtraNames = append(name.ExtraNames, pkix.AttributeTypeAndValue{Type: oid, Value: value})
		if strings.EqualFold(strings.TrimSpace(key), "CN") {
			name.CommonName = value
		}
	}
	if name.CommonName == "" {
		return name, fmt.Errorf("%w: there is no CN", errSubject)
	}
	slices.Reverse(name.ExtraNames) // RFC 4514 writes the last RDN first
	return name, nil
}

// splitEscaped splits at commas that no backslash precedes.
func splitEscaped(s string) []string {
	var parts []string
	var part strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			part.WriteByte(s[i])
		case s[i] == ',':
			parts = append(parts, part.String())
			part.Reset()
		default:
			part.WriteByte(s[i])
		}
	}
	return append(parts, part.String())
}
