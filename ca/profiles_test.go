// Profiles over their versions, profiles of CAs, keys that are used twice, one certificate at a time, and what explain says about all that.

package ca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

// addProfile adds a device profile with further lines.
func addProfile(t *testing.T, i *installation.Installation, name, lines string) {
	t.Helper()
	source := "name: " + name + "\nuse: broker\nkeys: [ec:P-256]\nextended_key_usage: [clientAuth]\n" + lines
	if !strings.Contains(lines, "subject:") {
		source += "\nsubject: {common_name: device}"
	}
	if !strings.Contains(lines, "validity:") && !strings.Contains(lines, "not_after:") {
		source += "\nvalidity: 30d"
	}
	if _, err := i.CA.AddProfile(context.Background(), "test", []byte(source+"\n")); err != nil {
		t.Fatal(err)
	}
}

// A certificate's record names the very version of the profile that it was made by, and that version stays readable.
func TestCertificatesKeepTheirVersionOfTheProfile(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	hashes := map[string]string{}
	for n, validity := range []string{"30d", "40d", "30d"} { // the third is the first once more
		addProfile(t, i, "versioned", "validity: "+validity)
		c, err := i.CA.Issue(ctx, request("devices", "versioned", fmt.Sprintf("dev-%d", n), installation.Key(t).Public()))
		if err != nil {
			t.Fatal(err)
		}
		v, err := i.CA.ProfileVersion(ctx, "versioned", c.ProfileHash)
		if err != nil || !strings.Contains(v.YAML(), "validity: "+validity) || v.Hash() != c.ProfileHash {
			t.Errorf("version of hash %s: %v, %s", c.ProfileHash, err, v.YAML())
		}
		if old := hashes[validity]; old != "" && old != c.ProfileHash {
			t.Errorf("one file, two hashes: %s and %s", old, c.ProfileHash)
		}
		hashes[validity] = c.ProfileHash
		if want := n + 1; v.Version != int64(want) || !v.AddedAt.Equal(installation.Start) {
			t.Errorf("version %d added at %v, want %d", v.Version, v.AddedAt, want)
		}
	}
	list, err := i.CA.ProfileVersions(ctx, "versioned")
	if err != nil || len(list) != 3 || list[0].Version != 3 || list[2].Version != 1 || len(hashes) != 2 {
		t.Errorf("%v: %d versions, hashes %v", err, len(list), hashes)
	}
	_, err = i.CA.ProfileVersion(ctx, "versioned", "ffff")
	wantError(t, err, ca.NotFound, "unknown_profile")
	_, err = i.CA.ProfileVersion(ctx, "versioned", "%")
	wantError(t, err, ca.Invalid, "profile_hash")
}

func TestKeysAreNotReused(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		addProfile(t, i, "shared", "key_reuse: allow")
		addProfile(t, i, "forgiving", "revoked_keys: compromised")
		issueBy := func(profile, device string, key crypto.Signer) (ca.Certificate, error) {
			return i.CA.Issue(ctx, request("devices", profile, device, key.Public()))
		}
		certify := func(device string, key crypto.Signer) ca.Certificate {
			c, err := issueBy("iot-device", device, key)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		revoke := func(c ca.Certificate, reason string) {
			if _, err := i.CA.Revoke(ctx, "test", c.Serial, reason); err != nil {
				t.Fatal(err)
			}
		}
		key := installation.Key(t)
		certify("dev-1", key)
		certify("dev-1", key) // its own key once more
		_, err := issueBy("iot-device", "dev-2", key)
		wantError(t, err, ca.ProfileViolation, "key_reused")
		if strings.Contains(err.(*ca.Error).Detail, "dev-1") {
			t.Errorf("the device is told whose key it is: %v", err.(*ca.Error).Detail)
		}
		if _, err := issueBy("shared", "dev-2", key); err != nil {
			t.Errorf("a profile that allows it: %v", err)
		}

		for _, tc := range []struct {
			reason                   string
			own, forgiving, stranger string // rule; "": passes
		}{
			{"superseded", "", "", "key_reused"},
			{"cessationOfOperation", "key_revoked", "", "key_reused"},
			{"unspecified", "key_revoked", "", "key_reused"},
			{"certificateHold", "key_revoked", "", "key_reused"},
			{"keyCompromise", "key_revoked", "key_revoked", "key_revoked"},
			{"cACompromise", "key_revoked", "key_revoked", "key_revoked"},
		} {
			for _, who := range []struct{ profile, device, rule string }{
				{"iot-device", "own-" + tc.reason, tc.own}, {"forgiving", "own-" + tc.reason, tc.forgiving}, {"iot-device", "stranger", tc.stranger},
			} {
				key := installation.Key(t)
				revoke(certify("own-"+tc.reason, key), tc.reason)
				_, err := issueBy(who.profile, who.device, key)
				if who.rule == "" {
					if err != nil {
						t.Errorf("%s, %s, %s: %v", tc.reason, who.profile, who.device, err)
					}
					continue
				}
				wantError(t, err, ca.ProfileViolation, who.rule)
			}
		}

		// Of many devices with one key at the same time, one gets a certificate.
		same, results := installation.Key(t), make([]error, 8)
		var group sync.WaitGroup
		for n := range results {
			group.Go(func() { _, results[n] = issueBy("iot-device", fmt.Sprintf("twin-%d", n), same) })
		}
		group.Wait()
		issued := 0
		for _, err := range results {
			if err == nil {
				issued++
				continue
			}
			wantError(t, err, ca.ProfileViolation, "key_reused")
		}
		if issued != 1 {
			t.Errorf("%d certificates for one key", issued)
		}
		// The key of a CA is nobody's key.
		info, err := i.CA.Get(ctx, "devices")
		if err != nil {
			t.Fatal(err)
		}
		_, err = i.CA.Issue(ctx, request("devices", "iot-device", "dev-ca", info.Certificate.PublicKey))
		wantError(t, err, ca.ProfileViolation, "key_reused")
	})
}

func TestSingleActive(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		addProfile(t, i, "single", "single_active: true")
		certify := func(device, profile string) ca.Certificate {
			c, err := i.CA.Issue(ctx, request("devices", profile, device, installation.Key(t).Public()))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		other, foreign, plain := certify("dev-1", "iot-device"), certify("dev-2", "single"), certify("dev-1", "single")
		for range 3 {
			i.Clock.Advance(time.Minute)
			next := certify("dev-1", "single")
			old, err := i.CA.Certificate(ctx, plain.Serial)
			if err != nil || old.State != ca.Revoked || old.Reason != "superseded" || next.State != ca.Issued {
				t.Errorf("%v: the older one is %s (%s), the newer %s", err, old.State, old.Reason, next.State)
			}
			plain = next
		}
		for _, c := range []ca.Certificate{other, foreign, plain} {
			if now, err := i.CA.Certificate(ctx, c.Serial); err != nil || now.State != ca.Issued {
				t.Errorf("certificate of %s by %s is %s, %v", c.Device, c.Profile, now.State, err)
			}
		}
		crl, err := i.CA.Get(ctx, "devices")
		if err != nil || crl.CRLEntries != 3 {
			t.Errorf("%v: %d entries in the CRL", err, crl.CRLEntries)
		}
		var group sync.WaitGroup
		for range 6 {
			key := installation.Key(t).Public()
			group.Go(func() {
				if _, err := i.CA.Issue(ctx, request("devices", "single", "dev-3", key)); err != nil && !strings.Contains(err.Error(), "certificate_state") {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if n := count(t, i.DB, "SELECT COUNT(*) FROM certificates WHERE device = 'dev-3' AND state = 'issued'"); n != 1 {
			t.Errorf("%d active certificates at once", n)
		}
	})
}

func TestRenewalWindow(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	addProfile(t, i, "window", "renew_within: 10d")
	r := request("devices", "window", "dev-1", installation.Key(t).Public())
	first, err := i.CA.Issue(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	r.Renews = first.Serial
	i.Clock.Advance(20*24*time.Hour - 2*time.Second)
	_, err = i.CA.Issue(ctx, r)
	wantError(t, err, ca.ProfileViolation, "renewal_window")
	i.Clock.Advance(2 * time.Second)
	if _, err := i.CA.Issue(ctx, r); err != nil {
		t.Errorf("in the window: %v", err)
	}
}

func TestSignatureAndIssuersOfAProfile(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	addProfile(t, i, "rsa-signed", "signature: [rsa-sha256]")
	addProfile(t, i, "elsewhere", "issuers: [another]")
	for profile, rule := range map[string]string{"rsa-signed": "signature", "elsewhere": "issuer"} {
		_, err := i.CA.Issue(ctx, request("devices", profile, "dev-1", installation.Key(t).Public()))
		wantError(t, err, ca.ProfileViolation, rule)
	}
}

func TestCAsByProfile(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	for _, source := range []string{
		"name: policy-ca\nuse: ca\nkeys: [ec:P-384]\nvalidity: 3650d\npath_length: 1\naddresses: [crl, issuer]\n",
		"name: tenant-ca\nuse: ca\nkeys: [ec:P-256]\nvalidity: 1825d\ncertificate_policies: [1.3.6.1.4.1.99999.1]\nextended_key_usage: [clientAuth]\n" +
			"name_constraints:\n  permitted: {dns: [example.com], ip: [10.0.0.0/8]}\n  excluded: {dns: [secret.example.com]}\n",
	} {
		if _, err := i.CA.AddProfile(ctx, "test", []byte(source)); err != nil {
			t.Fatal(err)
		}
	}
	policy, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "policy", Parent: "root", Key: "ec:P-384", Profile: "policy-ca", PublicURL: "http://pki.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if c := policy.Certificate; c.MaxPathLen != 1 || c.NotAfter.Sub(c.NotBefore) != 3650*24*time.Hour-time.Second {
		t.Errorf("path length %d, %v to %v", c.MaxPathLen, c.NotBefore, c.NotAfter)
	}
	tenant, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "tenant", Parent: "policy", Profile: "tenant-ca"})
	if err != nil {
		t.Fatal(err)
	}
	c := tenant.Certificate
	if !c.MaxPathLenZero || strings.Join(c.PermittedDNSDomains, " ") != "example.com" || len(c.PermittedIPRanges) != 1 || strings.Join(c.ExcludedDNSDomains, " ") != "secret.example.com" ||
		!c.PermittedDNSDomainsCritical || len(c.Policies) != 1 || len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("tenant CA %+v", c)
	}
	if record, err := i.CA.Certificate(ctx, ca.SerialHex(c.SerialNumber)); err != nil || record.Profile != "tenant-ca" || len(record.ProfileHash) != 64 || !record.IsCA() {
		t.Errorf("recorded as %+v, %v", record, err)
	}
	leaf := parse(t, issue(t, i, "tenant", "dev-1").DER)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: testpki.Pool(&testpki.Authority{Certificate: tenant.Chain[len(tenant.Chain)-1]}), Intermediates: testpki.Pool(&testpki.Authority{Certificate: c}, &testpki.Authority{Certificate: policy.Certificate}),
		CurrentTime: installation.Start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("a leaf of the tenant's: %v", err)
	}
	for _, tc := range []struct {
		req  ca.CreateRequest
		kind ca.Kind
		rule string
	}{
		{ca.CreateRequest{Name: "x", Parent: "root", Profile: "iot-device"}, ca.Invalid, "profile_use"},
		{ca.CreateRequest{Name: "x", Parent: "root", Profile: "none"}, ca.NotFound, "unknown_profile"},
		{ca.CreateRequest{Name: "x", Parent: "root", Profile: "tenant-ca", Key: "ec:P-384"}, ca.ProfileViolation, "key_type"},
		{ca.CreateRequest{Name: "x", Parent: "root", Profile: "tenant-ca", Years: 3}, ca.Invalid, "ca_years"},
		{ca.CreateRequest{Name: "x", External: true, Profile: "tenant-ca"}, ca.Invalid, "profile_use"},
		{ca.CreateRequest{Name: "x", Parent: "policy", Profile: "policy-ca", Key: "ec:P-384"}, ca.ProfileViolation, "path_length"},
		{ca.CreateRequest{Name: "x", Parent: "tenant", Profile: "tenant-ca"}, ca.Conflict, "path_length"},
	} {
		_, err := i.CA.Create(ctx, "test", tc.req)
		wantError(t, err, tc.kind, tc.rule)
	}
	csr := testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-256"), "Elsewhere CA", nil))
	signed, err := i.CA.SignBy(ctx, "test", "root", csr, 0, "tenant-ca")
	if err != nil || len(signed) == 0 {
		t.Errorf("sign by a profile: %v", err)
	}
	_, err = i.CA.Issue(ctx, request("devices", "tenant-ca", "dev-2", installation.Key(t).Public()))
	wantError(t, err, ca.ProfileViolation, "issuer")
}
