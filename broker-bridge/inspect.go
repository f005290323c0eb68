// check, status and approve: what an operator asks a bridge.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/natal-pki/natal/broker-bridge/bridge"
)

// errFindings ends check with exit code 1 when what it found is already printed.
var errFindings = errors.New("the configuration contradicts the bridge's")

type checkCommand struct {
	configFlag
	JSON bool `name:"json" help:"One JSON object with a list of findings."`
}

// Run prints one line for each violation.
func (c *checkCommand) Run(std streams) error {
	conf, err := bridge.Load(c.Config)
	if err != nil {
		return err
	}
	if conf.Broker.Config == "" {
		return errors.New("broker.config: missing, the broker's mosquitto.conf is needed")
	}
	findings, err := bridge.CheckMosquitto(conf)
	if err != nil {
		return err
	}
	if c.JSON {
		if findings == nil {
			findings = []bridge.Finding{}
		}
		if err := printJSON(std, map[string]any{"items": findings}); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			fmt.Fprintln(std.out, f)
		}
	}
	if len(findings) > 0 {
		return errFindings
	}
	if !c.JSON {
		fmt.Fprintf(std.out, "%s is as the bridge needs it\n", conf.Broker.Config)
	}
	return nil
}

type statusCommand struct {
	configFlag
	JSON bool `name:"json" help:"One JSON object."`
}

// Run asks the running bridge, or reads the state file.
func (c *statusCommand) Run(ctx context.Context, std streams) error {
	conf, err := bridge.Load(c.Config)
	if err != nil {
		return err
	}
	s, err := askStatus(ctx, conf.MetricsListen)
	if err != nil {
		if s, err = bridge.StatusOf(conf); err != nil {
			return err
		}
	}
	if c.JSON {
		return printJSON(std, s)
	}
	w := tabwriter.NewWriter(std.out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "server\t%s\nbroker\t%s\nrunning\t%v\nready\t%v\n", s.Server, s.Broker, s.Running, s.Ready)
	fmt.Fprintf(w, "proven set\t%d, %s\n", s.Verified, when(s.VerifiedAt))
	fmt.Fprintf(w, "devices\t%d\nsessions to end\t%d\n", s.Devices, s.Pending)
	for _, crl := range s.CRLs {
		fmt.Fprintf(w, "CRL %s\tnumber %d, until %s\n", crl.Issuer, crl.Number, when(crl.NextUpdate))
	}
	for _, r := range s.Refusals {
		fmt.Fprintf(w, "refused\t%s\n", r)
	}
	if s.Approval != "" {
		fmt.Fprintf(w, "to agree\tbroker-bridge approve --config %s %s\n", c.Config, s.Approval)
	}
	for _, f := range s.Failing {
		fmt.Fprintf(w, "failing: %s\t%s\n", f.Task, f.Error)
	}
	return w.Flush()
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

func askStatus(ctx context.Context, address string) (bridge.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var s bridge.Status
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/status", nil)
	if err != nil {
		return s, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return s, errors.New(res.Status)
	}
	return s, json.NewDecoder(http.MaxBytesReader(nil, res.Body, 1<<20)).Decode(&s)
}

type approveCommand struct {
	configFlag
	Digest string `arg:"" help:"What status and the log name for the change."`
}

// Run records the agreement; the running bridge sees it at its next look at the trust set, within 30 seconds.
func (c *approveCommand) Run(std streams) error {
	conf, err := bridge.Load(c.Config)
	if err != nil {
		return err
	}
	if err := bridge.Approve(conf.State, c.Digest); err != nil {
		return err
	}
	fmt.Fprintf(std.out, "agreed to %s\n", c.Digest)
	return nil
}

func printJSON(std streams, v any) error {
	enc := json.NewEncoder(std.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
