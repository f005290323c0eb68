package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/registration"
)

func TestBasic(t *testing.T) {
	t.Parallel()
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, tt := range []struct {
		name           string
		header         []string
		user, password string
		good           bool
	}{
		{"plain", []string{"Basic " + encode("SN-1:secret")}, "SN-1", "secret", true},
		{"scheme in lower case", []string{"basic " + encode("SN-1:secret")}, "SN-1", "secret", true},
		{"colons in the password", []string{"Basic " + encode("SN-1:a:b:c")}, "SN-1", "a:b:c", true},
		{"UTF-8 in the password", []string{"Basic " + encode("SN-1:pässwörd")}, "SN-1", "pässwörd", true},
		{"empty password", []string{"Basic " + encode("SN-1:")}, "SN-1", "", true},
		{"two spaces", []string{"Basic  " + encode("a:b")}, "a", "b", true},

		{"empty", []string{""}, "", "", false},
		{"no credentials", []string{"Basic"}, "", "", false},
		{"no colon", []string{"Basic " + encode("SN-1")}, "", "", false},
		{"not base64", []string{"Basic !!!!"}, "", "", false},
		{"unpadded", []string{"Basic " + strings.TrimRight(encode("SN-1:se"), "=")}, "", "", false},
		{"Latin-1", []string{"Basic " + encode("SN-1:p\xe4ss")}, "", "", false},
		{"Digest", []string{`Digest username="a"`}, "", "", false},
		{"Bearer", []string{"Bearer abc"}, "", "", false},
		{"twice", []string{"Basic " + encode("a:b"), "Basic " + encode("a:b")}, "", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			user, password, err := basic(tt.header)
			if (err == nil) != tt.good || user != tt.user || password != tt.password {
				t.Errorf("%q %q %v", user, password, err)
			}
		})
	}
}

func TestNotOurs(t *testing.T) {
	t.Parallel()
	refused := func(err error) error {
		return fmt.Errorf("check: %w", &registration.Error{Kind: registration.NotAuthenticated, Err: err})
	}
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"unknown certificate": {refused(fmt.Errorf("certificate: %w", &ca.Error{Kind: ca.NotFound})), true},
		"revoked certificate": {refused(errors.New("certificate 01 is revoked")), false},
		"storage":             {&ca.Error{Kind: ca.Unavailable}, false},
		"storage behind":      {refused(&ca.Error{Kind: ca.Unavailable}), false},
		"not authorized":      {&registration.Error{Kind: registration.NotAuthorized, Err: &ca.Error{Kind: ca.NotFound}}, false},
	} {
		if notOurs(tt.err) != tt.want {
			t.Errorf("%s: %t", name, !tt.want)
		}
	}
}
