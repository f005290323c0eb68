// What `run` prints when it serves: addresses, the trust anchor, and lines to paste.

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/registration"
)

func (a *app) welcome(s *server) error {
	chain, err := s.ManagementChain(a.ctx)
	if err != nil {
		return err
	}
	device, codeFile, err := a.tryDevice(s)
	if err != nil {
		return err
	}
	url, trust := "https://"+a.reach(s, s.est), s.Dir.Trust()
	program := func(name string) string { // beside this program, called as this one was
		return os.Args[0][:strings.LastIndex(os.Args[0], "/")+1] + name
	}
	w := a.stdout
	fmt.Fprintf(w, "\nEST URL       %s%s\ntrust anchor  %s\nSHA-256       %s\n\n", url, wire.PathPrefix, trust, sha256Hex(chain[len(chain)-1].Raw))
	if device != "" {
		fmt.Fprintf(w, "a device (its one-time code is in the file):\n  %s enroll --server %s --dir ./%s --id %s --code-file %s --trust %s\n",
			program("estclient-example"), url, device, device, codeFile, trust)
	}
	fmt.Fprintf(w, "curl:\n  curl --cacert %s %s/cacerts\n", trust, url+wire.PathPrefix)
	fmt.Fprintf(w, "a birth CA, whose birth certificates may enroll:\n  %s birth-ca add default BIRTH-CA.pem --data %s\n", program("est-server"), a.Data)
	fmt.Fprintf(w, "Prometheus:\n  - {job_name: est-server, static_configs: [{targets: [%q]}]}\n", a.reach(s, s.monitoring))
	fmt.Fprint(w, "\nready; Ctrl-C stops\n")
	return nil
}

// reach is HOST:PORT by which an address of this server is reached.
func (a *app) reach(s *server, l *listener) string {
	host, port, err := net.SplitHostPort(l.address())
	if err != nil {
		return l.address()
	}
	return net.JoinHostPort(reachable(a.ctx, s.Settings.Hosts, host), port)
}

// At most so many devices are tried for a welcome.
const tryDevices = 100

// tryDevice returns a device that has not enrolled and the file with its code. What the last start left unused serves again.
func (a *app) tryDevice(s *server) (id, file string, err error) {
	label, err := s.Book.Label(a.ctx, registration.Default)
	if err != nil || !slices.Contains(label.Auth, registration.AuthCode) {
		return "", "", err
	}
	for n := 1; n <= tryDevices; n++ {
		id := fmt.Sprintf("device-%d", n)
		file := s.Dir.Path(id + ".code")
		known, err := s.Book.Device(a.ctx, id)
		var e *registration.Error
		missing := errors.As(err, &e) && e.Kind == registration.NotFound
		if err != nil && !missing {
			return "", "", err
		}
		_, fileErr := os.Lstat(file)
		if !missing && (known.State != registration.StateNew || known.Label != label.Name || fileErr != nil) {
			continue
		}
		if !missing {
			active, err := a.hasActiveCode(s, id)
			if err != nil {
				return "", "", err
			}
			if active {
				return id, file, nil
			}
		}
		code, err := s.Book.CreateCode(a.ctx, "server", id, label.Name, s.Settings.CodeExpires, nil)
		if err != nil {
			return "", "", err
		}
		return id, file, writeFile(file, []byte(code.Code+"\n"), 0o600)
	}
	return "", "", nil
}

func (a *app) hasActiveCode(s *server, id string) (bool, error) {
	codes, err := s.Book.Codes(a.ctx, registration.Filter{Device: id})
	return slices.ContainsFunc(codes, func(c registration.Code) bool { return c.State == registration.CodeActive }), err
}
