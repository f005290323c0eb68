// DIR/epoch.json remembers how far the audit log has come. It is written after what it tells of is durable, so it may be behind the
// database and never ahead of it: a database that lacks what it remembers is an older copy that was put back, and using it would give
// serial numbers, CRL numbers and audit entries out a second time. The operator has to state the restore first (INV-21).

package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/audit"
	"github.com/natal-pki/natal/internal/fault"
)

// rememberEvery is how often a server that runs writes down the head, if it is another one.
const rememberEvery = 5 * time.Second

// ErrReplaced is returned for a database that is older than what the directory remembers.
var ErrReplaced = errors.New("the database is an older copy")

// memory is DIR/epoch.json.
type memory struct {
	Epoch    int64  `json:"epoch"`
	Seq      int64  `json:"seq"`
	Hash     string `json:"hash"`
	Unstated bool   `json:"unstated,omitempty"` // files of a backup were put here, and the restore has not been stated yet
}

func (d Dir) epoch() string { return d.Path("epoch.json") }

func (d Dir) recall() (memory, error) {
	var m memory
	content, err := os.ReadFile(d.epoch())
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return m, fmt.Errorf("%s: %w", d.epoch(), err)
	}
	return m, nil
}

func (d Dir) remember(m memory) error {
	content, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return fault.Step("instance.epoch", func() error { return atomicfile.Write(d.epoch(), append(content, '\n'), 0o600) })
}

// checkHead refuses a database that is older than what the directory remembers.
func (i *Instance) checkHead(ctx context.Context) error {
	m, err := i.Dir.recall()
	if err != nil || m == (memory{}) {
		return err
	}
	now, err := audit.Current(ctx, i.DB)
	if err != nil {
		return err
	}
	there, err := audit.Contains(ctx, i.DB, audit.Head{Seq: m.Seq, Hash: m.Hash})
	if err != nil {
		return err
	}
	switch {
	case m.Unstated:
		return i.replaced("the files of a backup were put here, and nobody has stated the restore yet")
	case now.Epoch < m.Epoch:
		return i.replaced(fmt.Sprintf("its epoch is %d, and epoch %d has begun already", now.Epoch, m.Epoch))
	case now.Epoch == m.Epoch && !there:
		return i.replaced(fmt.Sprintf("its audit log ends with entry %d and lacks entry %d as it was", now.Seq, m.Seq))
	}
	return nil
}

func (i *Instance) replaced(why string) error {
	return fmt.Errorf("%s: %w: %s; nothing is served, so that no number is used twice: state the restore with `est-server restore --in-place --data %s`, and --crl FILE with a newer CRL", i.Dir, ErrReplaced, why, i.Dir)
}

// rememberHead brings DIR/epoch.json up to the database, after looking that the database is still the one it tells of.
func (i *Instance) rememberHead(ctx context.Context) error {
	i.memoryMu.Lock()
	defer i.memoryMu.Unlock()
	if err := i.checkHead(ctx); err != nil {
		return err
	}
	head, err := audit.Current(ctx, i.DB)
	if err != nil {
		return err
	}
	m := memory{Epoch: head.Epoch, Seq: head.Seq, Hash: head.Hash}
	if old, err := i.Dir.recall(); err != nil || old == m || m.Seq == 0 {
		return err
	}
	return i.Dir.remember(m)
}

// KeepRecord remembers the head of the audit log, and signs it once a day, until ctx ends. It returns an error only when the database was
// replaced by an older copy under the running server, which must not go on then.
func (i *Instance) KeepRecord(ctx context.Context) error {
	tick := time.NewTicker(rememberEvery)
	defer tick.Stop()
	for failing := false; ; {
		err := errors.Join(i.rememberHead(ctx), i.Checkpoint(ctx))
		if errors.Is(err, ErrReplaced) {
			return err
		}
		if err != nil && !failing && ctx.Err() == nil {
			i.Log.Error("head of the audit log not kept", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// keepLastHead is rememberHead at the end, when a failure harms nothing.
func (i *Instance) keepLastHead() {
	ctx, cancel := context.WithTimeout(context.Background(), rememberEvery)
	defer cancel()
	if i.DB.Healthy() != nil {
		return
	}
	if err := i.rememberHead(ctx); err != nil {
		i.Log.Warn("head of the audit log not kept", "error", err)
	}
}
