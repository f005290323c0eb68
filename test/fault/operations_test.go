//go:build testhooks

// The operations of the matrix: what devices ask for, what operators do, what the server does by itself.

package fault_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/internal/feedapi"
	"github.com/natal-pki/natal/server/admin"
	"github.com/natal-pki/natal/server/feed"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/test/installation"
	"github.com/natal-pki/natal/test/invariants"
	"github.com/natal-pki/natal/test/testpki"
)

var ctx = context.Background()

func operations() []operation {
	return []operation{
		{name: "enroll by code", prepare: enrollByCode},
		{name: "enroll by birth certificate", prepare: enrollByBirth},
		{name: "enroll anew", prepare: renew},
		{name: "enroll after a change of the profile", prepare: redeliver},
		{name: "refuse", prepare: func(w *world) attempt {
			return repeatable(func() error {
				return w.Book.RecordRefusal(ctx, registration.Refusal{Device: "dev-1", Label: "default", Reason: "not_authenticated", Detail: "test"})
			}, func() bool { return w.count("SELECT COUNT(*) FROM audit WHERE action = 'enrollment_refused'") > 0 })
		}},
		{name: "abandon", prepare: abandon},
		{name: "revoke", crl: true, prepare: func(w *world) attempt {
			c := w.enrolled("dev-1")
			return repeatable(func() error { _, err := w.CA.Revoke(ctx, "test", c.Serial, "keyCompromise"); return err }, w.state(c, ca.Revoked))
		}},
		{name: "hold", prepare: func(w *world) attempt {
			c := w.enrolled("dev-1")
			return repeatable(func() error { _, err := w.CA.Revoke(ctx, "test", c.Serial, "certificateHold"); return err }, w.state(c, ca.Held))
		}},
		{name: "unhold", prepare: func(w *world) attempt {
			c := w.enrolled("dev-1")
			_, err := w.CA.Revoke(ctx, "test", c.Serial, "certificateHold")
			w.must(err)
			return once(func() error { _, err := w.CA.Unhold(ctx, "test", c.Serial); return err }, w.state(c, ca.Issued))
		}},
		{name: "add a device", prepare: func(w *world) attempt {
			return once(func() error {
				_, err := w.Book.AddDevice(ctx, "test", registration.NewDevice{ID: "dev-1", Label: "default"})
				return err
			}, w.device("dev-1", registration.StateNew))
		}},
		{name: "add a device with a code", prepare: func(w *world) attempt {
			return once(func() error {
				_, _, err := w.Book.AddDeviceWithCode(ctx, "test", registration.NewDevice{ID: "dev-1", Label: "default"}, registration.NewCode{})
				return err
			}, func() bool {
				return w.count("SELECT COUNT(*) FROM enrollment_codes c JOIN end_entities e ON e.id = c.device WHERE e.id = 'dev-1' AND c.state = 'active'") == 1
			})
		}},
		{name: "import", prepare: func(w *world) attempt {
			rows := []registration.ImportRow{{Line: 2, ID: "dev-1", Label: "default"}, {Line: 3, ID: "dev-2", Label: "default"}}
			for n := range rows {
				code, err := registration.MakeCode()
				w.must(err)
				rows[n].Code = code
			}
			return repeatable(func() error { _, err := w.Book.Import(ctx, "test", rows, nil, false); return err },
				func() bool {
					return w.count("SELECT COUNT(*) FROM end_entities WHERE state = 'new'") == 2 && w.count("SELECT COUNT(*) FROM enrollment_codes") == 2
				})
		}},
		{name: "revoke a device", crl: true, prepare: func(w *world) attempt {
			w.enrolled("dev-1")
			return repeatable(func() error { _, err := w.Book.RevokeDevice(ctx, "test", "dev-1", "keyCompromise"); return err }, w.device("dev-1", registration.StateRevoked))
		}},
		{name: "remove a device", prepare: func(w *world) attempt {
			w.enrolled("dev-1")
			return repeatable(func() error { return w.Book.RemoveDevice(ctx, "test", "dev-1") }, w.device("dev-1", registration.StateHistorical))
		}},
		{name: "suspend a device", prepare: func(w *world) attempt {
			c := w.enrolled("dev-1")
			return repeatable(func() error { _, err := w.Book.SuspendDevice(ctx, "test", "dev-1"); return err }, w.state(c, ca.Held))
		}},
		{name: "resume a device", prepare: func(w *world) attempt {
			c := w.enrolled("dev-1")
			_, err := w.Book.SuspendDevice(ctx, "test", "dev-1")
			w.must(err)
			return repeatable(func() error { _, err := w.Book.ResumeDevice(ctx, "test", "dev-1"); return err }, w.state(c, ca.Issued))
		}},
		{name: "reissue", prepare: reissue},
		{name: "create a code", prepare: createCode},
		{name: "revoke a code", prepare: func(w *world) attempt {
			_, err := w.Book.CreateCode(ctx, "test", "dev-1", "default", 0, nil)
			w.must(err)
			return once(func() error { return w.Book.RevokeCode(ctx, "test", "dev-1") },
				func() bool { return w.count("SELECT COUNT(*) FROM enrollment_codes WHERE state = 'revoked'") == 1 })
		}},
		{name: "add a label", prepare: func(w *world) attempt {
			return once(func() error { _, err := w.Book.AddLabel(ctx, "test", registration.Label{Name: "new"}); return err },
				func() bool { _, err := w.Book.Label(ctx, "new"); return err == nil })
		}},
		{name: "set a label", prepare: func(w *world) attempt {
			return repeatable(func() error {
				_, err := w.Book.SetLabel(ctx, "test", registration.Label{Name: "default", Auth: []string{"code"}})
				return err
			}, func() bool { l, err := w.Book.Label(ctx, "default"); return err == nil && len(l.Auth) == 1 })
		}},
		{name: "remove a label", prepare: func(w *world) attempt {
			_, err := w.Book.AddLabel(ctx, "test", registration.Label{Name: "old"})
			w.must(err)
			return once(func() error { return w.Book.RemoveLabel(ctx, "test", "old") }, func() bool { _, err := w.Book.Label(ctx, "old"); return err != nil })
		}},
		{name: "add a birth CA", prepare: func(w *world) attempt {
			factory := factory(w)
			return repeatable(func() error { _, err := w.Book.AddBirthCA(ctx, "test", "default", factory.PEM()); return err }, w.birthCAs(1))
		}},
		{name: "remove a birth CA", prepare: func(w *world) attempt {
			list, err := w.Book.AddBirthCA(ctx, "test", "default", factory(w).PEM())
			w.must(err)
			return once(func() error { return w.Book.RemoveBirthCA(ctx, "test", "default", list[0].Fingerprint) }, w.birthCAs(0))
		}},
		{name: "add a profile", prepare: func(w *world) attempt {
			source := bytes.Replace(installation.Profiles(w.t)["iot-device.yaml"], []byte("365d"), []byte("30d"), 1)
			return repeatable(func() error { _, err := w.CA.AddProfile(ctx, "test", source); return err }, func() bool {
				p, err := w.CA.Profile(ctx, "iot-device")
				return err == nil && p.Validity() == 30*24*time.Hour && w.count("SELECT COUNT(*) FROM profiles WHERE name = 'iot-device'") == 2
			})
		}},
		{name: "issue a CRL", crl: true, prepare: func(w *world) attempt {
			return repeatable(func() error { _, err := w.CA.IssueCRL(ctx, "test", "devices"); return err },
				func() bool { crl, err := w.CA.CurrentCRL(ctx, "devices"); return err == nil && crl.Number > 1 })
		}},
		{name: "set CRL times", prepare: func(w *world) attempt {
			return repeatable(func() error { _, err := w.CA.SetCRL(ctx, "test", "devices", 24*time.Hour, time.Hour); return err },
				func() bool {
					info, err := w.CA.Get(ctx, "devices")
					return err == nil && info.CRLValidity == 24*time.Hour
				})
		}},
		{name: "create a root", prepare: createCA(ca.CreateRequest{Name: "second"}, ca.Active)},
		{name: "create a CA", crl: true, prepare: createCA(ca.CreateRequest{Name: "second", Parent: "root", Use: "broker"}, ca.Active)},
		{name: "create a CA that waits", prepare: createCA(ca.CreateRequest{Name: "second", External: true}, ca.Waiting)},
		{name: "import a CA", prepare: importCA},
		{name: "roll a CA over", prepare: rollOver("devices", 0)},
		{name: "roll a root over", prepare: rollOver("root", 2)},
		{name: "let a CA take over", prepare: func(w *world) attempt {
			w.must(rollOver("devices", 0)(w).act())
			return repeatable(func() error {
				_, err := w.CA.Activate(ctx, "test", "devices-2", ca.Activation{MoveLabels: w.Book.MoveLabels})
				return err
			}, func() bool {
				l, err := w.Book.Label(ctx, registration.Default)
				return err == nil && l.CA == "devices-2" && w.count("SELECT COUNT(*) FROM authorities WHERE name = 'devices' AND state = 'retiring'") == 1
			})
		}},
		{name: "retire a CA", prepare: func(w *world) attempt {
			w.must(rollOver("devices", 0)(w).act())
			_, err := w.CA.Activate(ctx, "test", "devices-2", ca.Activation{MoveLabels: w.Book.MoveLabels})
			w.must(err)
			return repeatable(func() error { _, err := w.CA.Retire(ctx, "test", "devices", ""); return err }, func() bool {
				info, err := w.CA.Get(ctx, "devices")
				return err == nil && info.State == ca.Retired && info.NextUpdate.Equal(info.Certificate.NotAfter)
			})
		}},
		{name: "sign for another installation", prepare: func(w *world) attempt {
			_, err := w.CA.Create(ctx, "test", ca.CreateRequest{Name: "second", External: true})
			w.must(err)
			csr, err := w.CA.CSR(ctx, "second")
			w.must(err)
			return repeatable(func() error { _, err := w.CA.Sign(ctx, "test", "root", csr, 5); return err },
				func() bool {
					return w.count("SELECT COUNT(*) FROM certificates WHERE requester LIKE 'csr:%' AND state = 'issued'") > 0
				})
		}},
		{name: "take a key offline", prepare: func(w *world) attempt {
			out := filepath.Join(w.t.TempDir(), "root.pem")
			return once(func() error { return w.CA.Offline(ctx, "test", "root", out) },
				func() bool { info, err := w.CA.Get(ctx, "root"); return err == nil && !info.KeyOnline })
		}},
		{name: "add an administrator", prepare: addAdministrator},
		{name: "remove an administrator", prepare: removeAdministrator},
		{name: "acknowledge", prepare: acknowledge},
		{name: "make a canary", prepare: canary},
	}
}

// repeatable is an act that may be done any number of times.
func repeatable(act func() error, done func() bool) attempt { return attempt{act: act, done: done} }

// once is an act whose repeat says that it was done before.
func once(act func() error, done func() bool) attempt {
	return attempt{act: act, done: done, already: func(err error) bool {
		var r *registration.Error
		var c *ca.Error
		var h statusError
		return done() && (errors.As(err, &r) && (r.Kind == registration.Conflict || r.Kind == registration.NotFound || r.Kind == registration.UnknownLabel) ||
			errors.As(err, &c) && (c.Kind == ca.Conflict || c.Kind == ca.NotFound || c.Rule == "ca_key_offline") ||
			errors.As(err, &h) && (h.status == http.StatusConflict || h.status == http.StatusNotFound))
	}}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) count(query string, args ...any) (n int64) {
	w.t.Helper()
	w.must(w.DB.Get(ctx, &n, query, args...))
	return n
}

func (w *world) state(c ca.Certificate, want string) func() bool {
	return func() bool { now, err := w.CA.Certificate(ctx, c.Serial); return err == nil && now.State == want }
}

func (w *world) device(id, want string) func() bool {
	return func() bool { e, err := w.Book.Device(ctx, id); return err == nil && e.State == want }
}

func (w *world) birthCAs(want int) func() bool {
	return func() bool { list, err := w.Book.BirthCAs(ctx, "default"); return err == nil && len(list) == want }
}

// got notes a certificate that a client received.
func (w *world) got(device, credential string, c ca.Certificate, err error) error {
	if err == nil {
		w.received = append(w.received, invariants.Received{Device: device, Credential: credential, Certificate: c.DER})
	} else if len(c.DER) > 0 {
		w.t.Error("a certificate beside an error")
	}
	return err
}

func (w *world) enrolled(device string) ca.Certificate {
	c := w.EnrollByCode(w.t, device, installation.Key(w.t))
	w.must(w.got(device, "code of "+device, c, nil))
	return c
}

func enrollAnother(w *world) error {
	w.enrolled("another")
	return nil
}

func notAuthenticated(err error) bool {
	var typed *registration.Error
	return errors.As(err, &typed) && typed.Kind == registration.NotAuthenticated
}

// oneRight is an enrollment with a credential that is good for one certificate.
func oneRight(w *world, device string, enroll func(*x509.CertificateRequest) (ca.Certificate, error)) attempt {
	first, second := installation.Key(w.t), installation.Key(w.t)
	with := func(key crypto.Signer) error {
		c, err := enroll(installation.CSR(w.t, key, device, nil))
		return w.got(device, "right of "+device, c, err)
	}
	return attempt{
		act: func() error { return with(first) },
		other: func() error {
			taken := w.count("SELECT COUNT(*) FROM certificates WHERE device = ?", device) > 0
			err := with(second)
			switch {
			case taken && !notAuthenticated(err):
				return fmt.Errorf("another key after the right was used up: %v", err)
			case !taken && err != nil:
				return fmt.Errorf("another key while nothing was used up: %w", err)
			}
			if err := with(first); taken && err != nil || !taken && !notAuthenticated(err) {
				return fmt.Errorf("the first key again: %v", err)
			}
			return nil
		},
		done: func() bool {
			return w.count("SELECT COUNT(*) FROM certificates WHERE device = ? AND state = 'issued'", device) == 1
		},
	}
}

func enrollByCode(w *world) attempt {
	code, err := w.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
	w.must(err)
	return oneRight(w, "dev-1", func(csr *x509.CertificateRequest) (ca.Certificate, error) {
		return w.EnrollWith("dev-1", code.Code, csr)
	})
}

func factory(w *world) *testpki.Authority {
	return testpki.Root(w.t, "Factory", testpki.Valid(installation.Start.AddDate(-1, 0, 0), installation.Start.AddDate(20, 0, 0)))
}

func enrollByBirth(w *world) attempt {
	f := factory(w)
	_, err := w.Book.AddBirthCA(ctx, "test", registration.Default, f.PEM())
	w.must(err)
	birth := f.Leaf(w.t, "dev-1", testpki.Valid(installation.Start.AddDate(-1, 0, 0), installation.Start.AddDate(20, 0, 0)))
	return oneRight(w, "dev-1", func(csr *x509.CertificateRequest) (ca.Certificate, error) {
		l, err := w.Book.Label(ctx, registration.Default)
		if err != nil {
			return ca.Certificate{}, err
		}
		r, err := w.Book.CheckBirth(ctx, l, birth.Certificate, nil)
		if err != nil {
			return ca.Certificate{}, err
		}
		return w.Book.Enroll(ctx, r, l, csr, false)
	})
}

// renew: each new key may have its own successor; a repeat gets the same one.
func renew(w *world) attempt {
	old := w.enrolled("dev-1")
	first, second := installation.Key(w.t), installation.Key(w.t)
	with := func(name string, key crypto.Signer) error {
		c, err := w.Renew(w.t, old, installation.CSR(w.t, key, "dev-1", nil))
		return w.got("dev-1", "renewal by the "+name+" key", c, err)
	}
	act := func() error { return with("first", first) }
	return attempt{act: act, other: func() error { return errors.Join(with("second", second), act()) },
		done: func() bool {
			return w.count("SELECT COUNT(*) FROM certificates WHERE renews = ? AND state = 'issued'", old.Serial) == 1
		}}
}

// redeliver: the profile has changed since, so that the request could not be granted any more; its answer is repeated all the same.
func redeliver(w *world) attempt {
	a := enrollByCode(w)
	w.must(a.act())
	_, err := w.Book.SetLabel(ctx, "test", registration.Label{Name: registration.Default, Profile: "iot-device-rsa2048"})
	w.must(err)
	a.other = func() error { return nil } // a device with an EC key gets nothing now
	return a
}

// abandon: what was left intended has ended before it was signed.
func abandon(w *world) attempt {
	a := enrollByCode(w)
	fault.Set(func(name string) fault.Mode {
		if name == "ca.sign" {
			return fault.NotDone
		}
		return fault.None
	})
	if err := a.act(); err == nil {
		w.t.Fatal("signed")
	}
	fault.Set(nil)
	w.Clock.Advance(400 * 24 * time.Hour)
	for _, name := range []string{"root", "devices", "management"} {
		_, err := w.CA.IssueCRL(ctx, "test", name)
		w.must(err)
	}
	return repeatable(func() error { _, _, err := w.CA.Sweep(ctx); return err },
		func() bool { return w.count("SELECT COUNT(*) FROM certificates WHERE state = 'abandoned'") == 1 })
}

func reissue(w *world) attempt {
	w.enrolled("dev-1")
	var code registration.Code
	act := func() (err error) { code, err = w.Book.Reissue(ctx, "test", "dev-1", ""); return err }
	return repeatable(act, func() bool { // the last code that was shown lets it in, once
		c, err := w.EnrollWith("dev-1", code.Code, installation.CSR(w.t, installation.Key(w.t), "dev-1", nil))
		return w.got("dev-1", "code after the reissue", c, err) == nil
	})
}

func createCode(w *world) attempt {
	var code registration.Code
	act := func() (err error) {
		code, err = w.Book.CreateCode(ctx, "test", "dev-1", registration.Default, 0, nil)
		return err
	}
	return repeatable(act, func() bool {
		return w.count("SELECT COUNT(*) FROM enrollment_codes WHERE state = 'active' AND id = ?", code.ID) == 1
	})
}

func createCA(req ca.CreateRequest, state string) func(*world) attempt {
	return func(w *world) attempt {
		done := func() bool { info, err := w.CA.Get(ctx, req.Name); return err == nil && info.State == state }
		a := once(func() error { _, err := w.CA.Create(ctx, "test", req); return err }, done)
		exists := a.already
		a.already = func(err error) bool { // until the next start it may wait for its signature
			var typed *ca.Error
			return exists(err) || errors.As(err, &typed) && typed.Rule == "ca_exists"
		}
		return a
	}
}

// rollOver makes NAME-2, with so many cross certificates.
func rollOver(name string, crosses int) func(*world) attempt {
	return func(w *world) attempt {
		return once(func() error { _, err := w.CA.Rollover(ctx, "test", ca.RolloverRequest{CA: name}); return err }, func() bool {
			info, err := w.CA.Get(ctx, name+"-2")
			return err == nil && info.State == ca.Standby && info.CRLNumber > 0 && len(info.Crosses) == crosses
		})
	}
}

func importCA(w *world) attempt {
	_, err := w.CA.Create(ctx, "test", ca.CreateRequest{Name: "second", External: true, Use: "broker"})
	w.must(err)
	csr, err := w.CA.CSR(ctx, "second")
	w.must(err)
	certificate, err := w.CA.Sign(ctx, "test", "root", csr, 5)
	w.must(err)
	return once(func() error { _, err := w.CA.Import(ctx, "test", "second", certificate, nil); return err },
		func() bool { info, err := w.CA.Get(ctx, "second"); return err == nil && info.State == ca.Active })
}

// statusError is a refusal over HTTP.
type statusError struct {
	status int
	body   string
}

func (e statusError) Error() string { return fmt.Sprint(e.status, " ", e.body) }

// Domain: an HTTP answer is one.
func (e statusError) Domain() {}

func call(h http.Handler, method, path string, in any) (body []byte, err error) {
	content, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	r := httptest.NewRequest(method, path, bytes.NewReader(content))
	r.Header.Set("Content-Type", "application/json")
	r = r.WithContext(admin.WithCaller(r.Context(), admin.Caller{Actor: "admin:test", Role: admin.RoleAdministrator}))
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, r)
	if body, err = io.ReadAll(answer.Body); err == nil && answer.Code/100 != 2 {
		err = statusError{answer.Code, string(body)}
	}
	return body, err
}

func (w *world) admin() http.Handler {
	return admin.New(admin.Config{DB: w.DB, CA: w.CA, Book: w.Book, Clock: w.Clock.Clock(), Log: slog.New(slog.DiscardHandler), PublicURL: "http://pki.example.com:8080", CodeExpires: time.Hour})
}

func newAdministrator(w *world) (act func() error, there func() bool) {
	csr := string(testpki.CSRPEM(testpki.CSR(w.t, installation.Key(w.t), "olga", nil)))
	act = func() error {
		_, err := call(w.admin(), http.MethodPost, admin.Base+"/admins", admin.NewAdministrator{Name: "olga", Role: admin.RoleOperator, CSR: csr})
		return err
	}
	return act, func() bool { return w.count("SELECT COUNT(*) FROM administrators WHERE name = 'olga'") == 1 }
}

func addAdministrator(w *world) attempt {
	act, there := newAdministrator(w)
	return once(act, func() bool {
		return there() && w.count("SELECT COUNT(*) FROM certificates WHERE profile = 'admin' AND state = 'issued'") == 1
	})
}

func removeAdministrator(w *world) attempt {
	add, there := newAdministrator(w)
	w.must(add())
	return once(func() error { _, err := call(w.admin(), http.MethodDelete, admin.Base+"/admins/olga", nil); return err },
		func() bool {
			return !there() && w.count("SELECT COUNT(*) FROM certificates WHERE profile = 'admin' AND state = 'issued'") == 0
		})
}

func (w *world) feed() http.Handler {
	return feed.New(feed.Config{DB: w.DB, CA: w.CA, Book: w.Book, Clock: w.Clock.Clock(), Log: slog.New(slog.DiscardHandler), Stop: make(chan struct{}),
		Identify: func(*http.Request) (ca.Certificate, error) {
			return ca.Certificate{Profile: feed.Profile, Device: "mqtt.example.com"}, nil
		}})
}

func acknowledge(w *world) attempt {
	return repeatable(func() error {
		_, err := call(w.feed(), http.MethodPost, "/bridge/v1/ack", feedapi.Ack{Seq: 1, Broker: "m", VerifiedAt: installation.Start})
		return err
	},
		func() bool { return w.count("SELECT COUNT(*) FROM bridge_acks WHERE seq = 1") == 1 })
}

func canary(w *world) attempt {
	csr := string(testpki.CSRPEM(testpki.CSR(w.t, installation.Key(w.t), "x", nil)))
	return repeatable(func() error {
		_, err := call(w.feed(), http.MethodPost, "/bridge/v1/canary", feedapi.CanaryRequest{Issuer: "devices", CSR: csr, Revoke: true})
		return err
	},
		func() bool {
			return w.count("SELECT COUNT(*) FROM certificates WHERE profile = 'canary' AND state = 'revoked'") > 0
		})
}
