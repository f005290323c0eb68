// Command broker-bridge keeps an MQTT broker in step with the EST server: trust, revocation, access control, and revoked devices
// put out. It wires package bridge to a command line and decides nothing.
//
//	main.go    the command line
//	setup.go   setup mosquitto
//	run.go     run
//	inspect.go check, status, approve
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

type commandLine struct {
	Setup struct {
		Mosquitto setupMosquitto `cmd:"" help:"Enroll the bridge and the broker's server certificate, and write every file that Mosquitto needs to start."`
	} `cmd:"" help:"Prepare a broker."`
	Run     runCommand     `cmd:"" help:"Keep the broker in step with the server, until stopped."`
	Check   checkCommand   `cmd:"" help:"Read the broker's configuration and name what contradicts the bridge's, by line."`
	Status  statusCommand  `cmd:"" help:"Show how far the broker is."`
	Approve approveCommand `cmd:"" help:"Agree to a change of trust that the bridge holds back."`
}

// streams are where a command writes and reads.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	os.Exit(realMain(os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr}))
}

func realMain(args []string, std streams) int {
	var line commandLine
	exited := -1
	parser, err := kong.New(&line, kong.Name("broker-bridge"),
		kong.Description("Keeps an MQTT broker's trust, CRL and access control in step with the EST server and puts revoked devices out."),
		kong.Writers(std.out, std.err), kong.Exit(func(code int) { exited = code }))
	if err != nil {
		fmt.Fprintln(std.err, "broker-bridge:", err)
		return exitFailure
	}
	parsed, err := parser.Parse(args)
	if exited >= 0 {
		return exited // --help
	}
	if err != nil {
		fmt.Fprintln(std.err, "broker-bridge:", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parsed.BindTo(ctx, (*context.Context)(nil))
	if err := parsed.Run(std); err != nil {
		if !errors.Is(err, errFindings) {
			fmt.Fprintln(std.err, "broker-bridge:", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		return exitFailure
	}
	return 0
}
