// Making an instance. Each step looks whether it was done already, so that a crash at any of them is answered by the same
// command once more; config.yaml is written last and says that the instance is complete.

package instance

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/keystore"
	"github.com/natal-pki/natal/configs"
	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/fault"
	"github.com/natal-pki/natal/server/config"
	"github.com/natal-pki/natal/server/registration"
)

// Plan is what a new instance is like. It is kept in DIR/init.json until the instance is complete.
type Plan struct {
	Hosts           []string `json:"hosts"`             // more names of the EST server
	PublicURL       string   `json:"public_url"`        // beginning of CDP and AIA
	ExternalRoot    bool     `json:"external_root"`     // the root is elsewhere: devices and management wait for their certificates
	CRLShards       int      `json:"crl_shards"`        // of devices; 0 = 1
	PassphraseFile  string   `json:"passphrase_file"`   // absolute; "" = not to be written down
	DatabaseURLFile string   `json:"database_url_file"` // absolute; "" = SQLite
	KeyStore        string   `json:"key_store"`         // URI of the token that makes the CAs' keys; "" = files
	CAKey           string   `json:"ca_key"`            // kind of the CAs' keys; "" = ec:P-256
}

// RootCA and DevicesCA are the names of the CAs that a new instance has besides ManagementCA.
const (
	RootCA    = "root"
	DevicesCA = "devices"
)

const actor = "server"

// ErrExists is returned by Init for a directory that must not be touched.
var ErrExists = errors.New("nothing was changed")

// Init makes the instance in o.Dir: keys, CAs, profiles, labels, configuration. The caller holds the directory's lock. What is then
// still missing without a management certificate (server certificate, trust.pem) comes with Complete.
func Init(ctx context.Context, o Options, plan Plan) (*Instance, error) {
	if err := o.Dir.mayInit(plan); err != nil {
		return nil, err
	}
	passphrase, err := o.Dir.readPassphrase(o.PassphraseFile, plan.PassphraseFile)
	if err != nil {
		return nil, err
	}
	state, err := o.Dir.State()
	if err != nil {
		return nil, err
	}
	if state == Empty { // keys of the same names in a token are somebody else's; those of an init that was begun are ours
		if err := plan.checkKeyStore(o.Dir); err != nil {
			return nil, err
		}
	}
	if err := o.Dir.begin(plan); err != nil {
		return nil, err
	}
	for _, sub := range []string{"", "ca", "keys", "admin"} {
		if err := makePrivate(o.Dir.Path(sub)); err != nil {
			return nil, err
		}
	}
	codeKey, err := loadOrMakeSecret(o.Dir.codeKey(), passphrase)
	if err != nil {
		return nil, err
	}
	if err := o.Dir.makeAuditKey(passphrase); err != nil {
		return nil, err
	}
	settings, content, err := plan.settings()
	if err != nil {
		return nil, err
	}
	i, err := open(ctx, o, settings, passphrase, codeKey, database.Open)
	if err != nil {
		return nil, err
	}
	if err := i.populate(ctx, plan, content, state == HalfDone); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

// checkKeyStore tells a token that cannot be used, or holds keys of the CAs' names already, before anything is made.
func (p Plan) checkKeyStore(dir Dir) error {
	if p.KeyStore == "" {
		return nil
	}
	store := keystore.New(string(dir), nil)
	defer store.Close()
	for _, name := range []string{RootCA, DevicesCA, ManagementCA} {
		uri, err := keystore.Sibling(p.KeyStore, name)
		if err != nil {
			return err
		}
		if err := store.Vacant(uri); err != nil {
			return fmt.Errorf("key of CA %s: %w; %w", name, err, ErrExists)
		}
	}
	return nil
}

func (i *Instance) populate(ctx context.Context, plan Plan, configuration []byte, resumed bool) error {
	if _, _, err := i.CA.Sweep(ctx); err != nil {
		return err
	}
	if err := i.addProfiles(ctx); err != nil {
		return err
	}
	if err := i.addCAs(ctx, plan, resumed); err != nil {
		return err
	}
	if err := i.addLabels(ctx); err != nil {
		return err
	}
	if !plan.ExternalRoot {
		if err := i.Complete(ctx); err != nil {
			return err
		}
		if _, err := i.ServerCertificate(ctx); err != nil {
			return err
		}
	}
	return i.Dir.finish(configuration)
}

// mayInit refuses a directory that holds something else, and a half-done instance that was begun with another plan.
func (d Dir) mayInit(plan Plan) error {
	state, err := d.State()
	switch {
	case err != nil:
		return err
	case state == Ready:
		return fmt.Errorf("%s holds an instance already; %w", d, ErrExists)
	case state == Foreign:
		return fmt.Errorf("%s is not empty and holds no instance; %w", d, ErrExists)
	case state == Empty:
		return nil
	}
	content, err := os.ReadFile(d.marker())
	if err != nil {
		return err
	}
	var begun Plan
	if err := json.Unmarshal(content, &begun); err != nil {
		return fmt.Errorf("%s: %w; remove %s and begin again", d.marker(), err, d)
	}
	if !slices.Equal(begun.Hosts, plan.Hosts) || begun.PublicURL != plan.PublicURL || begun.ExternalRoot != plan.ExternalRoot || begun.CRLShards != plan.CRLShards ||
		begun.DatabaseURLFile != plan.DatabaseURLFile || begun.KeyStore != plan.KeyStore || begun.CAKey != plan.CAKey {
		return fmt.Errorf("%s: init was begun with other options (see %s): repeat it with the same, or remove the directory and begin again", d, d.marker())
	}
	return nil
}

// begin writes down the plan.
func (d Dir) begin(plan Plan) error {
	if err := makePrivate(string(d)); err != nil {
		return err
	}
	content, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		return err
	}
	return fault.Step("instance.begin", func() error { return atomicfile.Write(d.marker(), append(content, '\n'), 0o600) })
}

func (d Dir) finish(configuration []byte) error {
	err := fault.Step("instance.config", func() error { return atomicfile.Write(d.Config(), configuration, 0o600) })
	if err != nil {
		return err
	}
	return fault.Step("instance.finish", func() error {
		if err := os.Remove(d.marker()); err != nil {
			return err
		}
		return atomicfile.SyncDir(string(d))
	})
}

// settings is the annotated sample with the plan's values in it, read back.
func (p Plan) settings() (config.Settings, []byte, error) {
	content := configs.Server
	for _, v := range []struct{ line, value string }{
		{"hosts: []", "hosts: " + flowList(p.Hosts)},
		{`public_url: ""`, "public_url: " + strconv.Quote(p.PublicURL)},
		{`passphrase_file: ""`, "passphrase_file: " + strconv.Quote(p.PassphraseFile)},
		{`key_store: ""`, "key_store: " + strconv.Quote(p.KeyStore)},
		{`  url_file: ""`, "  url_file: " + strconv.Quote(p.DatabaseURLFile)},
	} {
		old := []byte("\n" + v.line + "\n")
		if bytes.Count(content, old) != 1 {
			return config.Settings{}, nil, fmt.Errorf("the shipped configuration has not one line %q", v.line)
		}
		content = bytes.Replace(content, old, []byte("\n"+v.value+"\n"), 1)
	}
	settings, err := config.Parse(content)
	return settings, content, err
}

func flowList(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = strconv.Quote(v)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func (i *Instance) addProfiles(ctx context.Context) error {
	files, err := configs.Profiles()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if _, err := i.CA.AddProfile(ctx, actor, files[name]); err != nil {
			return fmt.Errorf("shipped profile %s: %w", name, err)
		}
	}
	return nil
}

func (i *Instance) addCAs(ctx context.Context, plan Plan, resumed bool) error {
	requests := []ca.CreateRequest{
		{Name: RootCA, Subject: "CN=Natal Root CA", Years: 20},
		{Name: DevicesCA, Subject: "CN=Natal Device CA", Years: 10, Use: "broker", Parent: RootCA, Shards: plan.CRLShards},
		{Name: ManagementCA, Subject: "CN=Natal Management CA", Years: 10, Use: "management", Parent: RootCA},
	}
	if plan.ExternalRoot {
		requests = requests[1:]
	}
	for _, r := range requests {
		r.Key, r.PublicURL = cmp.Or(plan.CAKey, "ec:P-256"), plan.PublicURL
		if plan.ExternalRoot {
			r.Parent, r.External = "", true
		}
		info, err := i.CA.Get(ctx, r.Name)
		if err == nil {
			if info.State == ca.Waiting && !r.External {
				return fmt.Errorf("%s: CA %s was left without a certificate by an earlier init: remove the directory and begin again", i.Dir, r.Name)
			}
			continue
		}
		_, err = i.CA.Create(ctx, actor, r)
		if refused := (*ca.Error)(nil); resumed && errors.As(err, &refused) && refused.Rule == "ca_key_exists" { // the token had made it
			r.KeyExists = true
			_, err = i.CA.Create(ctx, actor, r)
		}
		if err != nil {
			return fmt.Errorf("CA %s: %w", r.Name, err)
		}
	}
	return nil
}

func (i *Instance) addLabels(ctx context.Context) error {
	existing, err := i.Book.Labels(ctx)
	if err != nil {
		return err
	}
	for _, l := range []registration.Label{
		{Name: "default", CA: DevicesCA, Profile: "iot-device", Auth: []string{"code", "birth"}},
		{Name: "bridge", CA: ManagementCA, Profile: "bridge", Auth: []string{"code"}},
		{Name: "mqtt-server", CA: ManagementCA, Profile: "mqtt-server", Auth: []string{"bridge"}},
	} {
		if slices.ContainsFunc(existing, func(e registration.Label) bool { return e.Name == l.Name }) {
			continue
		}
		if _, err := i.Book.AddLabel(ctx, actor, l); err != nil {
			return fmt.Errorf("label %s: %w", l.Name, err)
		}
	}
	return nil
}

// Complete writes the files that need the CAs' certificates: DIR/ca/NAME.pem, and DIR/trust.pem with the roots above the management CA, newest first. Called again, it
// brings them up to date.
func (i *Instance) Complete(ctx context.Context) error {
	infos, err := i.CA.List(ctx)
	if err != nil {
		return err
	}
	for _, info := range infos {
		if info.Certificate == nil {
			continue
		}
		if err := keepFile(i.Dir.Path("ca", info.Name+".pem"), encodeCertificate(info.Certificate)); err != nil {
			return err
		}
	}
	if _, err := i.ManagementChain(ctx); err != nil {
		return err
	}
	trust, err := i.CA.Trust(ctx, ManagementCA)
	if err != nil {
		return err
	}
	var roots []byte
	for _, root := range trust.Roots {
		roots = append(roots, encodeCertificate(root)...)
	}
	if len(roots) == 0 {
		return fmt.Errorf("no root of the CA %s is valid", ManagementCA)
	}
	return keepFile(i.Dir.Trust(), roots)
}

// keepFile writes content to path unless it is there already.
func keepFile(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := makePrivate(filepath.Dir(path)); err != nil {
		return err
	}
	return fault.Step("instance.file", func() error { return atomicfile.Write(path, content, 0o600) })
}
