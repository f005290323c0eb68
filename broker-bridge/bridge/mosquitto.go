// Eclipse Mosquitto 2.0 and 2.1: three files, a SIGHUP, probes on the device listener.
//
// Measured on 2.0.11, and the reason for most of this: a CRL file that does not load at a SIGHUP switches CRL checking off; cafile is reloaded
// only where there is also a crlfile; a reload never touches a live session.

package bridge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/natal-pki/natal/internal/atomicfile"
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/internal/fault"
)

const (
	reloadSlack = 250 * time.Millisecond
	fileMode    = 0o640
)

// Mosquitto is a Broker.
type Mosquitto struct {
	conf    BrokerConfig
	device  connector
	control *mosquittoControl
	gid     int // group of the files, -1 for our own

	// Of the last accepted probe: its TLS session is resumed until the broker has loaded a new context.
	marker    *tls.Certificate
	ticket    *ticketBox
	markedPID int
	markedAt  time.Duration // start of that process
	resumes   bool
}

// NewMosquitto prepares to work with a broker; it need not run yet. identity is the bridge's own certificate for the
// control listener, anchors what the broker's certificate must chain to (nil: the system's roots).
func NewMosquitto(conf BrokerConfig, anchors []*x509.Certificate, identity func() (*tls.Certificate, error), clk *clock.Clock) (*Mosquitto, error) {
	server := &tls.Config{ServerName: conf.ServerName, MinVersion: tls.VersionTLS12, Time: clk.Now}
	if anchors != nil {
		server.RootCAs = x509.NewCertPool()
		for _, a := range anchors {
			server.RootCAs.AddCert(a)
		}
	}
	m := &Mosquitto{conf: conf, device: connector{address: conf.Listener, tls: server}, gid: -1}
	m.control = newMosquittoControl(conf, server, identity)
	gid, err := lookupGroup(conf.Group)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 || member(gid) {
		m.gid = gid
	}
	return m, nil
}

// lookupGroup returns -1 for "-".
func lookupGroup(name string) (int, error) {
	if name == "-" || name == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return -1, fmt.Errorf("broker.group: %w", err)
	}
	return strconv.Atoi(g.Gid)
}

func member(gid int) bool {
	groups, err := os.Getgroups()
	if err != nil {
		return false
	}
	return slices.Contains(groups, gid) || gid == os.Getegid()
}

// Close ends the control connection.
func (m *Mosquitto) Close() { m.control.close() }

// Published reads the files.
func (m *Mosquitto) Published() (Material, error) {
	var out Material
	var errs []error
	read := func(path string) []byte {
		if path == "" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		return data
	}
	out.Bundle, out.ACL = read(m.conf.Bundle), read(m.conf.ACLFile)
	out.Services, out.Server = read(m.conf.ServicesFile), read(m.conf.ServerCertificate)
	return out, errors.Join(errs...)
}

// Publish replaces the files that differ. The bundle goes last: with it the rights of a new CA's devices begin.
func (m *Mosquitto) Publish(want Material) error {
	have, err := m.Published()
	if err != nil {
		return err
	}
	write := func(path string, data []byte) func() error {
		return func() error { return atomicfile.WriteOwned(path, data, fileMode, -1, m.gid) }
	}
	if want.Server != nil && m.conf.ServerCertificate != "" && string(want.Server) != string(have.Server) {
		if err := fault.Step("bridge.server_certificate", write(m.conf.ServerCertificate, want.Server)); err != nil {
			return err
		}
	}
	if want.Services != nil && m.conf.ServicesFile != "" && string(want.Services) != string(have.Services) {
		if err := fault.Step("bridge.services_acl", write(m.conf.ServicesFile, want.Services)); err != nil {
			return err
		}
	}
	if want.ACL != nil && string(want.ACL) != string(have.ACL) {
		if err := fault.Step("bridge.acl", write(m.conf.ACLFile, want.ACL)); err != nil {
			return err
		}
	}
	if want.Bundle != nil && string(want.Bundle) != string(have.Bundle) {
		return fault.Step("bridge.bundle", write(m.conf.Bundle, want.Bundle))
	}
	return nil
}

// Reload sends SIGHUP and waits until the broker works with a new TLS context: the session of the last accepted probe is then
// no longer resumed. Without such a session, or when that has ended by itself, it waits twice as long as an idle 2.0 broker takes to
// look at signals.
func (m *Mosquitto) Reload(ctx context.Context) (time.Duration, error) {
	p, err := findProcess(m.conf.PIDFile, m.conf.Executable)
	if err != nil {
		return 0, err
	}
	defer p.close()
	tells := m.resumes && m.markedPID == p.pid && m.markedAt == p.start && m.stillResumes(ctx)
	if err := p.hangUp(ctx); err != nil {
		return 0, err
	}
	start := time.Now()
	if !tells {
		return 0, sleep(ctx, reloadSlack)
	}
	for m.stillResumes(ctx) {
		if err := sleep(ctx, time.Millisecond); err != nil {
			return 0, fmt.Errorf("the broker still resumes sessions from before the SIGHUP: %w", err)
		}
	}
	return time.Since(start), ctx.Err()
}

// stillResumes reports whether the broker accepts the marked TLS session. A broker that does not answer is not resuming.
func (m *Mosquitto) stillResumes(ctx context.Context) bool {
	box := &ticketBox{session: m.ticket.session, offer: true}
	return m.device.probe(ctx, Probe{Certificate: m.marker, Want: Accepted}, box).resumed
}

// Prove connects as all probes at once.
func (m *Mosquitto) Prove(ctx context.Context, probes []Probe) []Outcome {
	outcomes := make([]Outcome, len(probes))
	boxes := make([]ticketBox, len(probes))
	var wait sync.WaitGroup
	for i, p := range probes {
		wait.Go(func() { outcomes[i] = m.device.probe(ctx, p, &boxes[i]) })
	}
	wait.Wait()
	for i := range outcomes {
		if outcomes[i].Verdict == Accepted && outcomes[i].Probe.Want == Accepted && boxes[i].session != nil {
			m.mark(ctx, probes[i].Certificate, &boxes[i])
			break
		}
	}
	return outcomes
}

// mark keeps a TLS session for the next reload, with the process that it belongs to.
func (m *Mosquitto) mark(ctx context.Context, c *tls.Certificate, box *ticketBox) {
	m.marker, m.ticket = c, box
	p, err := findProcess(m.conf.PIDFile, m.conf.Executable)
	if err != nil {
		m.resumes = false
		return
	}
	defer p.close()
	if m.markedPID != p.pid || m.markedAt != p.start {
		m.markedPID, m.markedAt = p.pid, p.start
		m.resumes = m.stillResumes(ctx)
	}
}

// Kick ends the sessions of a device through the dynamic-security plugin.
func (m *Mosquitto) Kick(ctx context.Context, device string) error {
	return m.control.kick(ctx, device)
}
