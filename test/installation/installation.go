// Package installation makes a whole installation in memory of the test: CAs, shipped profiles, labels and a book, on a
// database of the test's choice and a clock that the test moves.
package installation

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/configs"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
)

// Start is what the clock of a new installation shows.
var Start = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// Passphrase protects the keys of every installation of the tests.
var Passphrase = []byte("a passphrase of the tests")

// Installation is one server's view of an installation.
type Installation struct {
	DB    *database.DB
	Dir   string
	Clock *clock.Manual
	CA    *ca.Authorities
	Book  *registration.Book
}

// New makes the three CAs, the shipped profiles and the labels default, bridge and mqtt-server.
func New(t testing.TB, db *database.DB) *Installation {
	t.Helper()
	i := Open(t, db, t.TempDir(), clock.NewManual(Start))
	ctx := context.Background()
	for _, source := range Profiles(t) {
		if _, err := i.CA.AddProfile(ctx, "test", source); err != nil {
			t.Fatal(err)
		}
	}
	for _, req := range []ca.CreateRequest{
		{Name: "root"},
		{Name: "devices", Parent: "root", PublicURL: "http://pki.example.com:8080", Use: "broker"},
		{Name: "management", Parent: "root", PublicURL: "http://pki.example.com:8080", Use: "management"},
	} {
		if _, err := i.CA.Create(ctx, "test", req); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range []registration.Label{
		{Name: registration.Default, CA: "devices", Profile: "iot-device", Auth: []string{"code", "birth"}},
		{Name: "bridge", CA: "management", Profile: "bridge", Auth: []string{"code"}},
		{Name: "mqtt-server", CA: "management", Profile: "mqtt-server", Auth: []string{"bridge"}},
	} {
		if _, err := i.Book.AddLabel(ctx, "test", l); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// Open opens an installation that exists: a restart, or a second server on one database.
func Open(t testing.TB, db *database.DB, dir string, m *clock.Manual) *Installation {
	t.Helper()
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	authorities, err := ca.Open(ctx, ca.Config{DB: db, Clock: m.Clock(), Dir: dir, Passphrase: Passphrase, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	book, err := registration.Open(ctx, registration.Config{
		DB: db, Clock: m.Clock(), CA: authorities, CodeKey: bytes.Repeat([]byte{7}, 32), Reserved: []string{"iotagent"}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &Installation{DB: db, Dir: dir, Clock: m, CA: authorities, Book: book}
}

// Profiles are the shipped profile files.
func Profiles(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := configs.Profiles()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Key makes an EC P-256 key.
func Key(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// CSR makes a request with a common name, changed by edit if not nil.
func CSR(t testing.TB, key crypto.Signer, commonName string, edit func(*x509.CertificateRequest)) *x509.CertificateRequest {
	t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName}}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// EnrollByCode makes a code for a device and enrolls with it.
func (i *Installation) EnrollByCode(t testing.TB, device string, key crypto.Signer) ca.Certificate {
	t.Helper()
	ctx := context.Background()
	code, err := i.Book.CreateCode(ctx, "test", device, registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := i.EnrollWith(device, code.Code, CSR(t, key, device, nil))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// EnrollWith enrolls at the default label with a code that exists.
func (i *Installation) EnrollWith(device, code string, csr *x509.CertificateRequest) (ca.Certificate, error) {
	ctx := context.Background()
	l, err := i.Book.Label(ctx, registration.Default)
	if err != nil {
		return ca.Certificate{}, err
	}
	r, err := i.Book.CheckCode(ctx, l, device, code)
	if err != nil {
		return ca.Certificate{}, err
	}
	return i.Book.Enroll(ctx, r, l, csr, false)
}

// Renew re-enrolls at the default label with an operational certificate.
func (i *Installation) Renew(t testing.TB, old ca.Certificate, csr *x509.CertificateRequest) (ca.Certificate, error) {
	t.Helper()
	ctx := context.Background()
	l, err := i.Book.Label(ctx, registration.Default)
	if err != nil {
		return ca.Certificate{}, err
	}
	c, err := x509.ParseCertificate(old.DER)
	if err != nil {
		t.Fatal(err)
	}
	r, err := i.Book.CheckOperational(ctx, l, c)
	if err != nil {
		return ca.Certificate{}, err
	}
	return i.Book.Enroll(ctx, r, l, csr, true)
}
