// What the bridge must remember across a restart, in one small file: how far it has read the feed, whom it still
// has to put out, and the last set that a broker was proven to hold.

package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/fault"
)

// State is the content of STATE/state.json. Only the loop changes it.
type State struct {
	Version    int       `json:"version"`
	Since      int64     `json:"since"`    // changes up to here are in Kicks or were no business of ours
	Synced     int64     `json:"synced"`   // changes up to here were there before this bridge: see Kick.Old
	Verified   int64     `json:"verified"` // trust set that the broker was proven to hold
	Whole      int64     `json:"whole"`    // the last of these of which nothing was refused
	VerifiedAt time.Time `json:"verified_at"`
	Good       int       `json:"good"` // generation that was proven, one more with each; 0 for none
	Mark       *Mark     `json:"mark,omitempty"`
	Kicks      []Kick    `json:"kicks"`
}

// Kick is a session to end.
type Kick struct {
	Seq       int64     `json:"seq"` // of the change
	Device    string    `json:"device"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"` // lower-case hex
	Reason    string    `json:"reason"`
	RevokedAt time.Time `json:"revoked_at"`
	Old       bool      `json:"old,omitempty"`     // read while catching up: done only while a CRL lists it, and not measured
	Refused   bool      `json:"refused,omitempty"` // its refusal has been measured
}

// store is the state directory: the file, its lock and the generations beside it.
type store struct {
	dir  string
	lock *os.File
	State
}

const stateVersion = 1

// openStore locks dir, making it if need be. A second bridge on one directory is refused.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(filepath.Join(dir, generationDir), 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("state directory %s: another bridge holds it", dir)
	}
	s := &store{dir: dir, lock: lock}
	if s.State, err = ReadState(dir); err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

// ReadState reads the state of a bridge, running or not. There being none is the zero State.
func ReadState(dir string) (State, error) {
	s := State{Version: stateVersion}
	data, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s/state.json: %w", dir, err)
	}
	if s.Version != stateVersion {
		return s, fmt.Errorf("%s/state.json: version %d, this bridge knows %d", dir, s.Version, stateVersion)
	}
	return s, nil
}

// tidy removes what bridges left that were killed while they wrote; the lock keeps others from writing now.
func (s *store) tidy(broker BrokerConfig) error {
	if err := errors.Join(atomicfile.RemoveLeftovers(s.dir), atomicfile.RemoveLeftovers(filepath.Join(s.dir, generationDir))); err != nil {
		return err
	}
	for _, path := range []string{broker.Bundle, broker.ACLFile, broker.ServicesFile, broker.ServerCertificate} {
		if path == "" {
			continue
		}
		if err := atomicfile.RemoveLeftovers(filepath.Dir(path), filepath.Base(path)); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) close() error { return s.lock.Close() }

// update changes the state on disk first, then in memory: what is on disk is never behind what was acted on.
func (s *store) update(change func(*State)) error {
	next := s.State
	next.Kicks = slices.Clone(s.Kicks)
	change(&next)
	data, err := json.MarshalIndent(next, "", " ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(s.dir, "state.json"), append(data, '\n'), 0o600); err != nil {
		return err
	}
	s.State = next
	return nil
}

// queued reports whether that session is to be ended already.
func (s *store) queued(device, serial string) bool {
	return slices.ContainsFunc(s.Kicks, func(k Kick) bool { return k.Device == device && k.Serial == serial })
}

// approvals are the digests of changes of trust that the operator agreed to.
func (s *store) approvals() func(string) bool {
	data, err := os.ReadFile(filepath.Join(s.dir, approvalFile))
	var list []string
	if err != nil || json.Unmarshal(data, &list) != nil {
		return func(string) bool { return false }
	}
	return func(digest string) bool { return slices.Contains(list, digest) }
}

const approvalFile = "approved.json"

// Approve lets the bridge with that state directory take the one change of trust that digest names.
func Approve(dir, digest string) error {
	data, err := json.Marshal([]string{digest})
	if err != nil {
		return err
	}
	return fault.Step("bridge.approve", func() error {
		return atomicfile.Write(filepath.Join(dir, approvalFile), append(data, '\n'), 0o600)
	})
}
