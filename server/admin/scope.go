// What an operator may act on: labels, end entities, certificates and CRLs of the devices' CAs. Whoever can make an end entity of another
// label can make himself a bridge or a server that bridges and devices believe; that takes an administrator.

package admin

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/profile"
)

// deviceUses are the uses of the CAs that are within an operator's reach.
var deviceUses = []string{profile.UseBroker, profile.UseBirth}

func outOfScope(c Caller, format string, args ...any) *Problem {
	detail := fmt.Sprintf("%s: role %q acts on what is for devices only (CA use %s); this takes an administrator",
		fmt.Sprintf(format, args...), c.Role, strings.Join(deviceUses, " or "))
	return newProblem(http.StatusForbidden, "administrator_only", detail)
}

// mayUseCA refuses a CA that c may not act for. A CA that does not exist is NotFound for everybody.
func (a *API) mayUseCA(ctx context.Context, c Caller, name string) error {
	if c.Role == RoleAdministrator {
		return nil
	}
	info, err := a.cfg.CA.Get(ctx, name)
	if err != nil {
		return err
	}
	if !slices.Contains(deviceUses, info.Use) {
		return outOfScope(c, "CA %q", name)
	}
	return nil
}

// mayUseLabel refuses a label whose CA c may not act for.
func (a *API) mayUseLabel(ctx context.Context, c Caller, name string) error {
	if c.Role == RoleAdministrator {
		return nil
	}
	label, err := a.cfg.Book.Label(ctx, name)
	if err != nil {
		return err
	}
	info, err := a.cfg.CA.Get(ctx, label.CA)
	if err != nil {
		return err
	}
	if !slices.Contains(deviceUses, info.Use) {
		return outOfScope(c, "label %q", name)
	}
	return nil
}

// mayRegister refuses what c may not make: an end entity of a label out of reach, or one that is called like the EST server.
func (a *API) mayRegister(ctx context.Context, c Caller, id, label string, sans []string) error {
	if c.Role == RoleAdministrator {
		return nil
	}
	if err := a.mayUseLabel(ctx, c, label); err != nil {
		return err
	}
	return a.mayBeCalled(c, id, sans)
}

// mayBeCalled refuses names of the EST server.
func (a *API) mayBeCalled(c Caller, id string, sans []string) error {
	if c.Role == RoleAdministrator {
		return nil
	}
	for _, name := range append([]string{id}, sans...) {
		if a.serverIsCalled(name) {
			return outOfScope(c, "%q is a name of the EST server", name)
		}
	}
	return nil
}

// serverIsCalled tells whether name ("NAME", "dns:NAME", "ip:ADDRESS"; NAME may begin with "*.") is in the EST server's certificate.
// Every machine is called localhost.
func (a *API) serverIsCalled(name string) bool {
	if a.cfg.ServerCertificate == nil {
		return false
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, "dns:"), "ip:")
	if ip := net.ParseIP(name); strings.EqualFold(name, "localhost") || ip.IsLoopback() {
		return false
	}
	leaf := a.cfg.ServerCertificate()
	if leaf.VerifyHostname(name) == nil {
		return true
	}
	pattern := &x509.Certificate{DNSNames: []string{name}}
	return strings.HasPrefix(name, "*.") && slices.ContainsFunc(leaf.DNSNames, func(own string) bool { return pattern.VerifyHostname(own) == nil })
}

// mayUseDevice refuses an end entity of a label out of reach. A label keeps its use as long as end entities hold certificates from it.
func (a *API) mayUseDevice(ctx context.Context, c Caller, id string) error {
	if c.Role == RoleAdministrator {
		return nil
	}
	device, err := a.cfg.Book.Device(ctx, id)
	if err != nil {
		return err
	}
	return a.mayUseLabel(ctx, c, device.Label)
}

// mayUseCertificate refuses a certificate of a CA out of reach, and every certificate that is a CA's.
func (a *API) mayUseCertificate(ctx context.Context, c Caller, serial string) error {
	if c.Role == RoleAdministrator {
		return nil
	}
	cert, err := a.cfg.CA.Certificate(ctx, serial)
	if err != nil {
		return err
	}
	if isCA(cert) {
		return outOfScope(c, "certificate %s of a CA", cert.Serial)
	}
	return a.mayUseCA(ctx, c, cert.Issuer)
}

func isCA(c ca.Certificate) bool {
	parsed, err := x509.ParseCertificate(c.DER)
	return c.IsCA() || (err == nil && parsed.IsCA)
}
