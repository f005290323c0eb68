// What `profile check` says about files, legal and not; and the form of every field.

package profile_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/test/testpki"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	authority := func(key string, years int) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, PublicKey: testpki.Key(t, key).Public(), NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(years, 0, 0)}
	}
	ec, short := authority("ec:P-256", 10), authority("ec:P-256", 0)
	ending := &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, PublicKey: ec.PublicKey, NotBefore: now.AddDate(-10, 0, 0), NotAfter: now.AddDate(0, 0, 100)}
	clean := good + "backdate: 5m\naddresses: [crl, issuer]\n"
	for _, tc := range []struct {
		name, source string
		issuer       *x509.Certificate
		want         string // the first remark; "": none
	}{
		{"nothing", clean, ec, ""},
		{"a device that is no client", strings.Replace(clean, "[clientAuth]", "[1.3.6.1.4.1.99999.7]", 1), ec, "error extended_key_usage"},
		{"any use", strings.Replace(clean, "[clientAuth]", "[none]", 1), ec, "warning extended_key_usage"},
		{"no addresses", strings.Replace(clean, "addresses: [crl, issuer]", "", 1), ec, "warning addresses"},
		{"no backdate", strings.Replace(clean, "backdate: 5m", "", 1), ec, "warning backdate"},
		{"RSA alone", strings.Replace(clean, "ec:P-256", "rsa:2048", 1), nil, "warning keys"},
		{"longer than the CA's whole life", clean, &x509.Certificate{PublicKey: ec.PublicKey, NotBefore: now, NotAfter: now.AddDate(0, 1, 0)}, "error validity"},
		{"longer than the rest of it", clean, ending, "warning validity"},
		{"longer than the rest of it, refused", clean + "beyond_issuer: refuse\n", ending, "error validity"},
		{"the CA ends now", clean, short, "warning validity"},
		{"another signature", clean + "signature: [rsa-sha256]\n", ec, "error signature"},
		{"a fixed end that is over", strings.Replace(clean, "validity: 365d", "not_after: 2020-01-01T00:00:00Z", 1), ec, "error not_after"},
		{"a fixed end beyond the ceiling", strings.Replace(clean, "validity: 365d", "not_after: 2040-01-01T00:00:00Z", 1), nil, "warning not_after"},
		{"a window that comes late", clean + "renew_within: 10d\n", ec, "warning renew_within"},
		{"a window without an effect", clean + "renew_within: 400d\n", ec, "warning renew_within"},
		{"keys of others", clean + "key_reuse: allow\n", ec, "warning key_reuse"},
		{"dropping", clean + "csr: {unlisted: drop}\n", ec, "warning csr.unlisted"},
		{"a weak pattern", strings.Replace(clean, "common_name: device", "common_name: device\n  fields: {O: {pattern: \"^.*$\"}}", 1), ec, "warning subject.fields.O.pattern"},
		{"every name", clean + "san: {requested: {dns: {suffixes: [any]}}}\n", ec, "warning san.requested.dns.suffixes"},
		{"every address", clean + "san: {requested: {ip: {networks: [0.0.0.0/0]}}}\n", ec, "warning san.requested.ip.networks"},
	} {
		p, err := profile.Parse([]byte(tc.source))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		var issuers []*x509.Certificate
		if tc.issuer != nil {
			issuers = append(issuers, tc.issuer)
		}
		got := ""
		for _, r := range p.Check(issuers, now) {
			if r.Text == "" {
				t.Errorf("%s: %s says nothing", tc.name, r.Key)
			}
			kind := "warning "
			if r.Error {
				kind = "error "
			}
			if got == "" {
				got = kind + r.Key
			}
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	for name, p := range shipped(t) {
		for _, r := range p.Check(nil, now) {
			if r.Error {
				t.Errorf("shipped profile %s: %s: %s", name, r.Key, r.Text)
			}
		}
	}
}

func TestBadFieldsAreRefused(t *testing.T) {
	t.Parallel()
	fields := func(rule string) string {
		return strings.Replace(good, "common_name: device", "common_name: device\n  fields: {"+rule+"}", 1)
	}
	caFile := "name: sub\nuse: ca\nkeys: [ec:P-256]\nvalidity: 3650d\n"
	if _, err := profile.Parse([]byte(caFile)); err != nil {
		t.Fatal(err)
	}
	for source, key := range map[string]string{
		fields(`O: {pattern: "[a-z]+"}`):                                                               "subject.fields.O.pattern:",
		fields(`O: {pattern: "^a"}`):                                                                   "subject.fields.O.pattern:",
		fields(`O: {pattern: "a$"}`):                                                                   "subject.fields.O.pattern:",
		fields(`O: {pattern: '^a\$'}`):                                                                 "subject.fields.O.pattern:",
		fields(`O: {pattern: "^(a$"}`):                                                                 "subject.fields.O.pattern:",
		fields(`O: {}`):                                                                                "subject.fields.O:",
		fields(`O: {value: a, pattern: "^b$"}`):                                                        "subject.fields.O:",
		fields(`O: {value: "a\nb"}`):                                                                   "subject.fields.O.value:",
		fields(`C: {value: Germany}`):                                                                  "subject.fields.C.value:",
		fields(`CN: {value: admin}`):                                                                   "subject.fields.CN.value:",
		fields(`DC: {value: a}`):                                                                       "subject.fields.DC:",
		good + "signature: [sha1]\n":                                                                   "signature:",
		good + "beyond_issuer: ignore\n":                                                               "beyond_issuer:",
		good + "renew_within: soon\n":                                                                  "renew_within:",
		good + "not_after: 2035-01-01T00:00:00Z\n":                                                     "not_after:",
		strings.Replace(good, "validity: 365d", "not_after: tomorrow", 1):                              "not_after:",
		good + "key_reuse: always\n":                                                                   "key_reuse:",
		good + "revoked_keys: allow\n":                                                                 "revoked_keys:",
		good + "basic_constraints: ca\n":                                                               "basic_constraints:",
		good + "certificate_policies: [x]\n":                                                           "certificate_policies:",
		good + "certificate_policies: [1.2.3, 1.2.3]\n":                                                "certificate_policies:",
		good + "key_usage: {bits: [keyCertSign]}\n":                                                    "key_usage.bits:",
		good + "key_usage: {bits: [keyEncipherment]}\n":                                                "key_usage.bits:",
		good + "path_length: 0\n":                                                                      "use:",
		good + "name_constraints: {permitted: {dns: [a.b]}}\n":                                         "use:",
		good + "ocsp_no_check: true\n":                                                                 "use:",
		good + "addresses: [delta]\n":                                                                  "addresses:",
		good + "addresses: [crl]\ndistribution_points: true\n":                                         "distribution_points:",
		good + "san: {max: 101}\n":                                                                     "san.max:",
		good + "san: {min_dns: 40}\n":                                                                  "san.min_dns:",
		good + "san: {requested: {dns: {}}}\n":                                                         "san.requested.dns.suffixes:",
		good + "san: {requested: {dns: {suffixes: ['*.a']}}}\n":                                        "san.requested.dns.suffixes:",
		good + "san: {requested: {dns: {suffixes: [a.b], wildcard: true}}}\n":                          "san.requested.dns.wildcard:",
		good + "san: {requested: {ip: {networks: [10.0.0.1/8]}}}\n":                                    "san.requested.ip.networks:",
		good + "san: {requested: {ip: {}}}\n":                                                          "san.requested.ip.networks:",
		good + "san: {requested: {uri: {prefixes: ['https://a.b']}}}\n":                                "san.requested.uri.prefixes:",
		good + "san: {requested: {uri: {prefixes: ['x']}}}\n":                                          "san.requested.uri.prefixes:",
		good + "san: {requested: {email: {domains: ['@a.b']}}}\n":                                      "san.requested.email.domains:",
		good + "csr: {unlisted_san: copy}\n":                                                           "csr.unlisted_san:",
		strings.Replace(good, "[clientAuth]", "[none, clientAuth]", 1):                                 "extended_key_usage:",
		strings.Replace(good, "[clientAuth]", "[2.5.29.37.0]", 1):                                      "extended_key_usage:",
		strings.Replace(good, "[clientAuth]", "[1.3.6.1.5.5.7.3.1]", 1):                                "extended_key_usage:",
		strings.Replace(good, "[clientAuth]", "[clientAuth, cmcRA]", 1):                                "extended_key_usage:",
		strings.Replace(strings.Replace(good, "broker", "management", 1), "[clientAuth]", "[none]", 1): "extended_key_usage:",
		strings.Replace(good, "broker", "ocsp", 1):                                                     "extended_key_usage:",
		strings.Replace(good, "name: good", "name: ca", 1):                                             "name:",
		caFile + "subject: {common_name: device}\n":                                                    "use:",
		caFile + "single_active: true\n":                                                               "use:",
		caFile + "path_length: 9\n":                                                                    "path_length:",
		caFile + "name_constraints: {permitted: {ip: [x]}}\n":                                          "name_constraints.permitted.ip:",
		caFile + "name_constraints: {excluded: {dns: ['*']}}\n":                                        "name_constraints.excluded.dns:",
		strings.Replace(caFile, "ec:P-256", "rsa:2048", 1):                                             "keys:",
		strings.Replace(caFile, "3650d", "15000d", 1):                                                  "validity:",
	} {
		_, err := profile.Parse([]byte(source))
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%v, want %q in it, for:\n%s", err, key, source)
		}
	}
}

// A fixed end: to the second, never beyond ceiling and issuer, and over when it is over.
func TestFixedEnd(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		end    string
		issuer time.Time
		extra  string
		want   string // "": refused
	}{
		{"2028-01-01T00:00:00Z", now.AddDate(30, 0, 0), "", "2028-01-01T00:00:00Z"},
		{"2028-01-01T00:00:00+01:00", now.AddDate(30, 0, 0), "", "2027-12-31T23:00:00Z"},
		{"9999-12-31T23:59:59Z", now.AddDate(30, 0, 0), "", now.Add(5*366*24*time.Hour - time.Second).Format(time.RFC3339)},
		{"2028-01-01T00:00:00Z", now.AddDate(0, 1, 0), "", now.AddDate(0, 1, 0).Format(time.RFC3339)},
		{"2028-01-01T00:00:00Z", now.AddDate(0, 1, 0), "beyond_issuer: refuse\n", ""},
		{now.Format(time.RFC3339), now.AddDate(30, 0, 0), "", ""},
		{"2020-01-01T00:00:00Z", now.AddDate(30, 0, 0), "", ""},
	} {
		p, err := profile.Parse([]byte(strings.Replace(good, "validity: 365d", "not_after: "+tc.end, 1) + tc.extra))
		if err != nil {
			t.Fatal(err)
		}
		c, _, err := p.Build(profile.Input{Device: "dev-1", PublicKey: public(t, "ec:P-256"), Issuer: &x509.Certificate{NotBefore: now.AddDate(-1, 0, 0), NotAfter: tc.issuer}, Now: now})
		if tc.want == "" {
			if err == nil || !strings.HasPrefix(err.Error(), "validity:") {
				t.Errorf("%s: %v", tc.end, err)
			}
			continue
		}
		if err != nil || c.NotAfter.Format(time.RFC3339) != tc.want {
			t.Errorf("%s: %v, until %v, want %s", tc.end, err, c.NotAfter, tc.want)
		}
	}
}
