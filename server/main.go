// Command est-server is the EST server with its registration authority and its issuing CAs: `est-server run` to try out,
// `init` and `serve` in production, everything else to administer.
//
// This package wires and decides nothing. Administration commands send requests to the API of server/admin: through
// DIR/admin.sock to a running server, through --server to one elsewhere, or, when none runs, to the same handlers in
// this process.
//
//	main.go           the command line, exit codes
//	connect.go        the way to the API
//	output.go         tables, JSON, files
//	run.go init.go serve.go listeners.go state.go welcome.go    the server itself
//	ca.go rollover.go label.go profile.go device.go bundle.go code.go import.go cert.go birthca.go crl.go admin.go audit.go backup.go restore.go    one command each
//	va.go             a validation authority standing alone
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
	"github.com/natal-pki/natal/internal/clock"
	"github.com/natal-pki/natal/server/instance"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// commandLine is every command; kong reads the tags.
type commandLine struct {
	globals

	Run     runCommand     `cmd:"" help:"Make an instance if there is none, then serve: for trying out."`
	Init    initCommand    `cmd:"" help:"Make an instance: CAs, server certificate, first administrator."`
	Serve   serveCommand   `cmd:"" help:"Serve an instance: for production."`
	CA      caCommand      `cmd:"" name:"ca" help:"Certification authorities."`
	Label   labelCommand   `cmd:"" help:"Labels: CA, profile and authentication of an EST path."`
	Profile profileCommand `cmd:"" help:"Certificate profiles."`
	Device  deviceCommand  `cmd:"" help:"Devices (end entities)."`
	Code    codeCommand    `cmd:"" help:"One-time enrollment codes."`
	Cert    certCommand    `cmd:"" help:"Certificates."`
	BirthCA birthCACommand `cmd:"" name:"birth-ca" help:"CAs of birth certificates."`
	CRL     crlCommand     `cmd:"" name:"crl" help:"Certificate revocation lists."`
	Admin   adminCommand   `cmd:"" help:"Administrators of the API."`
	VA      vaCommand      `cmd:"" name:"va" help:"A validation authority standing alone: OCSP, CRLs and CA certificates."`
	Audit   auditCommand   `cmd:"" help:"The audit log."`
	Backup  backupCommand  `cmd:"" help:"Back the installation up, while it works, into an encrypted file."`
	Restore restoreCommand `cmd:"" help:"Put a backup into an empty data directory, or state that the database was put back."`
}

// globals are the flags of every command.
type globals struct {
	Data           string `help:"Data directory." default:"./data" env:"NATAL_DATA" placeholder:"DIR"`
	Config         string `help:"Configuration file. Default: config.yaml in the data directory." placeholder:"FILE"`
	PassphraseFile string `help:"File with the passphrase of the keys." placeholder:"FILE"`
	Server         string `help:"Administration address of a server elsewhere, as https://HOST:9443." placeholder:"URL"`
	Cert           string `help:"With --server: certificate of an administrator, PEM." placeholder:"FILE"`
	Key            string `help:"With --server: its key, PEM. Default: key.pem beside the certificate. (ca create: the kind of the CA's key.)" placeholder:"FILE"`
	Trust          string `help:"With --server: root to verify the server with. Default: trust.pem beside the certificate." placeholder:"FILE"`
}

// app is what commands work with.
type app struct {
	globals
	ctx    context.Context
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	clock  *clock.Clock
}

func (a *app) dir() instance.Dir { return instance.Dir(a.Data) }

// usageError is wrong usage that kong cannot see.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func wrongUsage(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// helpShown unwinds from kong after --help.
type helpShown struct{}

// helpFor is the command line that explains the command which a usage error is about, as far as it was understood.
func helpFor(err error) string {
	var wrong *kong.ParseError
	if errors.As(err, &wrong) && wrong.Context != nil && wrong.Context.Selected() != nil {
		return wrong.Context.Selected().FullPath() + " --help"
	}
	return "est-server --help"
}

// execute runs one command and returns the exit code.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(helpShown); !ok {
				panic(p)
			}
			code = 0
		}
	}()
	var cli commandLine
	parsed, err := newParser(&cli, stdout, stderr).Parse(args)
	if err != nil {
		return report(stderr, "", &usageError{err.Error() + "; see " + helpFor(err)})
	}
	a := &app{globals: cli.globals, ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, clock: clock.System()}
	err = parsed.Run(a)
	name, object := commandName(parsed)
	if err != nil && !strings.Contains(err.Error(), object) {
		name += " " + object
	}
	return report(stderr, name, err)
}

func newParser(cli *commandLine, stdout, stderr io.Writer) *kong.Kong {
	parser, err := kong.New(cli,
		kong.Name("est-server"),
		kong.Description("EST server (RFC 7030) with registration authority and issuing CAs."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { panic(helpShown{}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
	)
	if err != nil {
		panic(err) // the tags of commandLine are wrong
	}
	return parser
}

// commandName is the command and the object it is about: "ca import" and "IoTDeviceIssuingCA".
func commandName(parsed *kong.Context) (name, object string) {
	name, _, _ = strings.Cut(parsed.Command(), " <")
	for _, p := range parsed.Selected().Positional {
		if object = p.Target.String(); object != "" {
			return name, object
		}
	}
	return name, ""
}

// report prints an error as one line and returns the exit code.
func report(stderr io.Writer, command string, err error) int {
	if err == nil {
		return 0
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	if command != "" {
		text = command + ": " + text
	}
	fmt.Fprintln(stderr, "est-server: "+text)
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}
