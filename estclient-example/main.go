// Command estclient-example is a device agent built on package client: it enrolls by itself at first boot, renews for as long as
// it runs and publishes telemetry over MQTT with the certificate that is then in force.
//
// It is an example to read and to copy from, and complete enough to run on a device as it is.
//
//	main.go     the command line
//	agent.go    from flags to a store and a client
//	enroll.go   enroll and reenroll: once, with an exit code
//	run.go      run: for ever
//	identity.go the part of run that enrolls and renews
//	mqtt.go     the part of run that publishes
//	show.go     show
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

// flags are common to all commands, so that one line in a unit file or script serves them all. The comments of kong's tags are the manual.
type flags struct {
	Server           string        `placeholder:"URL" help:"EST server, https://HOST:PORT."`
	Dir              string        `placeholder:"DIR" help:"Where key, certificate and trust are kept."`
	Label            string        `placeholder:"LABEL" help:"Label (additional path segment); empty is the default one."`
	ID               string        `name:"id" placeholder:"ID" help:"Device id: the user name for the code and the name in the certificate."`
	CodeFile         string        `placeholder:"FILE" help:"File with the one-time enrollment code, - for standard input; or the variable EST_CODE."`
	BirthCert        string        `placeholder:"FILE" help:"Birth certificate (PEM), with its intermediate CAs after it."`
	BirthKey         string        `placeholder:"FILE" help:"Private key of the birth certificate (PEM: PKCS#8, PKCS#1 or SEC 1)."`
	Trust            string        `placeholder:"FILE" help:"Roots that authenticate the EST server (PEM), for as long as DIR/trust.pem does not exist."`
	TrustFingerprint string        `placeholder:"SHA256" help:"Instead of --trust: SHA-256 of the root, hexadecimal."`
	Key              string        `default:"ec:P-256" help:"Kind of key: ec:P-256, ec:P-384, rsa:2048 or rsa:3072."`
	MQTT             string        `name:"mqtt" placeholder:"HOST:PORT" help:"Broker to publish telemetry to (MQTT 5 over TLS)."`
	MQTTCA           string        `name:"mqtt-ca" placeholder:"FILE" default:"system" help:"Roots that authenticate the broker (PEM), or the word system."`
	MQTTTopic        string        `name:"mqtt-topic" default:"v1/devices/me/telemetry" placeholder:"TOPIC" help:"Topic to publish to; {id} stands for the device id."`
	Interval         time.Duration `default:"30s" help:"Time between two telemetry messages."`
	Once             bool          `help:"With run: stop after the first message that the broker has acknowledged, or without --mqtt as soon as there is a certificate."`
	JSON             bool          `name:"json" help:"With show: one JSON object."`
}

type commandLine struct {
	flags

	Enroll   struct{} `cmd:"" help:"Enroll for a certificate, once."`
	Reenroll struct{} `cmd:"" help:"Renew the certificate now, with a new key."`
	Run      struct{} `cmd:"" help:"Enroll if there is no certificate, renew when it is time, publish telemetry; until stopped."`
	Show     struct{} `cmd:"" help:"Show the certificate in force."`
}

const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	os.Exit(realMain(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func realMain(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var line commandLine
	exited := -1
	parser, err := kong.New(&line, kong.Name("estclient-example"),
		kong.Description("Device agent: EST enrollment, renewal, MQTT telemetry."),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }))
	if err != nil {
		fmt.Fprintln(stderr, "estclient-example:", err)
		return exitFailure
	}
	parsed, err := parser.Parse(args)
	if exited >= 0 {
		return exited // --help
	}
	if err == nil {
		err = line.check(parsed.Command())
	}
	if err != nil {
		fmt.Fprintf(stderr, "estclient-example: %s (see --help)\n", oneLine(err))
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newAgent(line.flags, stdin, stdout, stderr).do(ctx, parsed.Command()); err != nil {
		fmt.Fprintf(stderr, "estclient-example: %s: %s\n", parsed.Command(), oneLine(err))
		return exitFailure
	}
	return 0
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
