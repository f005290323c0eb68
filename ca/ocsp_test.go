// OCSP answers say what the records say (INV-8, INV-15), signed by a signer that the CA made and renews.

package ca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/ocsp"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
	"github.com/natal-pki/natal/test/testpki"
	xocsp "golang.org/x/crypto/ocsp"
)

func issuerOf(t *testing.T, i *installation.Installation, name string) *x509.Certificate {
	t.Helper()
	info, err := i.CA.Get(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Certificate
}

// askOCSP returns the outcome, and the answer as somebody else's parser reads and verifies it; nil if it is an error.
func askOCSP(t *testing.T, i *installation.Installation, name string, leaf *x509.Certificate) (ocsp.Response, *xocsp.Response) {
	t.Helper()
	issuer := issuerOf(t, i, name)
	der, err := xocsp.CreateRequest(leaf, issuer, &xocsp.RequestOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	response, err := i.CA.OCSP(context.Background(), name, der)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := xocsp.ParseResponseForCert(response.DER, leaf, issuer)
	var failure xocsp.ResponseError
	if errors.As(err, &failure) {
		return response, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return response, parsed
}

func outcome(t *testing.T, i *installation.Installation, name string, leaf *x509.Certificate) string {
	t.Helper()
	response, _ := askOCSP(t, i, name, leaf)
	return response.Outcome
}

func signers(t *testing.T, i *installation.Installation) {
	t.Helper()
	if err := i.CA.RenewOCSPSigners(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// agree compares the answer with the newest CRL.
func agree(t *testing.T, i *installation.Installation, leaf *x509.Certificate) {
	t.Helper()
	_, list := current(t, i, "devices")
	_, answer := askOCSP(t, i, "devices", leaf)
	at := slices.IndexFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(leaf.SerialNumber) == 0 })
	if at < 0 {
		if answer.Status != xocsp.Good {
			t.Errorf("not on the CRL, and OCSP says %d", answer.Status)
		}
		return
	}
	entry := list.RevokedCertificateEntries[at]
	if answer.Status != xocsp.Revoked || !answer.RevokedAt.Equal(entry.RevocationTime.Truncate(time.Second)) || answer.RevocationReason != entry.ReasonCode {
		t.Errorf("CRL: %v, reason %d; OCSP: status %d, %v, reason %d", entry.RevocationTime, entry.ReasonCode, answer.Status, answer.RevokedAt, answer.RevocationReason)
	}
}

func TestOCSPStates(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		ctx := context.Background()
		i := installation.New(t, db)
		signers(t, i)
		other := installation.Open(t, db, i.Dir, i.Clock) // a second server
		signers(t, other)
		record := issue(t, i, "devices", "dev-1")
		leaf := parse(t, record.DER)
		want := func(step, state string) {
			t.Helper()
			for name, server := range map[string]*installation.Installation{"this": i, "other": other} {
				if got := outcome(t, server, "devices", leaf); got != state {
					t.Errorf("%s: %s server says %s, want %s", step, name, got, state)
				}
			}
		}
		want("issued", "good")
		agree(t, i, leaf)
		for _, step := range []string{"certificateHold", "", "certificateHold", "", "keyCompromise"} {
			var err error
			if step == "" {
				_, err = i.CA.Unhold(ctx, "test", record.Serial)
			} else {
				_, err = i.CA.Revoke(ctx, "test", record.Serial, step)
			}
			if err != nil {
				t.Fatal(err)
			}
			want(step, map[bool]string{true: "good", false: "revoked"}[step == ""])
			agree(t, i, leaf)
		}
		stranger := *leaf
		stranger.SerialNumber = issuerOf(t, i, "management").SerialNumber
		if got := outcome(t, i, "devices", &stranger); got != "unknown" {
			t.Errorf("a serial number of another CA: %s", got)
		}
		if got := outcome(t, i, "management", leaf); got != "unknown" {
			t.Errorf("a serial number never issued: %s", got)
		}
		// What is recorded and not signed is not good; what was revoked then is revoked.
		second := parse(t, issue(t, i, "devices", "dev-2").DER)
		unsigned := func(state string) {
			if err := db.Write(ctx, "test", func(tx *database.Tx) error {
				_, err := tx.Exec("UPDATE certificates SET state = ? WHERE serial = ?", state, ca.SerialHex(second.SerialNumber))
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		for _, state := range []string{ca.Intended, ca.Abandoned} {
			unsigned(state)
			if got := outcome(t, i, "devices", second); got != "unknown" {
				t.Errorf("%s: %s", state, got)
			}
		}
		unsigned(ca.Intended)
		if _, err := i.CA.Revoke(ctx, "test", ca.SerialHex(second.SerialNumber), "superseded"); err != nil {
			t.Fatal(err)
		}
		if got := outcome(t, i, "devices", second); got != "revoked" {
			t.Errorf("revoked before it was signed: %s", got)
		}
		third := parse(t, issue(t, i, "devices", "dev-3").DER)
		i.Clock.Advance(third.NotAfter.Sub(i.Clock.Clock().Now()))
		signers(t, i)
		if got := outcome(t, i, "devices", third); got != "good" {
			t.Errorf("in its last second: %s", got)
		}
		i.Clock.Advance(time.Second)
		if got := outcome(t, i, "devices", third); got != "unknown" {
			t.Errorf("expired: %s", got)
		}
		if got := outcome(t, i, "devices", leaf); got != "revoked" {
			t.Errorf("revoked, then expired: %s", got)
		}
	})
}

func TestOCSPSigners(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	i := installation.New(t, storage.Open(t, database.SQLite))
	leaf := parse(t, issue(t, i, "devices", "dev-1").DER)
	if got := outcome(t, i, "devices", leaf); got != ocsp.OutcomeTryLater {
		t.Errorf("before there is a signer: %s", got)
	}
	signers(t, i)
	signer := func(i *installation.Installation) *x509.Certificate {
		t.Helper()
		_, answer := askOCSP(t, i, "devices", leaf)
		if answer == nil {
			t.Fatal("no answer")
		}
		return answer.Certificate
	}
	first := signer(i)
	if !slices.Equal(first.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) || first.IsCA {
		t.Errorf("the signer's certificate: %v", first.ExtKeyUsage)
	}
	if record, err := i.CA.ByDER(ctx, first); err != nil || record.RequesterKind != ca.RequesterServer || record.Profile != ca.OCSPProfile {
		t.Errorf("recorded as %+v, %v", record, err)
	}
	signers(t, i)
	again := installation.Open(t, i.DB, i.Dir, i.Clock) // after a restart
	signers(t, again)
	if !signer(i).Equal(first) || !signer(again).Equal(first) {
		t.Error("a signer that serves was replaced")
	}
	i.Clock.Advance(first.NotAfter.Sub(first.NotBefore)*2/3 + 2*time.Minute)
	signers(t, i)
	renewed := signer(i)
	if renewed.Equal(first) || !renewed.NotAfter.After(first.NotAfter) {
		t.Error("not renewed at two thirds of its life")
	}
	if ends := i.CA.OCSPSigners(); !ends["devices"].Equal(renewed.NotAfter) || len(ends) != 3 {
		t.Errorf("%v", ends)
	}
	// A revoked signer is replaced, its key too.
	if _, err := i.CA.Revoke(ctx, "test", ca.SerialHex(renewed.SerialNumber), "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	i.Clock.Advance(2 * time.Minute)
	signers(t, i)
	fresh := signer(i)
	if fresh.Equal(renewed) || fresh.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(renewed.PublicKey) {
		t.Error("the revoked signer, or its key, answers still")
	}
	// While the CA's key is away the last signer answers to its end, and then nobody.
	if err := i.CA.Offline(ctx, "test", "devices", i.Dir+"/devices.away.pem"); err != nil {
		t.Fatal(err)
	}
	i.Clock.Advance(25 * 24 * time.Hour)
	if err := i.CA.RenewOCSPSigners(ctx); err != nil {
		t.Fatal(err)
	}
	if !signer(i).Equal(fresh) {
		t.Error("another signer without the CA's key")
	}
	i.Clock.Advance(6 * 24 * time.Hour)
	if err := i.CA.RenewOCSPSigners(ctx); err != nil {
		t.Fatal(err)
	}
	if got := outcome(t, i, "devices", leaf); got != ocsp.OutcomeTryLater {
		t.Errorf("after the last signer's end: %s", got)
	}
}

// A signer is no client: its certificate opens nothing.
func TestOCSPSignerAuthenticatesNobody(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	i := installation.New(t, storage.Open(t, database.SQLite))
	signers(t, i)
	_, answer := askOCSP(t, i, "devices", parse(t, issue(t, i, "devices", "dev-1").DER))
	l, err := i.Book.Label(ctx, "default")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := i.Book.CheckOperational(ctx, l, answer.Certificate); err == nil {
		t.Errorf("it is %+v", r)
	}
}

func TestOCSPFailsClosed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	i := installation.New(t, storage.Open(t, database.SQLite))
	signers(t, i)
	leaf := parse(t, issue(t, i, "devices", "dev-1").DER)
	if got := outcome(t, i, "devices", leaf); got != "good" {
		t.Fatal(got)
	}
	for _, step := range [][2]string{{ca.Retired, ocsp.OutcomeUnauthorized}, {ca.Revoked, ocsp.OutcomeUnauthorized}, {ca.Active, "good"}} { // active last
		state, want := step[0], step[1]
		if err := i.DB.Write(ctx, "test", func(tx *database.Tx) error {
			if _, err := tx.Exec("UPDATE authorities SET state = ? WHERE name = 'devices'", state); err != nil {
				return err
			}
			return tx.TouchConfiguration()
		}); err != nil {
			t.Fatal(err)
		}
		if got := outcome(t, i, "devices", leaf); got != want {
			t.Errorf("of a CA that is %s: %s", state, got)
		}
	}
	for _, name := range []string{"nobody", "", "DEVICES"} {
		_, err := i.CA.OCSP(ctx, name, nil)
		wantError(t, err, ca.NotFound, "unknown_ca")
	}
	i.Clock.Advance(-6 * time.Minute) // behind the newest audit entry
	again := installation.Open(t, i.DB, i.Dir, i.Clock)
	again.CA.RenewOCSPSigners(ctx)
	if got := outcome(t, again, "devices", leaf); got != ocsp.OutcomeTryLater {
		t.Errorf("with a clock behind the records: %s", got)
	}
	i.Clock.Advance(6 * time.Minute)
	issuer := issuerOf(t, i, "devices")
	der, err := xocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	i.DB.Close()
	if response, err := i.CA.OCSP(ctx, "devices", der); err != nil || response.Outcome != ocsp.OutcomeTryLater {
		t.Errorf("without a database: %s, %v", response.Outcome, err)
	}
}

func TestSignOCSP(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	i := installation.New(t, storage.Open(t, database.SQLite))
	key := installation.Key(t)
	csr := testpki.CSRPEM(testpki.CSR(t, key, "va.example.com", nil))
	issued, issuer, err := i.CA.SignOCSP(ctx, "admin:olga", "devices", csr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ocsp.NewSigner(key, parse(t, issued.DER), issuer); err != nil {
		t.Error(err)
	}
	if n := count(t, i.DB, "SELECT COUNT(*) FROM audit WHERE action = 'certificate_intended' AND actor = 'admin:olga' AND object = ?", issued.Serial); n != 1 {
		t.Error("not in the audit log")
	}
	_, _, err = i.CA.SignOCSP(ctx, "test", "devices", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issued.DER}))
	wantError(t, err, ca.Invalid, "csr")
}
