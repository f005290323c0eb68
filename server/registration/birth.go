// Birth CAs: whose birth certificates a label accepts.

package registration

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"

	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
)

// BirthCA is a trust anchor for the birth certificates of one label.
type BirthCA struct {
	Label       string
	Subject     string
	Fingerprint string // SHA-256 of the DER, hex
	Certificate *x509.Certificate
}

func (b *Book) readBirthCAs(ctx context.Context) (map[string]*birthTrust, error) {
	var rows []struct {
		Label       string `db:"label"`
		Certificate []byte `db:"certificate"`
	}
	if err := b.db.Select(ctx, &rows, "SELECT label, certificate FROM birth_cas ORDER BY label, fingerprint"); err != nil {
		return nil, storage("read birth CAs", err)
	}
	trust := map[string]*birthTrust{}
	for _, r := range rows {
		c, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, fmt.Errorf("birth CA of label %s: %w", r.Label, err)
		}
		t := trust[r.Label]
		if t == nil {
			t = &birthTrust{pool: x509.NewCertPool()}
			trust[r.Label] = t
		}
		t.list = append(t.list, newBirthCA(r.Label, c))
		t.pool.AddCert(c)
	}
	return trust, nil
}

func newBirthCA(label string, c *x509.Certificate) BirthCA {
	sum := sha256.Sum256(c.Raw)
	return BirthCA{Label: label, Subject: c.Subject.String(), Fingerprint: hex.EncodeToString(sum[:]), Certificate: c}
}

// AddBirthCA adds every certificate of a PEM file to a label's birth CAs, all or none. What is not a CA certificate is refused: a trusted leaf would let
// its holder name devices.
func (b *Book) AddBirthCA(ctx context.Context, actor, label string, data []byte) ([]BirthCA, error) {
	if _, err := b.Label(ctx, label); err != nil {
		return nil, err
	}
	var list []BirthCA
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, refuse(Invalid, "birth_ca", "the file holds a %s: want certificates only", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, &Error{Kind: Invalid, Reason: "birth_ca", Detail: fmt.Sprintf("certificate %d of the file cannot be read", len(list)+1), Err: err}
		}
		if err := b.checkBirthCA(ctx, c); err != nil {
			return nil, err
		}
		list = append(list, newBirthCA(label, c))
	}
	if len(list) == 0 {
		return nil, refuse(Invalid, "birth_ca", "there is no certificate in the file (want PEM)")
	}
	err := b.db.Write(ctx, "registration.birth_ca", func(tx *database.Tx) error {
		for _, birth := range list {
			if _, err := tx.Exec("DELETE FROM birth_cas WHERE label = ? AND fingerprint = ?", label, birth.Fingerprint); err != nil {
				return err
			}
			if _, err := tx.Exec("INSERT INTO birth_cas (label, fingerprint, subject, certificate, added_at) VALUES (?, ?, ?, ?, ?)", label, birth.Fingerprint, birth.Subject, birth.Certificate.Raw, b.clock.Now().UnixMilli()); err != nil {
				return err
			}
			if err := b.append(tx, audit.Entry{Actor: actor, Action: "birth_ca_added", Object: label, Detail: map[string]string{"subject": birth.Subject, "fingerprint": birth.Fingerprint}}); err != nil {
				return err
			}
		}
		return tx.TouchConfiguration()
	})
	return list, storage("store birth CA", err)
}

func (b *Book) checkBirthCA(ctx context.Context, c *x509.Certificate) error {
	now := b.clock.Now()
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return refuse(Invalid, "birth_ca", "%s is not a CA certificate", c.Subject)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return refuse(Invalid, "birth_ca", "%s may not sign certificates", c.Subject)
	case now.After(c.NotAfter):
		return refuse(Invalid, "birth_ca", "%s expired on %s", c.Subject, c.NotAfter.Format("2006-01-02"))
	}
	own, err := b.ca.List(ctx)
	if err != nil {
		return err
	}
	for _, info := range own {
		if info.Certificate != nil && info.Use != profile.UseBirth && info.Certificate.Equal(c) {
			return refuse(Conflict, "birth_ca", "%s is this installation's CA %q for use %s: its certificates are no birth certificates", c.Subject, info.Name, info.Use)
		}
	}
	return nil
}

// BirthCAs lists the birth CAs of a label, or of all labels for "".
func (b *Book) BirthCAs(ctx context.Context, label string) ([]BirthCA, error) {
	c, err := b.current(ctx)
	if err != nil {
		return nil, err
	}
	list := []BirthCA{}
	for name, trust := range c.birth {
		if label == "" || label == name {
			list = append(list, trust.list...)
		}
	}
	return list, nil
}

// RemoveBirthCA takes a birth CA from a label; from then on its birth certificates are refused there.
func (b *Book) RemoveBirthCA(ctx context.Context, actor, label, fingerprint string) error {
	err := b.db.Write(ctx, "registration.birth_ca_remove", func(tx *database.Tx) error {
		rows, err := tx.Exec("DELETE FROM birth_cas WHERE label = ? AND fingerprint = ?", label, fingerprint)
		if err != nil {
			return err
		}
		if rows == 0 {
			return refuse(NotFound, "unknown_birth_ca", "label %q has no birth CA %s", label, fingerprint)
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		return b.append(tx, audit.Entry{Actor: actor, Action: "birth_ca_removed", Object: label, Detail: map[string]string{"fingerprint": fingerprint}})
	})
	return storage("remove birth CA", err)
}
