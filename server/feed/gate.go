// The gate before a CA takes over: every registered bridge has said that its brokers hold it. A broker that did not know the new CA would refuse
// each device from its first renewal on.

package feed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
	"github.com/natal-pki/natal/internal/database"
)

// Behind tells which registered bridges have not acknowledged a trust set that holds the CA, and why, a line each. Registered are the end entities
// of profile bridge that are in force, and others, the names of further ones. There are none for a CA that no broker has to know.
func Behind(ctx context.Context, db *database.DB, authorities *ca.Authorities, info ca.Info, others []string) ([]string, error) {
	id, err := heldID(ctx, authorities, info)
	if err != nil || id == "" {
		return nil, err
	}
	var bridges []string
	// A bridge without a certificate that counts has been revoked or removed. One whose certificate has ended still leaves a broker behind.
	err = db.Select(ctx, &bridges, `SELECT e.id FROM end_entities e JOIN labels l ON l.name = e.label WHERE l.profile = ? AND e.state = 'generated' AND e.suspended_at = 0
		AND EXISTS (SELECT 1 FROM certificates c WHERE c.device = e.id AND c.profile = ? AND c.state = 'issued')`, Profile, Profile)
	if err != nil {
		return nil, err
	}
	bridges = append(bridges, others...)
	slices.Sort(bridges)
	var acks []struct {
		Bridge string `db:"bridge"`
		Broker string `db:"broker"`
		Holds  string `db:"holds"`
		Error  string `db:"error"`
		At     int64  `db:"at"`
	}
	if err := db.Select(ctx, &acks, "SELECT bridge, broker, holds, error, at FROM bridge_acks ORDER BY bridge, broker"); err != nil {
		return nil, err
	}
	behind := []string{}
	for _, bridge := range slices.Compact(bridges) {
		known := false
		for _, ack := range acks {
			if ack.Bridge != bridge {
				continue
			}
			known = true
			var holds []string
			if err := json.Unmarshal([]byte(ack.Holds), &holds); err != nil || !slices.Contains(holds, id) {
				text := bridge + " (broker " + ack.Broker + ", last heard of at " + time.UnixMilli(ack.At).UTC().Format(time.RFC3339)
				if ack.Error != "" {
					text += ": " + ack.Error
				}
				behind = append(behind, text+")")
			}
		}
		if !known {
			behind = append(behind, bridge+" (has never acknowledged anything)")
		}
	}
	return behind, nil
}

// heldID is how an acknowledgement names the CA: an issuing CA by its key identifier, a root by the SHA-256 of its certificate. Empty: brokers have
// no use for it.
func heldID(ctx context.Context, authorities *ca.Authorities, info ca.Info) (string, error) {
	switch {
	case info.Certificate == nil:
		return "", nil
	case info.Use == profile.UseBroker:
		return hex.EncodeToString(info.Certificate.SubjectKeyId), nil
	case info.Use != ca.UseRoot:
		return "", nil
	}
	list, err := authorities.List(ctx)
	if err != nil {
		return "", err
	}
	for _, other := range list {
		if other.Use != profile.UseBroker || !slices.Contains(trusted, other.State) {
			continue
		}
		trust, err := authorities.Trust(ctx, other.Name)
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(trust.Roots, info.Certificate.Equal) {
			sum := sha256.Sum256(info.Certificate.Raw)
			return hex.EncodeToString(sum[:]), nil
		}
	}
	return "", nil
}
