// The life of a CA: create, bind to a use, take its key offline.

package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

// States of a CA.
const (
	Waiting  = "waiting"  // it has a key and no certificate yet
	Standby  = "standby"  // it will take over from another: trusted already, issues nothing yet
	Active   = "active"   // it issues
	Retiring = "retiring" // another one has taken over: it signs CRLs as long as its certificates live
	Retired  = "retired"  // trusted no more; it has signed its last CRL
)

// UseRoot marks a CA that signs CAs only. The other uses are those of profiles.
const UseRoot = "root"

const requesterAuthority = "authority"

// CreateRequest describes a CA to be made.
type CreateRequest struct {
	Name        string
	Subject     string // "CN=devices,O=Example,C=DE"; empty: CN=NAME
	Key         string // key spec; empty: ec:P-256
	KeyURI      string // where the key is made; empty: where the keys of this installation are
	KeyExists   bool   // the key was made before, in a key ceremony
	Parent      string // name of the CA that signs it; empty with External false: a root
	External    bool   // another PKI signs it: it waits for Import
	PublicURL   string // "http://pki.example.com:8080"
	Years       int    // validity; 0: 10, or 20 for a root
	Profile     string // of use ca; empty: pathlen 0 (a root has none), keyCertSign and cRLSign
	Use         string // "" : bound by the first label
	CRLValidity time.Duration
	CRLInterval time.Duration
	Shards      int // how many CRLs its certificates are spread over, 1 to MaxShards; 0: 1. Fixed for ever

	replaces *authority // the CA that it takes over from
}

type authorityRow struct {
	Name        string `db:"name"`
	Subject     string `db:"subject"`
	Parent      string `db:"parent"`
	State       string `db:"state"`
	KeySpec     string `db:"key_spec"`
	KeyURI      string `db:"key_uri"`
	Use         string `db:"profile_use"`
	PublicURL   string `db:"public_url"`
	CSR         []byte `db:"csr"`
	Certificate []byte `db:"certificate"`
	Chain       []byte `db:"chain"` // DER certificates, one after the other
	CRLValidity int64  `db:"crl_validity"`
	CRLInterval int64  `db:"crl_interval"`
	CRLNumber   int64  `db:"crl_number"` // the highest that was ever reserved
	Shards      int64  `db:"shards"`     // of its CRL; fixed for ever
	Replaces    string `db:"replaces"`   // name of the CA that it takes over from; "" if none
	Crosses     []byte `db:"crosses"`    // DER certificates that link a new root and the one it replaces, one after the other
	CreatedAt   int64  `db:"created_at"`
}

const authorityColumns = "name, subject, parent, state, key_spec, key_uri, profile_use, public_url, csr, certificate, chain, crl_validity, crl_interval, crl_number, shards, replaces, crosses, created_at"

func newAuthority(r authorityRow) (*authority, error) {
	au := &authority{row: r}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, err
	}
	au.public = csr.PublicKey
	if au.crosses, err = x509.ParseCertificates(r.Crosses); err != nil || r.Certificate == nil {
		return au, err
	}
	if au.certificate, err = x509.ParseCertificate(r.Certificate); err != nil {
		return nil, err
	}
	au.chain, err = x509.ParseCertificates(r.Chain)
	return au, err
}

func (au *authority) mayIssue() error {
	switch au.row.State {
	case Active:
		return nil
	case Waiting:
		return refuse(Unavailable, "ca_waiting", "CA %q waits for its certificate", au.row.Name)
	}
	return refuse(Unavailable, "ca_not_active", "CA %q is %s", au.row.Name, au.row.State)
}

// inForce tells whether the CA signs CRLs and what else it needs for its own work, and is in the trust stores.
func (au *authority) inForce() bool {
	return slices.Contains([]string{Standby, Active, Retiring}, au.row.State)
}

// reservedNames are those of the secrets that lie beside the CAs' keys, besides all that begin with ocspPrefix.
var reservedNames = []string{"audit", "codes", "est-server"}

const ocspPrefix = "ocsp-"

var authorityName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (req *CreateRequest) complete(parent *authority) error {
	if !authorityName.MatchString(req.Name) || slices.Contains(reservedNames, strings.ToLower(req.Name)) || strings.HasPrefix(strings.ToLower(req.Name), ocspPrefix) {
		return refuse(Invalid, "ca_name", "a CA's name matches %s, does not begin with %s and is none of %s", authorityName, ocspPrefix, strings.Join(reservedNames, ", "))
	}
	if req.Key == "" && !req.KeyExists {
		req.Key = "ec:P-256"
	}
	if !req.KeyExists && !slices.Contains(keystore.Specs, req.Key) {
		return refuse(Invalid, "ca_key", "key %q is not one of %s", req.Key, strings.Join(keystore.Specs, ", "))
	}
	if req.Subject == "" {
		req.Subject = "CN=" + req.Name
	}
	if req.External && req.Parent != "" {
		return refuse(Invalid, "ca_parent", "a CA is signed by a parent here or by an external one, not both")
	}
	isRoot := parent == nil && !req.External
	if isRoot {
		req.Use = UseRoot
	}
	if !slices.Contains([]string{"", UseRoot, profile.UseBroker, profile.UseBirth, profile.UseManagement}, req.Use) {
		return refuse(Invalid, "ca_use", "use %q is not broker, birth or management", req.Use)
	}
	if req.Years == 0 {
		req.Years = 10
		if isRoot {
			req.Years = 20
		}
	}
	if req.Years < 1 || req.Years > 40 {
		return refuse(Invalid, "ca_years", "a CA lives 1 to 40 years, not %d", req.Years)
	}
	day := 24 * time.Hour
	if req.CRLValidity == 0 {
		req.CRLValidity = 7 * day
		if isRoot {
			req.CRLValidity = 365 * day
		}
	}
	if req.CRLInterval == 0 {
		req.CRLInterval = min(time.Hour, req.CRLValidity/4)
		if isRoot {
			req.CRLInterval = 7 * day
		}
	}
	if err := req.checkShards(isRoot); err != nil {
		return err
	}
	return checkCRLTimes(req.CRLValidity, req.CRLInterval)
}

func checkCRLTimes(validity, interval time.Duration) error {
	if validity < time.Hour || validity > 366*24*time.Hour {
		return refuse(Invalid, "crl_validity", "a CRL is valid for 1h to 366d, not %v", validity)
	}
	if interval < time.Minute || interval > validity/2 {
		return refuse(Invalid, "crl_interval", "a CRL valid for %v is reissued every 1m to %v, not %v", validity, validity/2, interval)
	}
	return nil
}

// Create makes a CA with a key of its own: a root, a CA under Parent, or one that waits for an external parent's signature.
func (a *Authorities) Create(ctx context.Context, actor string, req CreateRequest) (Info, error) {
	var parent *authority
	if req.Parent != "" {
		var err error
		if parent, err = a.authority(ctx, req.Parent); err != nil {
			return Info{}, err
		}
		if err := parent.mayIssue(); err != nil {
			return Info{}, err
		}
		if _, err := a.signer(parent); err != nil {
			return Info{}, err
		}
	}
	prof, err := a.caProfile(ctx, req.Profile, req.Years)
	if err != nil {
		return Info{}, err
	}
	if err := req.complete(parent); err != nil {
		return Info{}, err
	}
	if err := fits(prof, &req); err != nil {
		return Info{}, err
	}
	subject, err := parseSubject(req.Subject)
	if err != nil {
		return Info{}, refuse(Invalid, "ca_subject", "%v", err)
	}
	a.createMu.Lock() // two of one name would write one key file
	defer a.createMu.Unlock()
	if _, err := a.authority(ctx, req.Name); err == nil {
		return Info{}, refuse(Conflict, "ca_exists", "CA %q exists", req.Name)
	}
	if err := a.checkClock(ctx); err != nil {
		return Info{}, err
	}
	if err := a.checkSubject(req.replaces, subject.String()); err != nil {
		return Info{}, err
	}
	now := a.clock.Now()
	row := authorityRow{
		Name: req.Name, Subject: subject.String(), Parent: req.Parent, State: Waiting, Use: req.Use,
		PublicURL: strings.TrimRight(req.PublicURL, "/"), CRLValidity: req.CRLValidity.Milliseconds(), CRLInterval: req.CRLInterval.Milliseconds(), Shards: int64(req.Shards), CreatedAt: now.UnixMilli(),
	}
	if err := row.replace(req.replaces); err != nil {
		return Info{}, err
	}
	key, spec, uri, err := a.makeKey(req, row.KeyURI)
	if err != nil {
		return Info{}, err
	}
	row.KeySpec, row.KeyURI = spec, uri
	if row.CSR, err = certificateRequest(key, subject); err != nil {
		return Info{}, err
	}
	au := parent
	if parent == nil {
		au = &authority{row: row, public: key.Public()} // a root signs itself
	}
	var certificates []*prepared
	if !req.External {
		p, err := a.prepareCA(au, subject, key.Public(), req.Years, parent == nil, prof)
		if err != nil {
			return Info{}, err
		}
		p.row.Requester, p.row.Claim = row.Name, "authority/"+row.Name
		certificates = append(certificates, p)
		if parent == nil && req.replaces != nil {
			crosses, err := a.prepareCrosses(req.replaces, row, p)
			if err != nil {
				return Info{}, err
			}
			certificates = append(certificates, crosses...)
		}
	}
	ctx = context.WithoutCancel(ctx)
	if err := a.recordCA(ctx, actor, &row, certificates); err != nil {
		return Info{}, err
	}
	for _, p := range certificates {
		if _, err := a.complete(ctx, p.au, &p.row); err != nil {
			return Info{}, err
		}
	}
	if len(certificates) > 0 {
		if err := a.afterActivation(ctx, row.Name); err != nil {
			return Info{}, err
		}
	}
	return a.Get(ctx, req.Name)
}

// recordCA stores a new CA and, in the same transaction, the certificates it is about to get, if it is signed here: what a crash leaves then
// is finished by Sweep.
func (a *Authorities) recordCA(ctx context.Context, actor string, row *authorityRow, certificates []*prepared) error {
	err := a.db.Write(ctx, "ca.create", func(tx *database.Tx) error {
		_, err := tx.Exec("INSERT INTO authorities ("+authorityColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			row.Name, row.Subject, row.Parent, row.State, row.KeySpec, row.KeyURI, row.Use, row.PublicURL, row.CSR, nil, nil, row.CRLValidity, row.CRLInterval, 0, row.Shards, row.Replaces, nil, row.CreatedAt)
		if database.IsUnique(err) {
			return refuse(Conflict, "ca_exists", "CA %q exists", row.Name)
		}
		if err != nil {
			return err
		}
		if err := tx.TouchConfiguration(); err != nil {
			return err
		}
		if err := a.append(tx, audit.Entry{Actor: actor, Action: "ca_created", Object: row.Name, Detail: map[string]string{"subject": row.Subject, "key": row.KeySpec, "parent": row.Parent, "replaces": row.Replaces}}); err != nil {
			return err
		}
		for _, p := range certificates {
			if err := a.intend(tx, &p.row, actor); err != nil {
				return err
			}
		}
		return nil
	})
	return passThrough("record CA", err)
}

// activate stores the certificate of the CA name, in the transaction that stores the certificate itself. For a certificate that was signed for
// a CA of another installation (ca sign) there is nothing to do. A CA that takes over from another one stands by until Activate.
func (a *Authorities) activate(tx *database.Tx, name string, der []byte, issuer *authority) error {
	if root, ok := strings.CutPrefix(name, crossOf); ok {
		return a.addCross(tx, root, der)
	}
	var chain []byte
	if name != issuer.row.Name {
		chain = slices.Concat(issuer.row.Certificate, issuer.row.Chain)
	}
	rows, err := tx.Exec("UPDATE authorities SET certificate = ?, chain = ?, state = "+firstState+" WHERE name = ? AND state = 'waiting'", der, chain, name)
	if err != nil || rows == 0 {
		return err
	}
	return tx.TouchConfiguration()
}

// firstState is the state of a CA that gets its certificate.
const firstState = "CASE WHEN replaces = '' THEN 'active' ELSE 'standby' END"

// afterActivation publishes the first, empty CRL: a broker needs it beside the CA.
func (a *Authorities) afterActivation(ctx context.Context, name string) error {
	if err := a.current(ctx); err != nil {
		return err
	}
	_, err := a.IssueCRL(ctx, "server", name)
	return err
}

// Offline publishes a last CRL, writes the CA's encrypted key to the file out and removes it from this machine. What failed half-way is
// done by calling it again with the same file.
func (a *Authorities) Offline(ctx context.Context, actor, name, out string) error {
	au, err := a.authority(ctx, name)
	if err != nil {
		return err
	}
	if !keystore.IsFile(au.row.KeyURI) {
		return refuse(Conflict, ruleKeyCaptive, "the key of CA %q is in a token and cannot leave it: to take it offline, disconnect the token (%s)", name, keystore.Shown(au.row.KeyURI))
	}
	if _, err := a.signer(au); err != nil {
		return err
	}
	if au.inForce() {
		if _, err := a.IssueCRL(ctx, actor, name); err != nil {
			return err
		}
	}
	if err := a.store.Export(au.row.KeyURI, out); err != nil {
		return &Error{Kind: Conflict, Rule: "ca_key_export", Detail: err.Error(), Err: err}
	}
	err = a.db.Write(ctx, "ca.offline", func(tx *database.Tx) error {
		return a.append(tx, audit.Entry{Actor: actor, Action: "ca_key_offline", Object: name})
	})
	if err != nil {
		return unavailable("record offline key", err)
	}
	err = a.store.Remove(au.row.KeyURI)
	a.forgetKey(au.row.KeyURI)
	if err != nil {
		return &Error{Kind: Unavailable, Rule: "ca_key_remove", Detail: fmt.Sprintf("the key of CA %q was copied, but may still be here", name), Err: err}
	}
	return nil
}

// BindUse fixes what a CA issues for, in the transaction of the label that binds it first.
func (a *Authorities) BindUse(tx *database.Tx, name, use string) error {
	if use == profile.UseOCSP || use == profile.UseCA {
		return refuse(Invalid, "ca_use", "no label has a profile for use %s", use)
	}
	var row struct {
		Use   string `db:"profile_use"`
		State string `db:"state"`
	}
	err := tx.Get(&row, "SELECT profile_use, state FROM authorities WHERE name = ?", name)
	if isNoRows(err) {
		return refuse(NotFound, "unknown_ca", "there is no CA %q", name)
	}
	if err != nil {
		return err
	}
	switch row.Use {
	case use:
		return nil
	case "":
	default:
		return refuse(Conflict, "ca_use", "CA %q issues for use %s; a profile for use %s needs another CA", name, row.Use, use)
	}
	// A successor that was made before is bound with it: unbound, brokers would not learn of it before it takes over.
	if _, err := tx.Exec("UPDATE authorities SET profile_use = ? WHERE (name = ? OR replaces = ?) AND profile_use = ''", use, name, name); err != nil {
		return err
	}
	if use == profile.UseBroker && (row.State == Standby || row.State == Active || row.State == Retiring) {
		a.changes.Append(tx, feedapi.Change{At: a.clock.Now(), Kind: feedapi.TrustSetChanged})
	}
	return tx.TouchConfiguration()
}
