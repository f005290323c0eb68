// Acknowledgements: what each bridge says its brokers were proven to hold, and how late that is.

package feed

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/internal/feedapi"
)

var brokerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

const maxErrorText = 500

func (f *Feed) postAck(w http.ResponseWriter, r *http.Request, bridge string) error {
	var ack feedapi.Ack
	if err := json.NewDecoder(r.Body).Decode(&ack); err != nil {
		return badRequest("invalid", "the body is not an acknowledgement")
	}
	newest, err := f.changes.Seq(r.Context())
	if err != nil {
		return err
	}
	switch {
	case !brokerName.MatchString(ack.Broker):
		return badRequest("invalid", "broker: a name of letters, digits, . _ - is needed")
	case ack.Seq < 0 || ack.Seq > newest:
		return badRequest("invalid", "seq: there is no such trust set")
	}
	text := strings.ToValidUTF8(strings.ReplaceAll(ack.Error, "\x00", "?"), "?") // PostgreSQL takes no zero octets
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "")
	}
	verified := int64(0)
	if !ack.VerifiedAt.IsZero() {
		verified = ack.VerifiedAt.UnixMilli()
	}
	holds, err := json.Marshal(ack.Holds)
	if err != nil {
		return err
	}
	now := f.cfg.Clock.Now()
	err = f.cfg.DB.Write(r.Context(), "feed.ack", func(tx *database.Tx) error {
		_, err := tx.Exec(`INSERT INTO bridge_acks (bridge, broker, seq, verified_at, error, holds, at) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (bridge, broker) DO UPDATE SET seq = excluded.seq, verified_at = excluded.verified_at, error = excluded.error, holds = excluded.holds, at = excluded.at`,
			bridge, ack.Broker, ack.Seq, verified, text, string(holds), now.UnixMilli())
		return err
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// Progress is how far a bridge has brought one broker.
type Progress struct {
	Bridge, Broker string
	Seq            int64     // trust set that the broker was proven to hold
	VerifiedAt     time.Time // zero: never
	At             time.Time // of the last acknowledgement
	Error          string
	Lag            time.Duration // age of the oldest trust set that the broker lacks; 0 when it has the newest
}

// Bridges lists what bridges have said last.
func Bridges(ctx context.Context, db *database.DB, now time.Time) ([]Progress, error) {
	var rows []struct {
		Bridge     string `db:"bridge"`
		Broker     string `db:"broker"`
		Seq        int64  `db:"seq"`
		VerifiedAt int64  `db:"verified_at"`
		Error      string `db:"error"`
		At         int64  `db:"at"`
		Missing    int64  `db:"missing"`
	}
	err := db.Select(ctx, &rows, `SELECT b.bridge, b.broker, b.seq, b.verified_at, b.error, b.at,
		COALESCE((SELECT MIN(c.at) FROM changes c WHERE c.kind = 'trust_set' AND c.seq > b.seq), 0) AS missing
		FROM bridge_acks b ORDER BY b.bridge, b.broker`)
	if err != nil {
		return nil, err
	}
	out := make([]Progress, 0, len(rows))
	for _, row := range rows {
		p := Progress{Bridge: row.Bridge, Broker: row.Broker, Seq: row.Seq, At: time.UnixMilli(row.At).UTC(), Error: row.Error}
		if row.VerifiedAt != 0 {
			p.VerifiedAt = time.UnixMilli(row.VerifiedAt).UTC()
		}
		if row.Missing != 0 {
			p.Lag = max(0, now.Sub(time.UnixMilli(row.Missing)))
		}
		out = append(out, p)
	}
	return out, nil
}
