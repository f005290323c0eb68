// Package instance is a data directory as a whole: what lies where, who has it locked, how its keys are opened, how it
// comes into being and how everything in it is opened for work.
//
// It knows no HTTP and no command line. What it opens it hands out; it does not serve.
//
//	dir.go         the layout
//	lock.go        one process at a time
//	passphrase.go  where the passphrase comes from
//	secret.go      a secret that is not a key, encrypted
//	open.go        Open: settings, database, CAs, registration
//	init.go        Init: a new instance, or the rest of a half-done one
//	names.go       the names of this machine
//	checkpoint.go  signed heads of the audit log
//	epoch.go       what tells an older copy of the database
//	servercert.go  the EST server's own certificate, renewed at two thirds of its life
package instance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Dir is the path of a data directory.
type Dir string

// Path is a path below the directory.
func (d Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// Config is the annotated configuration; its presence says that the instance is complete.
func (d Dir) Config() string { return d.Path("config.yaml") }

// Socket is where a running server answers administration commands.
func (d Dir) Socket() string { return d.Path("admin.sock") }

// Trust is the file with the root that devices pin, PEM.
func (d Dir) Trust() string { return d.Path("trust.pem") }

// Admin is the directory of the first administrator: cert.pem, key.pem, trust.pem.
func (d Dir) Admin() string { return d.Path("admin") }

func (d Dir) passphrase() string { return d.Path("passphrase") }
func (d Dir) marker() string     { return d.Path("init.json") }
func (d Dir) database() string   { return d.Path("est.db") }
func (d Dir) codeKey() string    { return d.Path("keys", "codes.pem") }
func (d Dir) serverCert() string { return d.Path("keys", "est-server.pem") }

// State says what a data directory is.
type State int

// States of a data directory.
const (
	Empty    State = iota // missing, or with nothing in it but a passphrase
	HalfDone              // init was begun and not finished
	Ready                 // a complete instance
	Foreign               // something else
)

// State looks at the directory.
func (d Dir) State() (State, error) {
	for _, known := range []struct {
		path  string
		state State
	}{{d.marker(), HalfDone}, {d.Config(), Ready}} {
		if _, err := os.Lstat(known.path); err == nil {
			return known.state, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return Foreign, err
		}
	}
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, os.ErrNotExist) {
		return Empty, nil
	}
	if err != nil {
		return Foreign, err
	}
	for _, e := range entries {
		switch e.Name() {
		case "passphrase", "lock", "lost+found":
		default:
			return Foreign, nil
		}
	}
	return Empty, nil
}

// makePrivate makes a directory that only its owner enters, whatever the umask.
func makePrivate(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return os.Chmod(path, 0o700)
}

// ErrNotReady is why a directory cannot be opened.
var ErrNotReady = errors.New("not a complete instance")

func (d Dir) requireReady() error {
	state, err := d.State()
	if err != nil {
		return err
	}
	switch state {
	case Ready:
		return nil
	case HalfDone:
		return fmt.Errorf("%s: %w: init was not finished; repeat it", d, ErrNotReady)
	case Empty:
		return fmt.Errorf("%s: %w: it is empty; make one with `est-server init --data %s`, or try out with `est-server run`", d, ErrNotReady, d)
	}
	return fmt.Errorf("%s: %w: it has no config.yaml", d, ErrNotReady)
}
