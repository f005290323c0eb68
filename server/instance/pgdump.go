// PostgreSQL keeps its own backups; where pg_dump is installed a dump goes into ours.

package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/natal-pki/natal/internal/database"
	"github.com/natal-pki/natal/server/backup"
)

// NoDatabase is the manifest's word for a backup without the database.
const NoDatabase = "none"

// libpqParameters are what an address may say beside host, port, user, password and name. Others are the Go driver's.
var libpqParameters = []string{
	"application_name", "channel_binding", "connect_timeout", "gssencmode", "host", "hostaddr", "options", "password", "port", "sslcert", "sslcrl", "sslkey",
	"sslmode", "sslrootcert", "target_session_attrs", "user",
}

// dumpPostgres runs pg_dump, if there is one, on the database at address. The password reaches it in a file that only this user can read.
func (i *Instance) dumpPostgres(ctx context.Context, address, work string, m *backup.Manifest) (string, error) {
	program, err := exec.LookPath("pg_dump")
	if err != nil {
		i.Log.Warn("pg_dump is not installed: the backup is without the database")
		m.Database = NoDatabase
		return "", nil
	}
	service, err := serviceFile(address)
	if err != nil {
		return "", err
	}
	file := filepath.Join(work, "service.conf")
	if err := os.WriteFile(file, service, 0o600); err != nil {
		return "", err
	}
	copied := filepath.Join(work, backup.PostgresName)
	if err := os.WriteFile(copied, nil, 0o600); err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, program, "--format=custom", "--no-owner", "--no-privileges", "--file="+copied, "--dbname=service=natal")
	command.Env = append(os.Environ(), "PGSERVICEFILE="+file)
	var said bytes.Buffer
	command.Stderr = &said
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("pg_dump: %w: %s", err, strings.TrimSpace(said.String()))
	}
	m.Database = database.Postgres
	return copied, nil
}

// serviceFile is an address as a libpq connection service called natal.
func serviceFile(address string) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the address of the database cannot be read") // the cause may quote the password
	}
	values := map[string]string{"host": u.Hostname(), "port": u.Port(), "user": u.User.Username(), "dbname": strings.TrimPrefix(u.Path, "/")}
	values["password"], _ = u.User.Password()
	for name, list := range u.Query() {
		if slices.Contains(libpqParameters, name) && len(list) > 0 {
			values[name] = list[0]
		}
	}
	var out bytes.Buffer
	out.WriteString("[natal]\n")
	for name, value := range values {
		if strings.ContainsAny(value, "\r\n") {
			return nil, errors.New("the address of the database holds a line break")
		}
		if value != "" {
			fmt.Fprintf(&out, "%s=%s\n", name, value)
		}
	}
	return out.Bytes(), nil
}
