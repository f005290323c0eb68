package ca_test

import (
	"crypto/x509"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/invariants"
	"github.com/natal-pki/natal/test/storage"
)

func rollOver(t *testing.T, i *installation.Installation, name string) ca.Info {
	t.Helper()
	info, err := i.CA.Rollover(t.Context(), "test", ca.RolloverRequest{CA: name})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func takeOver(t *testing.T, i *installation.Installation, name string) ca.Info {
	t.Helper()
	info, err := i.CA.Activate(t.Context(), "test", name, ca.Activation{MoveLabels: i.Book.MoveLabels})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func wantRule(t *testing.T, err error, rule string) {
	t.Helper()
	var typed *ca.Error
	if !errors.As(err, &typed) || typed.Rule != rule {
		t.Errorf("got %v, want %s", err, rule)
	}
}

// A CA is rolled over, takes over, and the old one is retired when its last certificate has ended.
func TestRollover(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := t.Context()
		old := i.EnrollByCode(t, "dev-1", installation.Key(t))

		next := rollOver(t, i, "devices")
		if next.Name != "devices-2" || next.State != ca.Standby || next.Subject != "CN=devices 2" || next.Parent != "root" || next.Use != "broker" ||
			next.Replaces != "devices" || next.CRLNumber != 1 || next.CRLEntries != 0 || next.PublicURL != "http://pki.example.com:8080" {
			t.Fatalf("%+v", next)
		}
		if info, err := i.CA.Get(ctx, "devices"); err != nil || info.State != ca.Active || info.ReplacedBy != "devices-2" {
			t.Fatalf("%+v, %v", info, err)
		}
		if c := i.EnrollByCode(t, "dev-2", installation.Key(t)); c.Issuer != "devices" {
			t.Errorf("issued by %s while the successor stands by", c.Issuer)
		}
		_, err := i.CA.Issue(ctx, ca.Request{CA: "devices-2", Profile: "iot-device", Device: "dev-x", PublicKey: installation.Key(t).Public(), RequesterKind: "code", Requester: "x", Actor: "test"})
		wantRule(t, err, "ca_not_active")
		canary := ca.Request{CA: "devices-2", Profile: "canary", Device: "natal-canary-1", PublicKey: installation.Key(t).Public(), RequesterKind: "canary", Requester: "b", Actor: "test", Upkeep: true}
		if c, err := i.CA.Issue(ctx, canary); err != nil || c.Issuer != "devices-2" {
			t.Errorf("canary of a CA that stands by: %+v, %v", c, err)
		}
		_, err = i.CA.Rollover(ctx, "test", ca.RolloverRequest{CA: "devices"})
		wantRule(t, err, "ca_rolled_over")
		_, err = i.CA.Retire(ctx, "test", "devices", "")
		wantRule(t, err, "ca_state")

		if info := takeOver(t, i, "devices-2"); info.State != ca.Active {
			t.Errorf("%s after the activation", info.State)
		}
		takeOver(t, i, "devices-2") // again does no harm
		l, err := i.Book.Label(ctx, "default")
		if err != nil || l.CA != "devices-2" || l.Version != 2 {
			t.Errorf("label %+v, %v", l, err)
		}
		if c := i.EnrollByCode(t, "dev-3", installation.Key(t)); c.Issuer != "devices-2" {
			t.Errorf("issued by %s after the activation", c.Issuer)
		}
		renewed, err := i.Renew(t, old, installation.CSR(t, installation.Key(t), "dev-1", nil))
		if err != nil || renewed.Issuer != "devices-2" {
			t.Errorf("renewal: issued by %s, %v", renewed.Issuer, err)
		}
		// A request that was on its way to the old CA.
		late, err := i.CA.Issue(ctx, ca.Request{CA: "devices", Profile: "iot-device", Device: "dev-4", PublicKey: installation.Key(t).Public(), RequesterKind: "code", Requester: "x", Actor: "test"})
		if err != nil || late.Issuer != "devices-2" {
			t.Errorf("a late request: issued by %s, %v", late.Issuer, err)
		}

		if crl, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil || !crl.NextUpdate.Before(i.Clock.Clock().Now().Add(8*24*time.Hour)) {
			t.Errorf("CRL of the retiring CA: %v", err)
		}
		_, err = i.CA.Retire(ctx, "test", "devices", "")
		wantRule(t, err, "ca_in_use")
		if err == nil || !strings.Contains(err.Error(), "2 certificates in use") {
			t.Error(err)
		}
		i.Clock.Advance(400 * 24 * time.Hour)
		for _, name := range []string{"root", "devices", "devices-2", "management"} {
			if _, err := i.CA.IssueCRL(ctx, "test", name); err != nil {
				t.Fatal(err)
			}
		}
		info, err := i.CA.Retire(ctx, "test", "devices", "")
		if err != nil || info.State != ca.Retired || !info.NextUpdate.Equal(info.Certificate.NotAfter) {
			t.Fatalf("%s, last CRL until %v, %v", info.State, info.NextUpdate, err)
		}
		if again, err := i.CA.Retire(ctx, "test", "devices", ""); err != nil || again.CRLNumber != info.CRLNumber {
			t.Errorf("CRL %d after %d: %v", again.CRLNumber, info.CRLNumber, err)
		}
		if crl, err := i.CA.IssueCRL(ctx, "test", "devices"); err != nil || crl.Number != info.CRLNumber {
			t.Errorf("a retired CA signed CRL %d, %v", crl.Number, err)
		}
		if third := rollOver(t, i, "devices-2"); third.Name != "devices-3" || third.Subject != "CN=devices 3" {
			t.Errorf("%s %s", third.Name, third.Subject)
		}
	})
}

// A CA that is retired in its last days, when its CRLs are valid beyond its certificate, signs a last one all the same: of every shard.
func TestLastCRLInTheLastDays(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 3} {
		i := installation.New(t, storage.Open(t, database.SQLite))
		ctx := t.Context()
		info, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "parts", Parent: "root", Use: "broker", PublicURL: "http://pki.example.com:8080", Shards: shards})
		if err != nil {
			t.Fatal(err)
		}
		i.Clock.Advance(info.Certificate.NotAfter.Sub(i.Clock.Clock().Now()) - 100*day)
		leaf := issue(t, i, "parts", "dev-1")
		rollOver(t, i, "parts")
		takeOver(t, i, "parts-2")
		i.Clock.Advance(97 * day)
		if _, err := i.CA.IssueCRL(ctx, "test", "parts"); err != nil {
			t.Fatal(err)
		}
		err = i.DB.Write(ctx, "test.revoke", func(tx *database.Tx) error { // and a crash before its CRL
			_, err := i.CA.RevokeInTx(tx, i.Clock.Clock().Now(), "test", leaf, "keyCompromise")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.CA.Retire(ctx, "test", "parts", "it is to end now"); err != nil {
			t.Fatal(err)
		}
		crls, err := i.CA.CRLs(ctx, "parts")
		if err != nil || len(crls) != shards {
			t.Fatalf("%d CRLs, %v", len(crls), err)
		}
		listed := 0
		for _, crl := range crls {
			if listed += crl.Entries; !crl.NextUpdate.Equal(info.Certificate.NotAfter) {
				t.Errorf("last CRL of shard %d until %v", crl.Shard, crl.NextUpdate)
			}
		}
		if listed != 1 {
			t.Errorf("%d of %d shards: %d certificates listed, want 1", shards, len(crls), listed)
		}
	}
}

func TestRolloverRefused(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	for name, tt := range map[string]struct {
		req  ca.RolloverRequest
		rule string
	}{
		"equal subject":            {ca.RolloverRequest{CA: "devices", Subject: "CN=devices"}, "ca_subject"},
		"subject of another CA":    {ca.RolloverRequest{CA: "devices", Subject: "CN=management"}, "ca_subject"},
		"no such CA":               {ca.RolloverRequest{CA: "nobody"}, "unknown_ca"},
		"a name that is taken":     {ca.RolloverRequest{CA: "devices", Name: "root"}, "ca_exists"},
		"a root below another":     {ca.RolloverRequest{CA: "root", Parent: "root"}, "ca_parent"},
		"a root signed elsewhere":  {ca.RolloverRequest{CA: "root", External: true}, "ca_parent"},
		"below a CA without a key": {ca.RolloverRequest{CA: "devices", Parent: "nobody"}, "unknown_ca"},
	} {
		_, err := i.CA.Rollover(t.Context(), "test", tt.req)
		var typed *ca.Error
		if !errors.As(err, &typed) || typed.Rule != tt.rule {
			t.Errorf("%s: %v, want %s", name, err, tt.rule)
		}
	}
	if _, err := i.CA.Activate(t.Context(), "test", "devices", ca.Activation{}); err == nil {
		t.Error("an active CA was activated")
	}
	if err := i.CA.Offline(t.Context(), "test", "root", filepath.Join(t.TempDir(), "root.pem")); err != nil {
		t.Fatal(err)
	}
	_, err := i.CA.Rollover(t.Context(), "test", ca.RolloverRequest{CA: "root"})
	wantRule(t, err, "ca_key_offline")
}

// An external CA's successor waits for its certificate, then stands by.
func TestRolloverExternal(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := t.Context()
	next, err := i.CA.Rollover(ctx, "test", ca.RolloverRequest{CA: "devices", External: true})
	if err != nil || next.State != ca.Waiting {
		t.Fatalf("%+v, %v", next, err)
	}
	_, err = i.CA.Activate(ctx, "test", "devices-2", ca.Activation{})
	wantRule(t, err, "ca_state")
	csr, err := i.CA.CSR(ctx, "devices-2")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := i.CA.Sign(ctx, "test", "root", csr, 5)
	if err != nil {
		t.Fatal(err)
	}
	info, err := i.CA.Import(ctx, "test", "devices-2", certificate, nil)
	if err != nil || info.State != ca.Standby || info.CRLNumber != 1 {
		t.Fatalf("%s, CRL %d, %v", info.State, info.CRLNumber, err)
	}
	takeOver(t, i, "devices-2")
}

// The four certificates of RFC 4210 section 4.4, and what follows below the new root.
func TestRootRollover(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := t.Context()
		old, err := i.CA.Get(ctx, "root")
		if err != nil {
			t.Fatal(err)
		}
		i.Clock.Advance(365 * 24 * time.Hour)
		next := rollOver(t, i, "root")
		if next.Name != "root-2" || next.State != ca.Standby || len(next.Crosses) != 2 {
			t.Fatalf("%+v", next)
		}
		for _, cross := range next.Crosses {
			subject, issuer := old.Certificate, next.Certificate // OldWithNew
			if cross.Subject.String() == next.Subject {
				subject, issuer = issuer, subject
			}
			if string(cross.RawSubject) != string(subject.RawSubject) || string(cross.RawSubjectPublicKeyInfo) != string(subject.RawSubjectPublicKeyInfo) {
				t.Errorf("a cross certificate of %s", cross.Subject)
			}
			if err := cross.CheckSignatureFrom(issuer); err != nil {
				t.Error(err)
			}
			if cross.NotAfter.After(old.Certificate.NotAfter) || cross.NotAfter.After(next.Certificate.NotAfter) {
				t.Errorf("%s outlives a root", cross.Subject)
			}
			if record, err := i.CA.ByDER(ctx, cross); err != nil || record.State != ca.Issued {
				t.Errorf("cross certificate not on record: %v", err)
			}
		}
		trust, err := i.CA.Trust(ctx, "devices")
		if err != nil || len(trust.Roots) != 2 || len(trust.Crosses) != 2 || len(trust.Issuers) != 1 || !trust.Roots[0].Equal(next.Certificate) {
			t.Fatalf("%d roots, %d crosses, %d issuers, %v", len(trust.Roots), len(trust.Crosses), len(trust.Issuers), err)
		}
		if stillOld := rollOver(t, i, "management"); stillOld.Parent != "root" {
			t.Errorf("parent %s while the new root stands by", stillOld.Parent)
		}
		takeOver(t, i, "root-2")
		devices := rollOver(t, i, "devices")
		if devices.Parent != "root-2" {
			t.Fatalf("parent %s", devices.Parent)
		}
		takeOver(t, i, "devices-2")
		leaf, err := x509.ParseCertificate(i.EnrollByCode(t, "dev-1", installation.Key(t)).DER)
		if err != nil {
			t.Fatal(err)
		}
		// Who has one of the roots alone verifies what stands below the other.
		for _, root := range []*x509.Certificate{old.Certificate, next.Certificate} {
			roots, between := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(root)
			between.AddCert(devices.Certificate)
			links, err := i.CA.Links(ctx, next.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			for _, link := range links {
				between.AddCert(link)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: i.Clock.Clock().Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
				t.Errorf("with %s: %v", root.Subject, err)
			}
		}
		_, err = i.CA.Retire(ctx, "test", "root", "")
		wantRule(t, err, "ca_in_use") // management is below it
		if _, err := i.CA.Revoke(ctx, "test", ca.SerialHex(next.Crosses[0].SerialNumber), "superseded"); err != nil {
			t.Error(err)
		}
		if info, err := i.CA.Get(ctx, "root-2"); err != nil || info.State != ca.Active {
			t.Errorf("a revoked cross certificate took its root with it: %s, %v", info.State, err)
		}
	})
}

func TestRevokeCA(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := t.Context()
	old := i.EnrollByCode(t, "dev-1", installation.Key(t))
	_, err := i.CA.RevokeCA(ctx, "test", "root", "keyCompromise")
	wantRule(t, err, "ca_root")
	_, err = i.CA.RevokeCA(ctx, "test", "devices", "certificateHold")
	wantRule(t, err, "ca_hold")
	info, err := i.CA.RevokeCA(ctx, "test", "devices", "cACompromise")
	if err != nil || info.State != ca.Revoked {
		t.Fatalf("%s, %v", info.State, err)
	}
	if _, err := i.Renew(t, old, installation.CSR(t, installation.Key(t), "dev-1", nil)); err == nil {
		t.Error("a certificate of a revoked CA renews itself")
	}
	rollOver(t, i, "devices")
	takeOver(t, i, "devices-2")
	if c := i.EnrollByCode(t, "dev-2", installation.Key(t)); c.Issuer != "devices-2" {
		t.Errorf("issued by %s", c.Issuer)
	}
	if info, err := i.CA.Get(ctx, "devices"); err != nil || info.State != ca.Revoked {
		t.Errorf("%s, %v", info.State, err)
	}
}

// Devices enroll at two servers all through a rollover: nobody is refused, nothing is lost, and from the moment when the activation is
// committed the new CA issues, on both servers.
func TestActivateWhileIssuing(t *testing.T) {
	t.Parallel()
	for _, dialect := range []string{database.SQLite, database.Postgres} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			url := storage.URL(t, dialect)
			first := installation.New(t, storage.OpenURL(t, url))
			servers := []*installation.Installation{first}
			if dialect == database.Postgres {
				servers = append(servers, installation.Open(t, storage.OpenURL(t, url), first.Dir, first.Clock))
			}
			rollOver(t, first, "devices")
			over := make(chan struct{})
			var under atomic.Int64 // enrollments done before the activation
			var wait sync.WaitGroup
			for _, s := range servers {
				for range 4 {
					wait.Go(func() { issueUntil(t, s, over, &under) })
				}
			}
			for under.Load() < 20 {
				runtime.Gosched()
			}
			takeOver(t, first, "devices-2")
			close(over)
			wait.Wait()
			for _, err := range invariants.Check(t.Context(), url, invariants.State{Now: first.Clock.Clock().Now(), Settled: true}) {
				t.Error(err)
			}
		})
	}
}

// issueUntil asks the old CA for certificates until over, then once more: that one must be the new CA's.
func issueUntil(t *testing.T, s *installation.Installation, over <-chan struct{}, done *atomic.Int64) {
	for last := false; !last; {
		select {
		case <-over:
			last = true
		default:
		}
		c, err := s.CA.Issue(t.Context(), ca.Request{CA: "devices", Profile: "iot-device", Device: "dev-1", PublicKey: installation.Key(t).Public(), RequesterKind: "server", Requester: "x", Actor: "test"})
		if err != nil {
			t.Error(err)
			return
		}
		done.Add(1)
		if last && c.Issuer != "devices-2" {
			t.Errorf("issued by %s after the activation", c.Issuer)
		}
	}
}

// A profile that names its issuers goes on with whatever takes over from them: an activation must not refuse a fleet.
func TestRolloverOfANamedIssuer(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	source := strings.Replace(string(installation.Profiles(t)["iot-device.yaml"]), "use: broker", "use: broker\nissuers: [devices]", 1)
	if _, err := i.CA.AddProfile(t.Context(), "test", []byte(source)); err != nil {
		t.Fatal(err)
	}
	old := i.EnrollByCode(t, "dev-1", installation.Key(t))
	rollOver(t, i, "devices")
	takeOver(t, i, "devices-2")
	c, err := i.Renew(t, old, installation.CSR(t, installation.Key(t), "dev-1", nil))
	if err != nil || c.Issuer != "devices-2" {
		t.Errorf("after the rollover: %v, issued by %q", err, c.Issuer)
	}
	if _, err := i.CA.Create(t.Context(), "test", ca.CreateRequest{Name: "others", Parent: "root", Use: "broker"}); err != nil {
		t.Fatal(err)
	}
	_, err = i.CA.Issue(t.Context(), request("others", "iot-device", "dev-3", installation.Key(t).Public()))
	wantRule(t, err, "issuer")
}

// A CA that no label had bound yet when it was rolled over: its successor is bound with it, or brokers would not learn of it.
func TestRolloverBeforeTheFirstLabel(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := t.Context()
		if _, err := i.CA.Create(ctx, "test", ca.CreateRequest{Name: "fresh", Parent: "root"}); err != nil {
			t.Fatal(err)
		}
		rollOver(t, i, "fresh")
		if _, err := i.Book.AddLabel(ctx, "test", registration.Label{Name: "fresh", CA: "fresh", Profile: "iot-device"}); err != nil {
			t.Fatal(err)
		}
		if info := takeOver(t, i, "fresh-2"); info.Use != "broker" {
			t.Errorf("the successor is for use %q", info.Use)
		}
	})
}
