// What a credential may have, and only once; on SQLite and PostgreSQL.

package registration_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/storage"
)

func wantKind(t *testing.T, err error, kind registration.Kind, reason string) {
	t.Helper()
	var typed *registration.Error
	if !errors.As(err, &typed) || typed.Kind != kind || typed.Reason != reason {
		t.Fatalf("got %v, want %s %s", err, kind, reason)
	}
}

func TestCodeIsUsedOnce(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		code, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		key := installation.Key(t)
		first, err := i.EnrollWith("dev-1", code.Code, installation.CSR(t, key, "dev-1", nil))
		if err != nil {
			t.Fatal(err)
		}
		again, err := i.EnrollWith("dev-1", code.Code, installation.CSR(t, key, "dev-1", nil))
		if err != nil || !bytes.Equal(first.DER, again.DER) {
			t.Fatalf("a repeat with the same key: %v, same bytes %v", err, bytes.Equal(first.DER, again.DER))
		}
		_, err = i.EnrollWith("dev-1", code.Code, installation.CSR(t, installation.Key(t), "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")

		i.Clock.Advance(registration.RedeliveryWindow + time.Minute)
		_, err = i.EnrollWith("dev-1", code.Code, installation.CSR(t, key, "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")

		if _, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil); err == nil {
			t.Fatal("a second code for an enrolled device")
		}
		if _, err := audit.Verify(ctx, db, nil); err != nil {
			t.Fatal(err)
		}
	})
}

// 200 requests with one code and 200 keys, all at once: one certificate.
func TestOneCodeManyKeys(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		for round := range 3 {
			device := "dev-" + string(rune('a'+round))
			code, err := i.Book.CreateCode(context.Background(), "test", device, registration.Default, 0, nil)
			if err != nil {
				t.Fatal(err)
			}
			requests := make([]*x509.CertificateRequest, 200)
			for n := range requests {
				requests[n] = installation.CSR(t, installation.Key(t), device, nil)
			}
			issued, errs := enrollAll(i, device, code.Code, requests)
			if len(issued) != 1 {
				t.Fatalf("round %d: %d certificates for one code", round, len(issued))
			}
			for _, err := range errs {
				wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
			}
			list, err := i.CA.Certificates(context.Background(), ca.Filter{Device: device})
			if err != nil || len(list) != 1 {
				t.Fatalf("round %d: %d rows, %v", round, len(list), err)
			}
		}
	})
}

// The same key 100 times at once: one certificate, everybody gets it.
func TestOneCodeOneKeyAtOnce(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		code, err := i.Book.CreateCode(context.Background(), "test", "dev-1", registration.Default, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		key := installation.Key(t)
		requests := make([]*x509.CertificateRequest, 100)
		for n := range requests {
			requests[n] = installation.CSR(t, key, "dev-1", nil)
		}
		issued, errs := enrollAll(i, "dev-1", code.Code, requests)
		if len(errs) > 0 {
			t.Fatalf("%d refused: %v", len(errs), errs[0])
		}
		for _, c := range issued {
			if c.Serial != issued[0].Serial {
				t.Fatal("two certificates")
			}
		}
	})
}

func enrollAll(i *installation.Installation, device, code string, requests []*x509.CertificateRequest) (issued []ca.Certificate, errs []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, csr := range requests {
		wg.Go(func() {
			c, err := i.EnrollWith(device, code, csr)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				issued = append(issued, c)
			}
		})
	}
	wg.Wait()
	return issued, errs
}

func TestCodesThatDoNotCount(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	label, err := i.Book.AddLabel(ctx, "test", registration.Label{Name: "other"})
	if err != nil {
		t.Fatal(err)
	}
	good, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := i.Book.CreateCode(ctx, "test", "dev-2", label.Name, 0, nil)
	short, _ := i.Book.CreateCode(ctx, "test", "dev-3", registration.Default, time.Minute, nil)
	revoked, _ := i.Book.CreateCode(ctx, "test", "dev-4", registration.Default, 0, nil)
	if err := i.Book.RevokeCode(ctx, "test", "dev-4"); err != nil {
		t.Fatal(err)
	}
	i.Clock.Advance(2 * time.Minute)
	for name, try := range map[string][2]string{
		"wrong":            {"dev-1", "wrong"},
		"empty":            {"dev-1", ""},
		"unknown device":   {"dev-9", good.Code},
		"another device's": {"dev-2", good.Code},
		"another label's":  {"dev-2", foreign.Code},
		"expired":          {"dev-3", short.Code},
		"revoked":          {"dev-4", revoked.Code},
		"padded":           {"dev-1", good.Code + " "},
		"upper case":       {"dev-1", strings.ToUpper(good.Code)},
		"device's case":    {"DEV-1", good.Code},
	} {
		_, err := i.EnrollWith(try[0], try[1], installation.CSR(t, installation.Key(t), try[0], nil))
		var typed *registration.Error
		if !errors.As(err, &typed) || typed.Kind != registration.NotAuthenticated || typed.Detail != "the credentials are not accepted" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(good.Code) < 26 {
		t.Errorf("a code of %d characters", len(good.Code))
	}
	if _, err := i.EnrollWith("dev-1", good.Code, installation.CSR(t, installation.Key(t), "dev-1", nil)); err != nil {
		t.Errorf("the good code after all the bad ones: %v", err)
	}
}

// The request names somebody else, or asks for more: refused, and the code is not used up.
func TestRefusedRequestLeavesTheCode(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	code, err := i.Book.CreateCode(context.Background(), "test", "dev-1", registration.Default, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*x509.CertificateRequest){
		"another name": func(r *x509.CertificateRequest) { r.Subject.CommonName = "dev-2" },
		"two names": func(r *x509.CertificateRequest) {
			r.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "dev-1"}, {Type: []int{2, 5, 4, 3}, Value: "admin"}}
		},
		"an organisation": func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"system:masters"} },
		"a SAN":           func(r *x509.CertificateRequest) { r.DNSNames = []string{"dev-2"} },
		"CA:TRUE": func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}
		},
		"keyCertSign": func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 15}, Value: []byte{0x03, 0x02, 0x02, 0x04}}}
		},
		"serverAuth": func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 37}, Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 3, 1}}}
		},
		"an unknown extension": func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		},
	} {
		if c, err := i.EnrollWith("dev-1", code.Code, installation.CSR(t, installation.Key(t), "dev-1", edit)); err == nil {
			t.Errorf("%s: issued %s", name, c.Serial)
		}
	}
	if _, err := i.EnrollWith("dev-1", code.Code, installation.CSR(t, installation.Key(t), "dev-1", nil)); err != nil {
		t.Fatalf("the code after the refusals: %v", err)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		first := i.EnrollByCode(t, "dev-1", installation.Key(t))
		key := installation.Key(t)
		second, err := i.Renew(t, first, installation.CSR(t, key, "dev-1", nil))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := i.Renew(t, first, installation.CSR(t, key, "dev-1", nil)); err != nil || again.Serial != second.Serial {
			t.Fatalf("a repeat of the renewal: %v", err)
		}
		for name, csr := range map[string]*x509.CertificateRequest{
			"another name": installation.CSR(t, key, "dev-2", nil),
			"no name":      installation.CSR(t, key, "", nil),
			"a new SAN":    installation.CSR(t, key, "dev-1", func(r *x509.CertificateRequest) { r.DNSNames = []string{"x"} }),
		} {
			_, err := i.Renew(t, first, csr)
			wantKind(t, err, registration.NotAuthorized, "identity_differs")
			_ = name
		}
		if _, err := i.Renew(t, second, installation.CSR(t, installation.Key(t), "dev-1", nil)); err != nil {
			t.Fatal(err)
		}
		// the second one has authenticated: the first one's right is over
		_, err = i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
		wantKind(t, err, registration.NotAuthorized, "superseded")

		_, err = i.CA.Revoke(context.Background(), "test", second.Serial, "keyCompromise")
		if err != nil {
			t.Fatal(err)
		}
		_, err = i.Renew(t, second, installation.CSR(t, installation.Key(t), "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
	})
}

func TestRenewalOverlapEnds(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	first := i.EnrollByCode(t, "dev-1", installation.Key(t))
	if _, err := i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil)); err != nil {
		t.Fatal(err)
	}
	i.Clock.Advance(registration.RenewalOverlap - time.Hour)
	if _, err := i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil)); err != nil {
		t.Fatalf("inside the overlap: %v", err)
	}
	i.Clock.Advance(2 * time.Hour)
	_, err := i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
	wantKind(t, err, registration.NotAuthorized, "superseded")
}

type birthPKI struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newBirthPKI(t *testing.T, name string) birthPKI {
	t.Helper()
	key := installation.Key(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: installation.Start.AddDate(-1, 0, 0), NotAfter: installation.Start.AddDate(20, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return birthPKI{c, key}
}

func (p birthPKI) birth(t *testing.T, serial int64, subject pkix.Name) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: subject, NotBefore: p.certificate.NotBefore, NotAfter: p.certificate.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, p.certificate, installation.Key(t).Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (p birthPKI) pem() []byte { return pemOf(p.certificate.Raw) }

func enrollBirth(i *installation.Installation, birth *x509.Certificate, csr *x509.CertificateRequest) (ca.Certificate, error) {
	ctx := context.Background()
	l, err := i.Book.Label(ctx, registration.Default)
	if err != nil {
		return ca.Certificate{}, err
	}
	r, err := i.Book.CheckBirth(ctx, l, birth, nil)
	if err != nil {
		return ca.Certificate{}, err
	}
	return i.Book.Enroll(ctx, r, l, csr, false)
}

func TestBirthCertificateIsUsedOnce(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		factory, rogue := newBirthPKI(t, "Factory"), newBirthPKI(t, "Factory")
		birth := factory.birth(t, 7, pkix.Name{CommonName: "thing", SerialNumber: "SN-000001"})
		_, err := enrollBirth(i, birth, installation.CSR(t, installation.Key(t), "SN-000001", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated") // no birth CA yet
		if _, err := i.Book.AddBirthCA(ctx, "test", registration.Default, factory.pem()); err != nil {
			t.Fatal(err)
		}
		key := installation.Key(t)
		first, err := enrollBirth(i, birth, installation.CSR(t, key, "SN-000001", nil))
		if err != nil || first.Device != "SN-000001" {
			t.Fatalf("%v %s", err, first.Device)
		}
		if again, err := enrollBirth(i, birth, installation.CSR(t, key, "SN-000001", nil)); err != nil || again.Serial != first.Serial {
			t.Fatalf("a repeat: %v", err)
		}
		for name, other := range map[string]*x509.Certificate{
			"the same, another key":        birth,
			"another of the same identity": factory.birth(t, 8, pkix.Name{SerialNumber: "SN-000001"}),
			"of a CA of the same name":     rogue.birth(t, 9, pkix.Name{SerialNumber: "SN-000009"}),
			"two serial numbers":           factory.birth(t, 10, pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 5}, Value: "a"}, {Type: []int{2, 5, 4, 5}, Value: "b"}}}),
			"a reserved name":              factory.birth(t, 11, pkix.Name{CommonName: "Natal-canary-1"}),
			"a configured name":            factory.birth(t, 12, pkix.Name{CommonName: "iotAgent"}),
			"a name that is no id":         factory.birth(t, 13, pkix.Name{CommonName: "a/b"}),
			"a name that differs in case":  factory.birth(t, 14, pkix.Name{CommonName: "sn-000001"}),
		} {
			id := other.Subject.SerialNumber
			if id == "" {
				id = other.Subject.CommonName
			}
			_, err := enrollBirth(i, other, installation.CSR(t, installation.Key(t), id, nil))
			var typed *registration.Error
			if !errors.As(err, &typed) || typed.Kind != registration.NotAuthenticated {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestReissueAdmitsOnce(t *testing.T) {
	t.Parallel()
	storage.Each(t, func(t *testing.T, db *database.DB) {
		i := installation.New(t, db)
		ctx := context.Background()
		first := i.EnrollByCode(t, "dev-1", installation.Key(t))
		if _, err := i.Book.RevokeDevice(ctx, "test", "dev-1", "keyCompromise"); err != nil {
			t.Fatal(err)
		}
		_, err := i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
		if _, err := i.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil); err == nil {
			t.Fatal("a code for a revoked device")
		}
		code, err := i.Book.Reissue(ctx, "test", "dev-1", "")
		if err != nil {
			t.Fatal(err)
		}
		second, err := i.EnrollWith("dev-1", code.Code, installation.CSR(t, installation.Key(t), "dev-1", nil))
		if err != nil {
			t.Fatal(err)
		}
		_, err = i.EnrollWith("dev-1", code.Code, installation.CSR(t, installation.Key(t), "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
		_, err = i.Renew(t, first, installation.CSR(t, installation.Key(t), "dev-1", nil))
		wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
		if _, err := i.Renew(t, second, installation.CSR(t, installation.Key(t), "dev-1", nil)); err != nil {
			t.Fatal(err)
		}
	})
}

// The birth certificate of a reissued device serves once more, and no more than once.
func TestReissueByBirthCertificate(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	factory := newBirthPKI(t, "Factory")
	if _, err := i.Book.AddBirthCA(ctx, "test", registration.Default, factory.pem()); err != nil {
		t.Fatal(err)
	}
	birth := factory.birth(t, 7, pkix.Name{SerialNumber: "SN-1"})
	if _, err := enrollBirth(i, birth, installation.CSR(t, installation.Key(t), "SN-1", nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Book.RevokeDevice(ctx, "test", "SN-1", "unspecified"); err != nil {
		t.Fatal(err)
	}
	_, err := enrollBirth(i, birth, installation.CSR(t, installation.Key(t), "SN-1", nil))
	wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
	if _, err := i.Book.Reissue(ctx, "test", "SN-1", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := enrollBirth(i, birth, installation.CSR(t, installation.Key(t), "SN-1", nil)); err != nil {
		t.Fatal(err)
	}
	_, err = enrollBirth(i, birth, installation.CSR(t, installation.Key(t), "SN-1", nil))
	wantKind(t, err, registration.NotAuthenticated, "not_authenticated")
}

func TestBirthCAMustBeACA(t *testing.T) {
	t.Parallel()
	i := installation.New(t, storage.Open(t, database.SQLite))
	ctx := context.Background()
	factory := newBirthPKI(t, "Factory")
	_, err := i.Book.AddBirthCA(ctx, "test", registration.Default, pemOf(factory.birth(t, 1, pkix.Name{CommonName: "leaf"}).Raw))
	wantKind(t, err, registration.Invalid, "birth_ca")
	devices, err := i.CA.Get(ctx, "devices")
	if err != nil {
		t.Fatal(err)
	}
	_, err = i.Book.AddBirthCA(ctx, "test", registration.Default, pemOf(devices.Certificate.Raw))
	wantKind(t, err, registration.Conflict, "birth_ca")
	if list, _ := i.Book.BirthCAs(ctx, ""); len(list) > 0 {
		t.Fatalf("%d birth CAs after refusals", len(list))
	}
}
