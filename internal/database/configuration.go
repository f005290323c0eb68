// The number of the configuration: what several packages keep in memory (CAs, profiles, labels, birth CAs) is read anew when it changes.

package database

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// configurationAge is how long a change by another server may go unnoticed. A change by this process is seen at once.
const configurationAge = 100 * time.Millisecond

type configuration struct {
	mu     sync.Mutex
	number int64
	read   time.Time
	epoch  int64 // counts the changes by this process
}

// Configuration returns the number of the configuration, which every TouchConfiguration raises.
func (db *DB) Configuration(ctx context.Context) (int64, error) {
	c := &db.configuration
	c.mu.Lock()
	number, epoch, fresh := c.number, c.epoch, time.Since(c.read) < configurationAge
	c.mu.Unlock()
	if fresh {
		return number, nil
	}
	began := time.Now()
	if err := db.Get(ctx, &number, "SELECT value FROM counters WHERE name = 'configuration'"); err != nil {
		return 0, fmt.Errorf("read configuration number: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch == epoch {
		c.number, c.read = number, began
	}
	return number, nil
}

// TouchConfiguration raises the number of the configuration with this transaction.
func (tx *Tx) TouchConfiguration() error {
	tx.touched = true
	_, err := tx.Exec("UPDATE counters SET value = value + 1 WHERE name = 'configuration'")
	return err
}

// committed makes a touched configuration visible to this process at once.
func (tx *Tx) committed() {
	if !tx.touched {
		return
	}
	c := &tx.db.configuration
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.read = time.Time{}
}
