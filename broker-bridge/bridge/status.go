// What `broker-bridge status` and the health paths show. The loop writes it after each step; everybody may read it.

package bridge

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Status is the state of a bridge as others see it.
type Status struct {
	Server     string    `json:"server"`
	Broker     string    `json:"broker"`
	Running    bool      `json:"running"` // false: read from the state file
	Ready      bool      `json:"ready"`   // the broker was proven to hold the newest set that the server offered
	FetchedSeq int64     `json:"fetched_seq"`
	Verified   int64     `json:"verified_seq"`
	VerifiedAt time.Time `json:"verified_at"`
	Devices    int       `json:"devices"`
	Pending    int       `json:"kicks_pending"`
	Refusals   []string  `json:"refusals"`           // why parts of the newest set, or all of it, are not in place: "code: detail"
	Approval   string    `json:"approval,omitempty"` // digest to give to `broker-bridge approve`
	Failing    []Failing `json:"failing"`
	CRLs       []CRLInfo `json:"crls"`
}

// Failing is a task that did not work the last time.
type Failing struct {
	Task  string `json:"task"`
	Error string `json:"error"`
}

// CRLInfo is a CRL that the broker was proven to hold.
type CRLInfo struct {
	Issuer     string    `json:"issuer"`
	Number     int64     `json:"number"`
	NextUpdate time.Time `json:"next_update"`
	Entries    int       `json:"entries"`
}

type statusBox struct {
	mu sync.Mutex
	Status
}

// Status returns what the loop said last.
func (b *Bridge) Status() Status {
	b.status.mu.Lock()
	defer b.status.mu.Unlock()
	return b.status.Status
}

func (b *Bridge) publishStatus() {
	s := Status{
		Server: b.conf.Server, Broker: b.conf.Broker.Name, Running: true,
		Ready:    b.held && b.loaded != nil && len(b.problems()) == 0 && b.set != nil && b.store.Verified == b.set.Seq,
		Verified: b.store.Verified, VerifiedAt: b.store.VerifiedAt, Devices: len(b.devices), Pending: len(b.store.Kicks),
		Refusals: b.problems(), Approval: b.approval(), Failing: []Failing{}, CRLs: []CRLInfo{},
	}
	if b.set != nil {
		s.FetchedSeq = b.set.Seq
	}
	for _, task := range []string{taskDevices, taskChanges, taskTrustSet, taskBroker, taskKicks} {
		if f, ok := b.broken.tasks[task]; ok {
			s.Failing = append(s.Failing, Failing{task, f.text})
		}
	}
	if b.current != nil {
		for _, i := range b.current.Issuers {
			s.CRLs = append(s.CRLs, CRLInfo{i.Name, i.number(), i.nextUpdate(), i.entries()})
		}
	}
	b.status.mu.Lock()
	b.status.Status = s
	b.status.mu.Unlock()
}

// StatusOf is what the state directory tells about a bridge that does not run.
func StatusOf(conf *Config) (Status, error) {
	st, err := ReadState(conf.State)
	if err != nil {
		return Status{}, err
	}
	s := Status{Server: conf.Server, Broker: conf.Broker.Name, Verified: st.Verified, VerifiedAt: st.VerifiedAt,
		Pending: len(st.Kicks), Refusals: []string{}, Failing: []Failing{}, CRLs: []CRLInfo{}}
	if st.Mark != nil {
		for id, name := range st.Mark.Issuers {
			info := CRLInfo{Issuer: name}
			for key, crl := range st.Mark.CRLs {
				if key != id && !strings.HasPrefix(key, id+"/") {
					continue
				}
				if info.Number = max(info.Number, crl.Number); info.NextUpdate.IsZero() || crl.NextUpdate.Before(info.NextUpdate) {
					info.NextUpdate = crl.NextUpdate
				}
			}
			s.CRLs = append(s.CRLs, info)
		}
	}
	return s, nil
}

// Handler serves /metrics, /healthz (the process lives), /readyz (Status.Ready) and /status (Status as JSON).
func (b *Bridge) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", b.metrics.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s := b.Status()
		if !s.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(map[string]any{"ready": s.Ready, "refusals": s.Refusals, "failing": s.Failing})
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(b.Status())
	})
	return mux
}
