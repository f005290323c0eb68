// Who calls. The socket DIR/admin.sock means administrator and is audited with the peer's uid; a TLS connection is
// as good as its client certificate, looked up in the database at each request.

package admin

import (
	"context"
	"net"
	"net/http"
	"strconv"

	"github.com/natal-pki/natal/ca"
	"golang.org/x/sys/unix"
)

// Roles.
const (
	RoleAdministrator = "administrator" // everything
	RoleOperator      = "operator"      // devices, their codes, certificates and CRLs (scope.go); reads everything but the audit log
	RoleAuditor       = "auditor"       // reads everything
	RoleBridge        = "bridge"        // nothing here: the feed on the EST address
)

// Who may call what.
var (
	administrators = []string{RoleAdministrator}
	operators      = []string{RoleAdministrator, RoleOperator}
	auditors       = []string{RoleAdministrator, RoleAuditor}
	readers        = []string{RoleAdministrator, RoleOperator, RoleAuditor}
)

// Caller is somebody whose right to call was established.
type Caller struct {
	Actor string // for the audit log: "cli:uid=0", "admin:NAME"
	Role  string
	Local bool // on this machine, with the server's own rights
}

type callerKey struct{}

// WithCaller marks ctx as a request of c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

func callerOf(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// LocalCaller is a user of this machine who can open the data directory.
func LocalCaller(uid int) Caller {
	return Caller{Actor: "cli:uid=" + strconv.Itoa(uid), Role: RoleAdministrator, Local: true}
}

// SocketContext is http.Server.ConnContext of the Unix socket: it asks the kernel who connected (SO_PEERCRED).
func SocketContext(ctx context.Context, conn net.Conn) context.Context {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || credErr != nil {
		return ctx
	}
	return WithCaller(ctx, LocalCaller(int(cred.Uid)))
}

// Remote is the API for TLS connections. identify tells which of our certificates the connection proved to hold;
// the role comes from the administrator's record.
func (a *API) Remote(identify func(r *http.Request) (ca.Certificate, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cert, err := identify(r)
		if err != nil {
			a.cfg.Log.Warn("admin request refused", "remote", r.RemoteAddr, "error", err)
			writeProblem(w, notAuthenticated("the client certificate is not one of an administrator"))
			return
		}
		name, role, err := a.roleOf(r.Context(), cert)
		if err != nil {
			a.cfg.Log.Warn("admin request refused", "remote", r.RemoteAddr, "serial", cert.Serial, "error", err)
			writeProblem(w, notAuthenticated("the client certificate is not one of an administrator"))
			return
		}
		a.ServeHTTP(w, r.WithContext(WithCaller(r.Context(), Caller{Actor: "admin:" + name, Role: role})))
	})
}
