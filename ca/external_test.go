// A CA that another PKI signs: what is refused, with which words, and that a refusal changes nothing.

package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/e2e/harness"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
)

// publicOnly is a key of which a foreign CA knows the public half.
type publicOnly struct{ key crypto.PublicKey }

func (p publicOnly) Public() crypto.PublicKey { return p.key }
func (p publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("not ours")
}

// lasting makes a certificate valid from a year before the installation's start for some years.
func lasting(years int) testpki.Option {
	return testpki.Valid(installation.Start.AddDate(-1, 0, 0), installation.Start.AddDate(years, 0, 0))
}

func waitingCA(t *testing.T, i *installation.Installation, name string) publicOnly {
	t.Helper()
	ctx := context.Background()
	info, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: name, External: true, Subject: "CN=" + name + ",O=Example,C=DE", PublicURL: "http://pki.example.com:8080/", Use: "broker"})
	if err != nil || info.State != ca.Waiting || info.Certificate != nil || info.CRLNumber != 0 {
		t.Fatalf("%v, %+v", err, info)
	}
	csr, err := i.CA.CSR(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(csr)
	if block == nil || len(rest) > 0 {
		t.Fatalf("CSR %s", csr)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || request.CheckSignature() != nil || request.Subject.String() != "CN="+name+",O=Example,C=DE" {
		t.Fatalf("%v, %v", err, request)
	}
	return publicOnly{request.PublicKey}
}

func TestImport(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	key := testpki.WithKey(waitingCA(t, i, "field"))
	long, pathlen0 := lasting(10), testpki.PathLen(0)

	root := testpki.Root(t, "Field Root", lasting(20), testpki.PathLen(1))
	good := root.Intermediate(t, "field", key, long, pathlen0)
	between := root.Intermediate(t, "Between", long)
	twin := testpki.Root(t, "Field Root", lasting(20)) // another key under the same name
	oldRoot := testpki.Root(t, "Old Root", testpki.Valid(installation.Start.AddDate(-5, 0, 0), installation.Start.Add(-time.Hour)))
	newRoot := testpki.Root(t, "New Root", testpki.Valid(installation.Start.AddDate(0, 0, 1), installation.Start.AddDate(5, 0, 0)))
	noCA := testpki.Root(t, "No CA", lasting(20), testpki.NotCA())
	noSign := testpki.Root(t, "CRLs only", lasting(20), testpki.KeyUsage(x509.KeyUsageCRLSign))
	missing := root.Intermediate(t, "Missing", long)
	usage := func(u x509.KeyUsage) *testpki.Authority {
		return root.Intermediate(t, "field", key, long, pathlen0, testpki.KeyUsage(u))
	}
	for _, tc := range []struct {
		name, rule  string
		certificate []byte
		chain       []byte
		words       string
	}{
		{"another key", "ca_key_mismatch", root.Intermediate(t, "field", long, pathlen0).PEM(), root.PEM(), "another key"},
		{"CA:FALSE", "ca_not_a_ca", root.Intermediate(t, "field", key, long, testpki.NotCA()).PEM(), root.PEM(), "CA:TRUE is missing"},
		{"no keyCertSign", "ca_key_usage", usage(x509.KeyUsageCRLSign).PEM(), root.PEM(), "lacks key usage keyCertSign"},
		{"no cRLSign", "ca_key_usage", usage(x509.KeyUsageCertSign).PEM(), root.PEM(), "lacks key usage cRLSign"},
		{"neither", "ca_key_usage", usage(x509.KeyUsageDigitalSignature).PEM(), root.PEM(), "keyCertSign and cRLSign"},
		{"no key usage", "ca_key_usage", usage(0).PEM(), root.PEM(), "lacks key usage"},
		{"expired", "ca_expired", root.Intermediate(t, "field", key, testpki.Valid(installation.Start.AddDate(-5, 0, 0), installation.Start.Add(-time.Second))).PEM(), root.PEM(), "expired on"},
		{"not yet valid", "ca_expired", root.Intermediate(t, "field", key, testpki.Valid(installation.Start.Add(time.Hour), installation.Start.AddDate(5, 0, 0))).PEM(), root.PEM(), "not valid before"},
		{"an expired parent", "ca_expired", oldRoot.Intermediate(t, "field", key, long, pathlen0).PEM(), oldRoot.PEM(), "CN=Old Root expired"},
		{"a parent not yet valid", "ca_expired", newRoot.Intermediate(t, "field", key, long, pathlen0).PEM(), newRoot.PEM(), "CN=New Root"},
		{"an intermediate under a pathlen:1 root", "path_length", between.Intermediate(t, "field", key, long, pathlen0).PEM(), between.ChainPEM(), "path length exceeded at CN=Field Root"},
		{"under a pathlen:0 CA", "path_length", root.Intermediate(t, "Leaves only", long, pathlen0).Intermediate(t, "field", key, long, pathlen0).PEM(),
			testpki.Root(t, "unused", long).PEM(), ""},
		{"no chain", "ca_chain", good.PEM(), nil, "its issuer CN=Field Root is missing"},
		{"a chain without its root", "ca_chain", missing.Intermediate(t, "field", key, long, pathlen0).PEM(), missing.PEM(), "up to a self-signed root"},
		{"a chain of others", "ca_chain", good.PEM(), oldRoot.PEM(), "is missing"},
		{"a root of the same name", "ca_signature", good.PEM(), twin.PEM(), "is not signed by the given CN=Field Root"},
		{"a parent that is no CA", "ca_not_a_ca", noCA.Intermediate(t, "field", key, long, pathlen0).PEM(), noCA.PEM(), "CN=No CA is not a CA"},
		{"a parent that may not sign", "ca_key_usage", noSign.Intermediate(t, "field", key, long, pathlen0).PEM(), noSign.PEM(), "CN=CRLs only lacks key usage keyCertSign"},
		{"nothing", "ca_certificate", nil, nil, "no certificate"},
		{"text", "ca_certificate", []byte("hello"), root.PEM(), "no certificate"},
		{"half a certificate", "ca_certificate", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate.Raw[:100]}), root.PEM(), "cannot be read"},
		{"a chain that is no chain", "ca_certificate", good.PEM(), []byte("hello"), "no certificate"},
		{"the root first", "ca_key_mismatch", append(root.PEM(), good.PEM()...), nil, "another key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.words == "" { // its own chain is the one that matters
				leaves := root.Intermediate(t, "Leaves only", long, pathlen0)
				tc.certificate, tc.chain, tc.words = leaves.Intermediate(t, "field", key, long, pathlen0).PEM(), leaves.ChainPEM(), "path length exceeded at CN=Leaves only"
			}
			before, err := audit.Verify(ctx, i.DB, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = i.CA.Import(ctx, "test", "field", tc.certificate, tc.chain)
			var typed *ca.Error
			if !errors.As(err, &typed) || typed.Rule != tc.rule || !strings.Contains(typed.Detail, tc.words) {
				t.Errorf("got %v, want %s: ...%s...", err, tc.rule, tc.words)
			}
			info, err := i.CA.Get(ctx, "field")
			if err != nil || info.State != ca.Waiting || info.Certificate != nil || info.CRLNumber != 0 || len(info.Chain) != 0 {
				t.Errorf("afterwards: %v, %+v", err, info)
			}
			if after, err := audit.Verify(ctx, i.DB, &before); err != nil || after != before {
				t.Errorf("the audit log went on: %v, %v", after, err)
			}
			_, err = i.CA.Issue(ctx, request("field", "iot-device", "dev-1", installation.Key(t).Public()))
			wantError(t, err, ca.Unavailable, "ca_waiting")
			_, err = i.CA.IssueCRL(ctx, "test", "field")
			wantError(t, err, ca.Unavailable, "ca_waiting")
		})
	}
	info, err := i.CA.Import(ctx, "test", "field", good.PEM(), root.PEM())
	if err != nil || info.State != ca.Active || len(info.Chain) != 1 || info.CRLNumber != 1 || info.CRLEntries != 0 {
		t.Fatalf("the good one: %v, %+v", err, info)
	}
	judge(t, i, "field", parse(t, issue(t, i, "field", "dev-1").DER), "sslclient")
	_, err = i.CA.Import(ctx, "test", "field", good.PEM(), root.PEM())
	wantError(t, err, ca.Conflict, "ca_state")
	_, err = i.CA.Import(ctx, "test", "nowhere", good.PEM(), root.PEM())
	wantError(t, err, ca.NotFound, "unknown_ca")
}

// However the certificates are handed over, if only they are all there.
func TestImportTakesChainsInAnyOrder(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	root := testpki.Root(t, "Deep Root", lasting(20))
	upper := root.Intermediate(t, "Upper", lasting(15))
	lower := upper.Intermediate(t, "Lower", lasting(12), testpki.PathLen(1))
	stranger := testpki.Root(t, "Stranger", lasting(5))
	for name, parts := range map[string][2][]*testpki.Authority{
		"in order":         {nil, {lower, upper, root}},
		"the other way":    {nil, {root, upper, lower}},
		"in one file":      {{lower, upper, root}, nil},
		"in both":          {{upper}, {root, lower}},
		"with a stranger":  {nil, {stranger, lower, root, upper}},
		"some of it twice": {{lower, root}, {root, lower, upper}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := strings.ReplaceAll(name, " ", "-")
			own := lower.Intermediate(t, ca, testpki.WithKey(waitingCA(t, i, ca)), lasting(10), testpki.PathLen(0))
			pems := func(list []*testpki.Authority) (out []byte) {
				for _, a := range list {
					out = append(out, a.PEM()...)
				}
				return out
			}
			info, err := i.CA.Import(context.Background(), "test", ca, append(own.PEM(), pems(parts[0])...), pems(parts[1]))
			if err != nil {
				t.Fatal(err)
			}
			want := []*x509.Certificate{lower.Certificate, upper.Certificate, root.Certificate}
			if !slices.EqualFunc(info.Chain, want, (*x509.Certificate).Equal) {
				t.Errorf("chain of %d", len(info.Chain))
			}
			judge(t, i, ca, parse(t, issue(t, i, ca, "dev-1").DER), "sslclient")
		})
	}
}

// An offline root here: it signs the request of another installation, which imports the answer.
func TestSignForAnotherInstallation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	offline := installation.New(t, storage.Open(t, database.SQLite))
	online := installation.New(t, storage.Open(t, database.SQLite))
	waitingCA(t, online, "field")
	csr, err := online.CA.CSR(ctx, "field")
	if err != nil {
		t.Fatal(err)
	}
	signed, err := offline.CA.Sign(ctx, "test", "root", csr, 5)
	if err != nil {
		t.Fatal(err)
	}
	own, err := offline.CA.Get(ctx, "root")
	if err != nil {
		t.Fatal(err)
	}
	c := testpki.ParsePEM(t, signed)[0]
	if want := c.NotBefore.AddDate(5, 0, 0).Add(-time.Second); !c.NotAfter.Equal(want) || !c.MaxPathLenZero || c.Subject.String() != "CN=field,O=Example,C=DE" {
		t.Errorf("signed %v until %v, path length %d", c.Subject, c.NotAfter, c.MaxPathLen)
	}
	if record, err := offline.CA.Certificate(ctx, ca.SerialHex(c.SerialNumber)); err != nil || !bytes.Equal(record.DER, c.Raw) {
		t.Errorf("not on record: %v", err)
	}
	if list, err := offline.CA.List(ctx); err != nil || len(list) != 3 {
		t.Errorf("the signer has %d CAs, %v", len(list), err)
	}
	if _, err := online.CA.Import(ctx, "test", "field", signed, testpki.CertPEM(own.Certificate)); err != nil {
		t.Fatal(err)
	}
	judge(t, online, "field", parse(t, issue(t, online, "field", "dev-1").DER), "sslclient")

	edited := func(change func([]byte)) []byte {
		block, _ := pem.Decode(csr)
		der := bytes.Clone(block.Bytes)
		change(der)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	for name, tc := range map[string]struct {
		ca   string
		csr  []byte
		rule string
	}{
		"by a CA for leaves":  {"devices", csr, "path_length"},
		"by nobody":           {"nowhere", csr, "unknown_ca"},
		"not a request":       {"root", signed, "csr"},
		"nothing":             {"root", nil, "csr"},
		"signed by nobody":    {"root", edited(func(b []byte) { b[len(b)-1] ^= 1 }), "csr_signature"},
		"cut off":             {"root", edited(func(b []byte) { b[1] = 0x84 }), "csr"},
		"a key of 2048 bits":  {"root", testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "rsa:2048"), "x", nil)), "key_type"},
		"a key on P-521":      {"root", testpki.CSRPEM(testpki.CSR(t, testpki.Key(t, "ec:P-521"), "x", nil)), "key_type"},
		"without a subject":   {"root", testpki.CSRPEM(testpki.CSR(t, installation.Key(t), "", nil)), "csr"},
		"a life of 100 years": {"root", csr, "ca_years"},
	} {
		years := 5
		if tc.rule == "ca_years" {
			years = 100
		}
		_, err := offline.CA.Sign(ctx, "test", tc.ca, tc.csr, years)
		var typed *ca.Error
		if !errors.As(err, &typed) || typed.Rule != tc.rule {
			t.Errorf("%s: %v, want %s", name, err, tc.rule)
		}
	}
	// What the request asks for beside its name and key has no effect.
	greedy := testpki.CSRPEM(testpki.CSR(t, installation.Key(t), "greedy", func(r *x509.CertificateRequest) {
		r.DNSNames = []string{"www.example.com"}
		r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x05}}}
	}))
	signed, err = offline.CA.Sign(ctx, "test", "root", greedy, 5)
	if err != nil {
		t.Fatal(err)
	}
	if c := testpki.ParsePEM(t, signed)[0]; len(c.DNSNames) > 0 || c.MaxPathLen != 0 || !c.MaxPathLenZero {
		t.Errorf("names %v, path length %d", c.DNSNames, c.MaxPathLen)
	}
}

func TestOffline(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	i := installation.New(t, storage.Open(t, database.SQLite))
	out := filepath.Join(t.TempDir(), "root.pem")
	before, err := i.CA.CurrentCRL(ctx, "root")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.CA.Offline(ctx, "test", "root", out); err != nil {
		t.Fatal(err)
	}
	after, err := i.CA.CurrentCRL(ctx, "root")
	if err != nil || after.Number <= before.Number {
		t.Errorf("no last CRL: %d after %d, %v", after.Number, before.Number, err)
	}
	for _, view := range []*installation.Installation{i, installation.Open(t, i.DB, i.Dir, i.Clock)} {
		info, err := view.CA.Get(ctx, "root")
		if err != nil || info.KeyOnline || info.State != ca.Active {
			t.Errorf("%v, %+v", err, info)
		}
		_, err = view.CA.Sign(ctx, "test", "root", nil, 5)
		wantError(t, err, ca.Invalid, "csr")
		_, err = view.CA.Create(ctx, "test", ca.CreateRequest{Name: "another", Parent: "root"})
		wantError(t, err, ca.Unavailable, "ca_key_offline")
		_, err = view.CA.IssueCRL(ctx, "test", "root")
		wantError(t, err, ca.Unavailable, "ca_key_offline")
		err = view.CA.Offline(ctx, "test", "root", out)
		wantError(t, err, ca.Unavailable, "ca_key_offline")
	}
	issue(t, i, "devices", "dev-1") // the others go on
	content := harness.MustRun(t, "/bin/cat", out).Stdout
	if !strings.HasPrefix(content, "-----BEGIN ENCRYPTED PRIVATE KEY-----") {
		t.Errorf("the exported file begins with %.40q", content)
	}
	if _, err := i.CA.Get(ctx, "another"); err == nil {
		t.Error("a CA was left by the refused creation")
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	i := installation.New(t, storage.Open(t, database.SQLite))
	waitingCA(t, i, "waiting")
	for name, tc := range map[string]struct {
		req  ca.CreateRequest
		rule string
	}{
		"no name":              {ca.CreateRequest{}, "ca_name"},
		"a path for a name":    {ca.CreateRequest{Name: "../x"}, "ca_name"},
		"a name that is taken": {ca.CreateRequest{Name: "devices", Parent: "root"}, "ca_exists"},
		"a weak key":           {ca.CreateRequest{Name: "x", Key: "rsa:2048"}, "ca_key"},
		"no subject":           {ca.CreateRequest{Name: "x", Subject: "O=only"}, "ca_subject"},
		"two parents":          {ca.CreateRequest{Name: "x", Parent: "root", External: true}, "ca_parent"},
		"an unknown parent":    {ca.CreateRequest{Name: "x", Parent: "nobody"}, "unknown_ca"},
		"a parent that waits":  {ca.CreateRequest{Name: "x", Parent: "waiting"}, "ca_waiting"},
		"an unknown use":       {ca.CreateRequest{Name: "x", Parent: "root", Use: "everything"}, "ca_use"},
		"no years":             {ca.CreateRequest{Name: "x", Years: -1}, "ca_years"},
		"a short CRL":          {ca.CreateRequest{Name: "x", CRLValidity: time.Minute}, "crl_validity"},
		"a CRL reissued late":  {ca.CreateRequest{Name: "x", CRLValidity: 24 * time.Hour, CRLInterval: 13 * time.Hour}, "crl_interval"},
	} {
		_, err := i.CA.Create(ctx, "test", tc.req)
		var typed *ca.Error
		if !errors.As(err, &typed) || typed.Rule != tc.rule {
			t.Errorf("%s: %v, want %s", name, err, tc.rule)
		}
	}
	if list, err := i.CA.List(ctx); err != nil || len(list) != 4 {
		t.Errorf("%d CAs, %v", len(list), err)
	}
}

// Many at once want one name: one gets it, and its key is the one that its certificate is for.
func TestCreateAtOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	i := installation.New(t, storage.Open(t, database.SQLite))
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "twin", Parent: "root", Use: "broker"})
			errs <- err
		}()
	}
	made := 0
	for range 8 {
		if err := <-errs; err == nil {
			made++
		} else {
			wantError(t, err, ca.Conflict, "ca_exists")
		}
	}
	if made != 1 {
		t.Errorf("made %d times", made)
	}
	again := installation.Open(t, i.DB, i.Dir, i.Clock)
	judge(t, again, "twin", parse(t, issue(t, again, "twin", "dev-1").DER), "sslclient")
}
