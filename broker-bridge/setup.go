// setup: one enrollment code becomes a broker that can start.

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/natal-pki/natal/broker-bridge/bridge"
	"github.com/natal-pki/natal/internal/clock"
)

const setupTimeout = 2 * time.Minute

type setupMosquitto struct {
	Server           string   `required:"" placeholder:"URL" help:"EST server, https://HOST:PORT."`
	CodeFile         string   `placeholder:"FILE" help:"File with the enrollment code of the bridge, - for standard input; or the variable EST_CODE. Needed until the bridge has its certificate."`
	Host             []string `required:"" placeholder:"NAME" help:"Name of the broker; repeat for more. The first one is the bridge's id at the server."`
	San              []string `name:"san" placeholder:"NAME" help:"Further name for the server certificate: dns:NAME, ip:ADDRESS or just the name."`
	Out              string   `required:"" placeholder:"DIR" help:"Directory for everything, for example /etc/mosquitto/natal."`
	Trust            string   `placeholder:"FILE" help:"Roots of the EST server (PEM): its trust.pem."`
	TrustFingerprint string   `placeholder:"SHA256" help:"Instead of --trust: SHA-256 of the root, hexadecimal."`
	Listen           string   `default:":8883" placeholder:"HOST:PORT" help:"Address of the device listener (${default})."`
	ControlListen    string   `default:"127.0.0.1:8884" placeholder:"HOST:PORT" help:"Address of the control listener, loopback (${default})."`
	User             string   `default:"mosquitto" help:"User that the broker runs as; - leaves owner and group (${default}). Without root they are left."`
	PIDFile          string   `name:"pid-file" placeholder:"FILE" help:"pid_file of the broker. Default: the packaged broker's if DIR is below /etc/mosquitto, else DIR/broker/mosquitto.pid."`
	Topic            []string `sep:"none" placeholder:"RULE" help:"What each device may do, such as \"write /{service}/{id}/attrs\"; repeat for more. Default: write v1/devices/me/telemetry."`
	ACLHead          string   `name:"acl-head" placeholder:"FILE" help:"Rules to keep above the devices in the access control list."`
	MetricsListen    string   `default:"127.0.0.1:9102" placeholder:"HOST:PORT" help:"Address for metrics and health (${default})."`
}

// Run writes the files.
func (c *setupMosquitto) Run(ctx context.Context, std streams) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	code, err := c.code(std.in)
	if err != nil {
		return err
	}
	hosts := c.Host
	for _, san := range c.San {
		_, name, typed := strings.Cut(san, ":")
		if kind := strings.ToLower(san[:strings.IndexByte(san+":", ':')]); !typed || kind != "dns" && kind != "ip" {
			name = san
		}
		hosts = append(hosts, name)
	}
	return bridge.SetupMosquitto(ctx, bridge.SetupOptions{
		Server: c.Server, Code: code, Hosts: hosts, Out: c.Out, Trust: c.Trust, TrustFingerprint: c.TrustFingerprint,
		Listen: c.Listen, Control: c.ControlListen, User: c.User, PIDFile: c.PIDFile, Topics: c.Topic, Head: c.ACLHead,
		MetricsListen: c.MetricsListen, Clock: clock.System(), Log: slog.New(slog.NewTextHandler(std.err, nil)),
	}, std.out)
}

func (c *setupMosquitto) code(stdin io.Reader) (string, error) {
	var data []byte
	var err error
	switch c.CodeFile {
	case "":
		data = []byte(os.Getenv("EST_CODE"))
	case "-":
		data, err = io.ReadAll(io.LimitReader(stdin, 4096))
	default:
		data, err = os.ReadFile(c.CodeFile)
	}
	if err != nil {
		return "", fmt.Errorf("--code-file: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
